//! Tests of all conversions: there and back, hostile bytes, the future, and the bytes on the wire.

use std::time::Duration;

use federation_model::{
    ACCOUNTS_MAX, Accept, AccountRef, Action, Admission, Approval, Audience, Body, Candidate, ClusterId, DESPITE_MAX,
    DestinationPattern, Digest, ENDPOINTS_MAX, EPOCHS_MAX, Eviction, Export, FederationId, Head, Intention,
    IntentionKey, JoinToken, Label, Layer, MemberTerms, REPLACES_MAX, ROOT_BYTES_MAX, ROOTS_MAX, Record, RecordId,
    Relay, ReplicationKey, Revocation, RuleState, SERIAL_BYTES_MAX, SealingKey, SourcePattern, Staleness, Stance,
    Timestamp, TokenId, TokenSecret, TrustBundle, Vector, WhenStale,
};
use prost::Message;

use super::*;
use crate::{federation, record as wire};

mod random;

fn id(byte: u8) -> ClusterId {
    ClusterId::from_digest(Digest([byte; 32]))
}

fn named<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().expect(text)
}

fn candidate() -> Candidate {
    Candidate {
        id: id(0xc1),
        name: named("west"),
        trust_domain: named("west.mesh.internal"),
        root: vec![0x30, 0x82, 0x01, 0x02],
        replication_key: ReplicationKey([0x11; 32]),
        sealing_key: SealingKey([0x12; 32]),
    }
}

fn record(body: Body) -> Record {
    let federation = if matches!(body, Body::Founding(_)) { Digest::ZERO } else { Digest([0xfe; 32]) };
    Record {
        federation: FederationId::from_digest(federation),
        writer: id(0xaa),
        audience: Audience::Law,
        epoch: 1,
        seq: 7,
        previous: Digest([0x99; 32]),
        replaces: vec![RecordId {
            writer: id(0xbb),
            audience: Audience::Law,
            epoch: 2,
            seq: 3,
            digest: Digest([0x77; 32]),
        }],
        author: "uid 0 (root)".to_owned(),
        written_at: Timestamp::from_millis(1_767_225_600_123),
        body,
    }
}

fn intention(layer: Layer, state: RuleState) -> Intention {
    Intention {
        key: IntentionKey {
            source: SourcePattern::Account {
                account: Label::Is(named("web")),
                namespace: Label::Is(named("shop")),
                cluster: Label::Is(id(0xaa)),
            },
            destination: DestinationPattern {
                service: Label::Is(named("payments")),
                namespace: Label::Any,
                cluster: Label::Any,
            },
            layer,
        },
        state,
    }
}

fn join_token() -> JoinToken {
    JoinToken {
        id: TokenId([0x01; 16]),
        secret: TokenSecret([0x02; 32]),
        issuer: named("east"),
        issuer_trust_domain: named("east.mesh.internal"),
        issuer_pin: Digest([0x03; 32]),
        endpoints: vec![named("east.example:7443"), named("[2001:db8::1]:7443")],
        joiner: named("west"),
        expires_at: Timestamp::from_millis(1_767_226_500_000),
    }
}

fn workload_token() -> WorkloadToken {
    WorkloadToken {
        id: TokenId([0x04; 16]),
        secret: TokenSecret([0x05; 32]),
        cluster: named("east"),
        trust_domain: named("east.mesh.internal"),
        pin: Digest([0x06; 32]),
        account: AccountRef { account: named("web"), namespace: named("shop") },
        expires_at: Timestamp::from_millis(1_767_226_500_000),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One record of each kind, in the order of their field numbers.
fn samples() -> Vec<(&'static str, Record)> {
    let bundle =
        TrustBundle { trust_domain: named("west.mesh.internal"), sequence: 4, roots: vec![vec![1, 2], vec![3]] };
    let export = Export {
        service: named("payments"),
        namespace: named("billing"),
        port: 8443,
        accounts: vec![AccountRef { account: named("payments"), namespace: named("billing") }],
        staleness: Staleness::default(),
    };
    let strict = Staleness { when: WhenStale::Deny, lease: Duration::from_secs(60) };
    let mut leased = record(Body::Service(Export { staleness: strict, ..export.clone() }));
    leased.audience = Audience::All;
    let spiffe = Intention {
        key: IntentionKey {
            source: SourcePattern::Spiffe(named("spiffe://west.mesh.internal/ns/shop/sa/web")),
            ..intention(Layer::Guardrail, RuleState::Deleted).key
        },
        state: RuleState::Deleted,
    };
    let terms = MemberTerms {
        accept: Accept::Own,
        approval: Approval::Manual,
        relay: Relay::Members,
        endpoints: vec![named("west.example:7443")],
    };
    let eviction = Eviction {
        cluster: id(0xbb),
        heads: [(1, Head { seq: 9, digest: Digest([0x33; 32]) }), (2, Head { seq: 1, digest: Digest([0x44; 32]) })]
            .into(),
    };
    let revocation =
        Revocation { key: Digest([0x55; 32]), serial: vec![0x0a; 16], not_after: Timestamp::from_secs(1_800_003_600) };
    let private = |stance| {
        let mut record = record(Body::Stance { cluster: id(0xbb), stance });
        record.audience = Audience::Member(record.writer);
        record
    };
    let mut founding = record(Body::Founding(candidate()));
    (founding.seq, founding.previous, founding.replaces) = (1, Digest::ZERO, Vec::new());
    let mut shown = record(Body::Service(export));
    shown.audience = Audience::Member(id(0xbb));
    let mut gone = record(Body::ServiceGone { service: named("payments"), namespace: named("billing") });
    gone.audience = Audience::All;
    vec![
        ("founding", founding),
        ("admission", record(Body::Admission(Admission { candidate: candidate(), lawmaker: true }))),
        ("terms", record(Body::Terms(terms))),
        ("lawmaker", record(Body::Lawmaker { cluster: id(0xbb), on: false })),
        ("bundle", record(Body::Bundle(bundle))),
        ("rule-allow", record(Body::Intention(intention(Layer::Rule, RuleState::Is(Action::Allow))))),
        ("rule-deny", record(Body::Intention(intention(Layer::Shadow, RuleState::Is(Action::Deny))))),
        ("rule-deleted", record(Body::Intention(spiffe))),
        ("rule-not-understood", record(Body::Intention(intention(Layer::Timed, RuleState::NotUnderstood)))),
        ("service", shown),
        ("service-leased", leased),
        ("service-gone", gone),
        ("eviction", record(Body::Eviction(eviction))),
        ("leaving", record(Body::Eviction(Eviction { cluster: id(0xaa), heads: Default::default() }))),
        ("stance-approved", private(Stance::Approved { despite: [id(0xcc), id(0xdd)].into() })),
        ("stance-blocked", private(Stance::Blocked)),
        ("revocation", record(Body::Revocation(revocation))),
        ("unknown", record(Body::Unknown { kind: 4711, critical: false })),
        ("unknown-critical", record(Body::Unknown { kind: 4711, critical: true })),
    ]
}

/// `name hex` lines; a text in place of hex for tokens. Regenerate only on purpose: members that run the version
/// before would no longer understand, or worse, misunderstand.
const GOLDEN: &str = include_str!("../../testdata/wire.txt");

fn current_wire() -> String {
    let mut lines: Vec<_> =
        samples().iter().map(|(name, record)| format!("{name} {}", hex(&encode_record(record)))).collect();
    lines.push(format!("envelope {}", hex(&encode_envelope(&[1, 2, 3], &[0x5a; 64]))));
    lines.push(format!("candidate {}", hex(&encode_candidate(&candidate()))));
    lines.push(format!("join-token {}", join_token_text(&join_token())));
    lines.push(format!("workload-token {}", workload_token_text(&workload_token())));
    lines.join("\n") + "\n"
}

/// `HANSE_BLESS=1 cargo test -p proto golden` writes the file anew: only on purpose, since it changes the wire's reference.
#[test]
fn the_bytes_on_the_wire_are_those_of_the_golden_file() {
    let current = current_wire();
    if std::env::var_os("HANSE_BLESS").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/wire.txt"), &current).expect("written");
    }
    for (is, should) in current.lines().zip(GOLDEN.lines()) {
        assert_eq!(is, should, "the wire has drifted");
    }
    assert_eq!(current, GOLDEN, "proto/testdata/wire.txt has other lines");
}

#[test]
fn each_kind_of_record_reads_back_as_it_was_written() {
    for (name, record) in samples() {
        let bytes = encode_record_checked(&record).expect(name);
        let raw = encode_envelope(&bytes, &[7; 64]);
        let envelope = decode_envelope(&raw).expect(name);
        assert_eq!(envelope, Envelope { record_bytes: bytes, signature: [7; 64], record }, "{name}");
    }
}

/// What decoding says of the allow rule once `change` was applied to its message.
fn changed(change: impl FnOnce(&mut wire::Record)) -> Result<Record, ConvertError> {
    changed_sample("rule-allow", change)
}

fn changed_sample(name: &str, change: impl FnOnce(&mut wire::Record)) -> Result<Record, ConvertError> {
    let (_, record) = samples().into_iter().find(|(found, _)| *found == name).expect(name);
    let mut message = wire::Record::from(&record);
    change(&mut message);
    decode_record(&message.encode_to_vec())
}

#[test]
fn what_a_service_says_of_stale_data_is_read_with_care() {
    use wire::record::Body as Wire;
    let read = |when_stale, lease_ms| {
        let record = changed_sample("service-leased", |record| {
            let Some(Wire::Service(service)) = &mut record.body else { panic!("a service") };
            (service.when_stale, service.lease_ms) = (when_stale, lease_ms);
        });
        let Ok(Record { body: Body::Service(export), .. }) = record else { panic!("a service") };
        (export.staleness.when, export.staleness.lease)
    };
    let secs = Duration::from_secs;
    assert_eq!(read(0, 0), (WhenStale::Keep, secs(900)), "from a version before leases");
    assert_eq!(read(1, 60_000), (WhenStale::PreferLocal, secs(60)));
    assert_eq!(read(2, 10_000), (WhenStale::Deny, secs(10)));
    assert_eq!(read(7, 0), (WhenStale::Deny, secs(900)), "a word of a later version");
    assert_eq!(read(2, 1), (WhenStale::Deny, Duration::from_millis(1)), "narrower than may be chosen here");
    assert_eq!(read(0, u64::MAX), (WhenStale::Keep, secs(86_400)), "wider than counts");
}

#[test]
fn a_service_without_a_wish_has_the_bytes_of_a_version_before_leases() {
    let Body::Service(export) = samples().remove(9).1.body else { panic!("a service") };
    let message = wire::Service::from(&export);
    assert_eq!((message.when_stale, message.lease_ms), (0, 0));
}

#[test]
fn a_wrong_field_is_named() {
    use wire::record::Body as Wire;
    type Change = fn(&mut wire::Record);
    let cases: &[(&str, &str, &str, Change)] = &[
        ("rule-allow", "record.writer", "missing", |r| r.writer.clear()),
        ("rule-allow", "record.writer", "length", |r| r.writer.truncate(31)),
        ("rule-allow", "record.federation", "length", |r| r.federation.push(0)),
        ("rule-allow", "record.federation", "value", |r| r.federation.clear()),
        ("founding", "record.federation", "value", |r| r.federation = vec![1; 32]),
        ("rule-allow", "record.audience", "missing", |r| r.audience = None),
        ("rule-allow", "audience.to", "missing", |r| r.audience = Some(wire::Audience { to: None })),
        ("rule-allow", "audience.to", "value", |r| {
            r.audience = Some(wire::Audience { to: Some(wire::audience::To::Law(false)) });
        }),
        ("rule-allow", "audience.member", "length", |r| {
            r.audience = Some(wire::Audience { to: Some(wire::audience::To::Member(vec![1])) });
        }),
        ("rule-allow", "record.epoch", "missing", |r| r.epoch = 0),
        ("rule-allow", "record.seq", "missing", |r| r.seq = 0),
        ("rule-allow", "record.previous", "value", |r| r.previous.clear()),
        ("rule-allow", "record.previous", "length", |r| r.previous.truncate(8)),
        ("founding", "record.previous", "value", |r| r.previous = vec![1; 32]),
        ("rule-allow", "record.author", "too_long", |r| r.author = "a".repeat(AUTHOR_BYTES_MAX + 1)),
        ("rule-allow", "record.author", "value", |r| r.author.push('\n')),
        ("rule-allow", "record.author", "value", |r| r.author.push('\u{1b}')),
        ("rule-allow", "record.replaces", "too_many", |r| {
            r.replaces = vec![r.replaces[0].clone(); REPLACES_MAX + 1];
        }),
        ("rule-allow", "record_id.digest", "missing", |r| r.replaces[0].digest.clear()),
        ("rule-allow", "record.kind", "value", |r| r.kind = 0),
        ("rule-allow", "record.kind", "value", |r| r.kind = 19),
        ("rule-allow", "record.kind", "value", |r| r.kind = 22),
        ("rule-allow", "record.kind", "value", |r| r.kind = 4711),
        ("rule-allow", "record.body", "missing", |r| r.body = None),
        ("rule-allow", "record.scope", "missing", |r| r.scope = None),
        ("rule-allow", "scope.source", "missing", |r| scope(r).source = None),
        ("rule-allow", "scope.destination", "missing", |r| scope(r).destination = None),
        ("rule-allow", "source.account", "missing", |r| source(r).account.clear()),
        ("rule-allow", "source.namespace", "value", |r| source(r).namespace = "Shop".to_owned()),
        ("rule-allow", "source.cluster", "length", |r| source(r).cluster.truncate(5)),
        ("rule-allow", "source.spiffe_id", "value", |r| source(r).spiffe_id = "spiffe://a/b".to_owned()),
        ("rule-deleted", "source.spiffe_id", "value", |r| source(r).spiffe_id = "spiffe://a/../b".to_owned()),
        ("rule-allow", "destination.service", "value", |r| destination(r).service = "pay*".to_owned()),
        ("rule-allow", "destination.namespace", "missing", |r| destination(r).namespace.clear()),
        ("admission", "admission.candidate", "missing", |r| {
            r.body = Some(Wire::Admission(wire::Admission::default()));
        }),
        ("founding", "candidate.name", "value", |r| founder(r).name = "default".to_owned()),
        ("founding", "candidate.trust_domain", "value", |r| founder(r).trust_domain = "A".to_owned()),
        ("founding", "candidate.root", "missing", |r| founder(r).root.clear()),
        ("founding", "candidate.root", "too_long", |r| founder(r).root = vec![0; ROOT_BYTES_MAX + 1]),
        ("founding", "candidate.replication_key", "length", |r| founder(r).replication_key.truncate(1)),
        ("founding", "candidate.sealing_key", "missing", |r| founder(r).sealing_key.clear()),
        ("terms", "terms.endpoints", "too_many", |r| {
            let endpoints = vec!["a:1".to_owned(); ENDPOINTS_MAX + 1];
            r.body = Some(Wire::Terms(wire::Terms { endpoints, ..Default::default() }));
        }),
        ("terms", "terms.endpoints", "value", |r| {
            r.body = Some(Wire::Terms(wire::Terms { endpoints: vec!["http://a:1/".to_owned()], ..Default::default() }));
        }),
        ("lawmaker", "lawmaker.cluster", "missing", |r| r.body = Some(Wire::Lawmaker(wire::Lawmaker::default()))),
        ("eviction", "eviction.cluster", "missing", |r| eviction(r).cluster.clear()),
        ("eviction", "eviction.heads", "too_many", |r| {
            let heads = &mut eviction(r).heads;
            *heads = (0..=EPOCHS_MAX as u64).map(|epoch| wire::EpochHead { epoch, ..heads[0].clone() }).collect();
        }),
        ("eviction", "eviction.heads", "value", |r| {
            let twice = eviction(r).heads[0].clone();
            eviction(r).heads.push(twice);
        }),
        ("eviction", "eviction.heads.digest", "length", |r| eviction(r).heads[0].digest.truncate(31)),
        ("stance-approved", "stance.cluster", "length", |r| stance(r).cluster.push(0)),
        ("stance-approved", "stance.despite", "too_many", |r| {
            let despite = vec![vec![7; 32]; DESPITE_MAX + 1];
            stance(r).what = Some(wire::stance::What::Approved(wire::Approved { despite }));
        }),
        ("stance-approved", "stance.despite", "length", |r| {
            stance(r).what = Some(wire::stance::What::Approved(wire::Approved { despite: vec![vec![7; 3]] }));
        }),
        ("revocation", "revocation.key", "length", |r| revocation(r).key.truncate(31)),
        ("revocation", "revocation.key", "missing", |r| revocation(r).key.clear()),
        ("revocation", "revocation.serial", "missing", |r| revocation(r).serial.clear()),
        ("revocation", "revocation.serial", "too_long", |r| revocation(r).serial = vec![1; SERIAL_BYTES_MAX + 1]),
        ("bundle", "bundle.roots", "too_many", |r| bundle(r).roots = vec![vec![1]; ROOTS_MAX + 1]),
        ("bundle", "bundle.roots", "too_long", |r| bundle(r).roots = vec![vec![0; ROOT_BYTES_MAX + 1]]),
        ("bundle", "bundle.trust_domain", "missing", |r| bundle(r).trust_domain.clear()),
        ("service", "service.port", "value", |r| service(r).port = 0),
        ("service", "service.port", "value", |r| service(r).port = 65_536),
        ("service", "service.accounts", "missing", |r| service(r).accounts.clear()),
        ("service", "service.accounts", "too_many", |r| {
            let account = service(r).accounts[0].clone();
            service(r).accounts = vec![account; ACCOUNTS_MAX + 1];
        }),
        ("service", "account.account", "missing", |r| service(r).accounts[0].account.clear()),
        ("service-gone", "service_gone.service", "missing", |r| {
            r.body = Some(Wire::ServiceGone(wire::ServiceGone::default()));
        }),
    ];
    for (sample, field, reason, change) in cases {
        let error = changed_sample(sample, change).expect_err(field);
        assert_eq!((error.field(), error.reason()), (*field, *reason), "{sample}: {error}");
        assert!(error.to_string().starts_with(field), "{error}");
    }
}

#[test]
fn a_digest_of_zeros_is_no_second_way_to_say_none() {
    for field in ["record.previous", "record.federation"] {
        let error = changed_sample("rule-allow", |record| {
            let place = if field == "record.previous" { &mut record.previous } else { &mut record.federation };
            *place = vec![0; 32];
        });
        let error = error.expect_err("it would be written without one, and then not be read");
        assert_eq!((error.field(), error.reason()), (field, "value"));
    }
}

fn scope(record: &mut wire::Record) -> &mut wire::Scope {
    record.scope.as_mut().expect("rule")
}

fn source(record: &mut wire::Record) -> &mut wire::Source {
    scope(record).source.as_mut().expect("rule")
}

fn destination(record: &mut wire::Record) -> &mut wire::Destination {
    scope(record).destination.as_mut().expect("rule")
}

fn founder(record: &mut wire::Record) -> &mut wire::Candidate {
    let Some(wire::record::Body::Founding(candidate)) = &mut record.body else { panic!("founding") };
    candidate
}

fn eviction(record: &mut wire::Record) -> &mut wire::Eviction {
    let Some(wire::record::Body::Eviction(eviction)) = &mut record.body else { panic!("eviction") };
    eviction
}

fn stance(record: &mut wire::Record) -> &mut wire::Stance {
    let Some(wire::record::Body::Stance(stance)) = &mut record.body else { panic!("stance") };
    stance
}

fn revocation(record: &mut wire::Record) -> &mut wire::Revocation {
    let Some(wire::record::Body::Revocation(revocation)) = &mut record.body else { panic!("revocation") };
    revocation
}

fn bundle(record: &mut wire::Record) -> &mut wire::Bundle {
    let Some(wire::record::Body::Bundle(bundle)) = &mut record.body else { panic!("bundle") };
    bundle
}

fn service(record: &mut wire::Record) -> &mut wire::Service {
    let Some(wire::record::Body::Service(service)) = &mut record.body else { panic!("service") };
    service
}

#[test]
fn a_rule_with_a_critical_feature_is_kept_and_not_understood() {
    let read = changed(|r| r.critical = vec![1]).expect("kept");
    assert_eq!(read.body, Body::Intention(intention(Layer::Rule, RuleState::NotUnderstood)));
}

#[test]
fn a_critical_kind_of_the_future_with_a_readable_scope_denies_within_that_scope() {
    let read = changed(|r| (r.critical, r.kind, r.body) = (vec![9], 99, None)).expect("kept");
    assert_eq!(read.body, Body::Intention(intention(Layer::Rule, RuleState::NotUnderstood)));
}

#[test]
fn a_critical_record_without_a_readable_scope_is_unknown_and_critical() {
    let expected = |kind| Body::Unknown { kind, critical: true };
    let unreadable = changed(|r| {
        r.critical = vec![1];
        source(r).account = "NOT A NAME".to_owned();
    });
    assert_eq!(unreadable.expect("kept").body, expected(25));
    assert_eq!(changed_sample("terms", |r| r.critical = vec![1]).expect("kept").body, expected(22));
    assert_eq!(changed_sample("unknown", |r| r.critical = vec![1]).expect("kept").body, expected(4711));
}

#[test]
fn a_rule_in_a_layer_of_the_future_is_unknown_and_critical() {
    assert_eq!(changed(|r| scope(r).layer = 4).expect("kept").body, Body::Unknown { kind: 25, critical: true });
}

#[test]
fn a_rule_in_a_state_of_the_future_is_not_understood() {
    for state in [0, 4, -1] {
        let read = changed(|r| r.body = Some(wire::record::Body::Rule(wire::Rule { state }))).expect("kept");
        assert_eq!(read.body, Body::Intention(intention(Layer::Rule, RuleState::NotUnderstood)), "{state}");
    }
}

#[test]
fn terms_of_the_future_count_as_the_narrower() {
    let terms = wire::Terms { accept: 7, approval: 7, relay: 7, endpoints: Vec::new() };
    let read = changed_sample("terms", |r| r.body = Some(wire::record::Body::Terms(terms))).expect("kept");
    let narrower =
        MemberTerms { accept: Accept::Own, approval: Approval::Manual, relay: Relay::Nobody, endpoints: Vec::new() };
    assert_eq!(read.body, Body::Terms(narrower));
}

#[test]
fn a_stance_of_the_future_blocks() {
    let stance = wire::Stance { cluster: vec![0xbb; 32], what: None };
    let read = changed_sample("stance-blocked", |r| r.body = Some(wire::record::Body::Stance(stance))).expect("kept");
    assert_eq!(read.body, Body::Stance { cluster: id(0xbb), stance: Stance::Blocked });
}

#[test]
fn unknown_fields_are_passed_over() {
    let (_, record) = samples().remove(5);
    let mut bytes = encode_record(&record);
    bytes.extend([0xf2, 0x3f, 0x02, b'h', b'i']); // field 1022, two bytes
    assert_eq!(decode_record(&bytes).expect("read"), record);
}

#[test]
fn an_envelope_past_its_bound_is_refused_before_it_is_parsed() {
    let raw = vec![0xff; federation_model::RECORD_BYTES_MAX + 1];
    assert_eq!(decode_envelope(&raw).expect_err("long").reason(), "too_long");
    let raw = vec![0xff; CANDIDATE_BYTES_MAX + 1];
    assert_eq!(decode_candidate(&raw).expect_err("long").reason(), "too_long");
}

#[test]
fn an_envelope_without_a_whole_signature_is_refused() {
    let bytes = encode_record(&samples().remove(0).1);
    for (signature, reason) in [(vec![], "missing"), (vec![1; 63], "length"), (vec![1; 65], "length")] {
        let error = decode_envelope(&encode_envelope(&bytes, &signature)).expect_err(reason);
        assert_eq!((error.field(), error.reason()), ("envelope.signature", reason));
    }
    assert_eq!(decode_envelope(&[]).expect_err("empty").reason(), "missing");
}

#[test]
fn a_writer_learns_that_nobody_could_read_its_record() {
    let mut bad = record(Body::Lawmaker { cluster: id(1), on: true });
    bad.author = "two\nlines".to_owned();
    assert_eq!(encode_record_checked(&bad).expect_err("author").field(), "record.author");
    // An unknown kind that this version knows would be read as something else, or not at all.
    assert!(encode_record_checked(&record(Body::Unknown { kind: 22, critical: false })).is_err());
}

#[test]
fn tokens_survive_a_clumsy_paste() {
    let text = join_token_text(&join_token());
    assert!(text.starts_with("hanse1."));
    for pasted in [text.clone(), format!("  {text}\r\n"), format!("\n{text}\n\n")] {
        let read = parse_join_token(&pasted).expect("read");
        assert_eq!(join_token_text(&read), text);
    }
    let text = workload_token_text(&workload_token());
    assert!(text.starts_with("hansew1."));
    assert_eq!(workload_token_text(&parse_workload_token(&format!("{text}\n")).expect("read")), text);
}

#[test]
fn texts_that_are_no_token_are_told_apart() {
    let join = join_token_text(&join_token());
    let workload = workload_token_text(&workload_token());
    let reason = |text: &str| parse_join_token(text).expect_err("no token").reason();
    assert_eq!(reason(" \n"), "empty");
    assert_eq!(reason("hello"), "prefix");
    assert_eq!(reason(&join.replace("hanse1", "hanse2")), "prefix");
    assert_eq!(reason(&workload), "is_workload_token");
    assert_eq!(reason(&"x".repeat(TOKEN_TEXT_BYTES_MAX + 1)), "too_long");
    assert_eq!(reason(&format!("{join}=")), "base64");
    assert_eq!(reason(&join.replacen('A', " ", 1)), "base64");
    assert_eq!(reason("hanse1."), "content");
    assert_eq!(parse_workload_token(&join).expect_err("join token").reason(), "is_join_token");
}

#[test]
fn a_cut_token_is_refused_at_every_length_and_never_quoted() {
    for (text, parse) in [
        (join_token_text(&join_token()), (|t| parse_join_token(t).err()) as fn(&str) -> Option<TokenTextError>),
        (workload_token_text(&workload_token()), |t| parse_workload_token(t).err()),
    ] {
        for length in 0..text.len() {
            let Some(error) = parse(&text[..length]) else {
                // Only the last field, the expiry, may be lost whole: then the token has expired, in 1970.
                assert!(length + 12 >= text.len(), "cut at {length} of {}", text.len());
                continue;
            };
            let message = error.to_string();
            assert!(!message.contains("AgICAg") && !message.contains("BQUFBQ"), "{message}");
        }
    }
}

#[test]
fn a_join_token_needs_an_endpoint() {
    let token = JoinToken { endpoints: Vec::new(), ..join_token() };
    let error = parse_join_token(&join_token_text(&token)).expect_err("no endpoint");
    assert!(error.to_string().contains("join_token.endpoints is missing"), "{error}");
}

#[test]
fn the_longest_join_token_fits() {
    let host = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
    let token = JoinToken {
        endpoints: vec![named(&format!("{host}:65535")); ENDPOINTS_MAX],
        issuer: named(&"i".repeat(63)),
        joiner: named(&"j".repeat(63)),
        issuer_trust_domain: named(&"t".repeat(255)),
        expires_at: Timestamp::MAX,
        ..join_token()
    };
    assert!(parse_join_token(&join_token_text(&token)).is_ok());
}

#[test]
fn a_vector_reads_back_and_refuses_doubles_and_excess() {
    let mut vector = Vector::default();
    for (epoch, audience) in [(1, Audience::Law), (2, Audience::Law), (1, Audience::Member(id(9)))] {
        vector.set(id(1), audience, epoch, Head { seq: epoch + 4, digest: Digest([3; 32]) });
    }
    let mut message = federation::Vector::from(&vector);
    assert_eq!(Vector::try_from(&message).expect("read"), vector);

    message.logs.push(message.logs[0].clone());
    assert_eq!(Vector::try_from(&message).expect_err("double").field(), "log.epoch");
    message.logs.pop();
    message.logs[0].seq = 0;
    assert_eq!(Vector::try_from(&message).expect_err("no record").field(), "log.seq");

    let mut vector = Vector::default();
    for epoch in 1..=EPOCHS_MAX as u64 + 1 {
        vector.set(id(1), Audience::Law, epoch, Head { seq: 1, digest: Digest::ZERO });
    }
    let error = Vector::try_from(&federation::Vector::from(&vector)).expect_err("excess");
    assert_eq!(error.reason(), "too_many");
}
