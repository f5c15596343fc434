//! Tables as people see them.

use std::time::UNIX_EPOCH;

use super::*;

const NOW_MS: u64 = 1_700_000_000_000;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(NOW_MS)
}

#[test]
fn a_link_that_is_down_says_why() {
    let up = manage::Link {
        cluster: "west".into(),
        state: "up".into(),
        direction: "dialled".into(),
        address: "10.0.0.1:7443".into(),
        rtt_us: 1_250,
        data_age_ms: 300,
        tunnels: 2,
        ..Default::default()
    };
    let down = manage::Link {
        cluster: "onprem".into(),
        state: "connecting".into(),
        error: "connection refused".into(),
        ..Default::default()
    };
    let shown = links(&manage::LinkList { links: vec![up, down] });
    assert_eq!(
        shown,
        "CLUSTER  STATE       DIRECTION  ADDRESS        RTT     DATA AGE  TUNNELS  ERROR\n\
         west     up          dialled    10.0.0.1:7443  1.25ms  300ms     2        -\n\
         onprem   connecting  -          -              -       -         0        connection refused\n"
    );
}

#[test]
fn a_rule_shows_whether_it_counts_and_who_wrote_it() {
    let intention = manage::Intention {
        source: "web.shop.east".into(),
        destination: "payments.billing.west".into(),
        action: "deny".into(),
        layer: "rule".into(),
        precedence: 9,
        writer: "onprem".into(),
        author: "root".into(),
        written_at_ms: NOW_MS - 90_000,
        counts: false,
        note: "onprem is no lawmaker".into(),
        conflict: true,
        enforced: 4,
        members: 5,
        behind: vec![manage::Laggard { cluster: "west".into(), data_age_ms: 40_000 }],
        ..Default::default()
    };
    assert_eq!(
        intentions([&intention], now()),
        "PREC  ACTION  SOURCE         DESTINATION            LAYER  WRITER  AUTHOR  AGE    COUNTS  ENFORCED              NOTE\n\
         9     deny    web.shop.east  payments.billing.west  rule   onprem  root    1m30s  no      4/5, west 40s behind  conflict; onprem is no lawmaker\n"
    );
}

#[test]
fn status_leaves_out_what_is_empty_and_names_problems() {
    let reply = manage::StatusReply {
        cluster: "west".into(),
        cluster_id: "ab".repeat(32),
        uptime_seconds: 61,
        problems: vec!["row 3 cannot be read".into()],
        ..Default::default()
    };
    let shown = status(&reply);
    assert!(shown.contains("Cluster:") && shown.contains("west (abababababab)"), "{shown}");
    assert!(shown.contains("1m1s") && shown.contains("row 3 cannot be read"), "{shown}");
    assert!(!shown.contains("Trust domain"), "{shown}");
}

#[test]
fn a_failed_check_is_followed_by_what_to_do() {
    let result = |state: &str, fix: &str| manage::CheckResult {
        id: "link.handshake".into(),
        state: state.into(),
        subject: "west".into(),
        detail: "no answer".into(),
        fix: fix.into(),
        ms: 3,
    };
    let reply = manage::CheckReply { results: vec![result("ok", "unused"), result("failed", "open port 7443")] };
    assert_eq!(
        checks(&reply, |_, text| text.to_owned()),
        "ok   link.handshake west: no answer\nFAIL link.handshake west: no answer\n       open port 7443\n"
    );
    assert!(checks(&reply, |code, text| format!("<{code}>{text}")).contains("<31>FAIL"));
}

#[test]
fn dates_are_shown_with_their_distance() {
    let token = manage::Token {
        id: "00112233445566778899".into(),
        cluster: "west".into(),
        state: "open".into(),
        expires_at_ms: NOW_MS + 900_000,
        refusals: 1,
    };
    assert_eq!(
        tokens(&manage::TokenList { tokens: vec![token] }, now()),
        "ID            FOR   STATE  EXPIRES                        REFUSALS\n\
         001122334455  west  open   2023-11-14T22:28:20Z (in 15m)  1\n"
    );
}
