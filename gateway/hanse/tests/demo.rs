//! The demo as a newcomer runs it, and the proof that each of its claims can fail.

use std::process::{Command, Output};

use serde_json::Value;

fn demo(arguments: &[&str]) -> (Output, Vec<Value>) {
    let output = Command::new(env!("CARGO_BIN_EXE_hanse"))
        .args(["demo", "--once", "-o", "json"])
        .args(arguments)
        .output()
        .expect("the demo runs");
    let claims = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("no JSON: {error}\n{}", String::from_utf8_lossy(&output.stderr));
    });
    (output, claims)
}

fn failed(claims: &[Value]) -> Vec<&str> {
    claims.iter().filter(|claim| claim["ok"] != true).filter_map(|claim| claim["claim"].as_str()).collect()
}

#[test]
fn every_claim_holds() {
    let (output, claims) = demo(&[]);
    assert_eq!(failed(&claims), Vec::<&str>::new(), "{claims:#?}");
    assert!(output.status.success());
    let names: Vec<&str> = claims.iter().filter_map(|claim| claim["claim"].as_str()).collect();
    for name in [
        "join",
        "join-replay-refused",
        "dial-by-name",
        "identity-seen",
        "default-deny-with-reason",
        "outbound-only-member",
        "rule-from-onprem-everywhere",
        "deny-cuts-live",
        "renewal-keeps",
        "expiry-cuts",
        "edge-restart-keeps",
        "clean-exit",
    ] {
        assert!(names.contains(&name), "{name} is not among {names:?}");
    }
    for claim in &claims {
        assert!(claim["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{claim}");
        assert!(claim["ms"].is_u64(), "{claim}");
    }
}

/// The campaign breaks all twelve; here one of each kind that fails quickly.
#[test]
fn a_broken_claim_fails() {
    for claim in ["join", "join-replay-refused"] {
        let (output, claims) = demo(&["--sabotage", claim]);
        assert!(failed(&claims).contains(&claim), "{claim}: {claims:#?}");
        assert_eq!(output.status.code(), Some(1), "{claim}");
    }
}
