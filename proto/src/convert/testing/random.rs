//! Any record there and back, and any bytes at all.

use std::time::Duration;

use federation_model::{
    ACCOUNTS_MAX, Accept, AccountRef, Action, Admission, Approval, Audience, Body, Candidate, ClusterId,
    DestinationPattern, Digest, ENDPOINTS_MAX, Eviction, Export, FederationId, Head, Intention, IntentionKey, Label,
    Layer, MemberTerms, Record, RecordId, Relay, ReplicationKey, Revocation, RuleState, SealingKey, SourcePattern,
    Staleness, Stance, Timestamp, TrustBundle, Vector, WhenStale,
};
use proptest::{
    collection::{btree_map, btree_set, vec},
    option,
    prelude::*,
};
use prost::Message;

use super::{super::*, named};
use crate::federation;

fn labels<T: std::str::FromStr + Clone + std::fmt::Debug + 'static>() -> BoxedStrategy<Label<T>>
where
    T::Err: std::fmt::Debug,
{
    prop_oneof![Just(Label::Any), "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?".prop_map(|name| Label::Is(named(&name)))].boxed()
}

fn digests() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

fn clusters() -> impl Strategy<Value = ClusterId> {
    digests().prop_map(ClusterId::from_digest)
}

fn audiences() -> impl Strategy<Value = Audience> {
    prop_oneof![Just(Audience::Law), Just(Audience::All), clusters().prop_map(Audience::Member)]
}

fn record_ids() -> impl Strategy<Value = RecordId> {
    (clusters(), audiences(), any::<u64>(), any::<u64>(), digests())
        .prop_map(|(writer, audience, epoch, seq, digest)| RecordId { writer, audience, epoch, seq, digest })
}

fn intentions() -> impl Strategy<Value = Intention> {
    let patterns = || prop_oneof![Just(Label::Any), clusters().prop_map(Label::Is)];
    let source = prop_oneof![
        (labels(), labels(), patterns()).prop_map(|(account, namespace, cluster)| SourcePattern::Account {
            account,
            namespace,
            cluster
        }),
        "spiffe://[a-z0-9._-]{1,30}(/[a-zA-Z0-9_-]{1,10}){0,5}".prop_map(|id| SourcePattern::Spiffe(named(&id))),
    ];
    let destination = (labels(), labels(), patterns()).prop_map(|(service, namespace, cluster)| DestinationPattern {
        service,
        namespace,
        cluster,
    });
    let layer = prop_oneof![Just(Layer::Rule), Just(Layer::Timed), Just(Layer::Guardrail), Just(Layer::Shadow)];
    let state = prop_oneof![
        Just(RuleState::Is(Action::Allow)),
        Just(RuleState::Is(Action::Deny)),
        Just(RuleState::Deleted),
        Just(RuleState::NotUnderstood)
    ];
    (source, destination, layer, state).prop_map(|(source, destination, layer, state)| Intention {
        key: IntentionKey { source, destination, layer },
        state,
    })
}

fn candidates() -> impl Strategy<Value = Candidate> {
    (clusters(), "[a-z]{1,20}", "[a-z0-9._-]{1,60}", vec(any::<u8>(), 1..300), any::<[u8; 32]>(), any::<[u8; 32]>())
        .prop_filter("refused name", |(_, name, ..)| name != "default")
        .prop_map(|(id, name, domain, root, replication_key, sealing_key)| Candidate {
            id,
            name: named(&name),
            trust_domain: named(&domain),
            root,
            replication_key: ReplicationKey(replication_key),
            sealing_key: SealingKey(sealing_key),
        })
}

fn stalenesses() -> impl Strategy<Value = Staleness> {
    let whens = proptest::sample::select(vec![WhenStale::Keep, WhenStale::PreferLocal, WhenStale::Deny]);
    (whens, 1..=86_400_000_u64).prop_map(|(when, lease)| Staleness { when, lease: Duration::from_millis(lease) })
}

fn bodies() -> impl Strategy<Value = Body> {
    let accounts = vec(("[a-z]{1,9}", "[a-z]{1,9}"), 1..=ACCOUNTS_MAX);
    prop_oneof![
        candidates().prop_map(Body::Founding),
        (candidates(), any::<bool>())
            .prop_map(|(candidate, lawmaker)| Body::Admission(Admission { candidate, lawmaker })),
        (any::<[bool; 3]>(), vec("[a-z0-9.-]{1,40}:[1-9][0-9]{0,3}", 0..=ENDPOINTS_MAX)).prop_map(
            |([own, manual, relay], endpoints)| {
                Body::Terms(MemberTerms {
                    accept: if own { Accept::Own } else { Accept::Federation },
                    approval: if manual { Approval::Manual } else { Approval::Auto },
                    relay: if relay { Relay::Members } else { Relay::Nobody },
                    endpoints: endpoints.iter().map(|text| named(text)).collect(),
                })
            }
        ),
        (clusters(), btree_map(1_u64..9, (any::<u64>(), digests()), 0..5)).prop_map(|(cluster, heads)| {
            let heads = heads.into_iter().map(|(epoch, (seq, digest))| (epoch, Head { seq, digest })).collect();
            Body::Eviction(Eviction { cluster, heads })
        }),
        (clusters(), option::of(btree_set(clusters(), 0..5))).prop_map(|(cluster, despite)| Body::Stance {
            cluster,
            stance: despite.map_or(Stance::Blocked, |despite| Stance::Approved { despite }),
        }),
        (digests(), vec(any::<u8>(), 1..21), any::<u64>()).prop_map(|(key, serial, end)| {
            Body::Revocation(Revocation { key, serial, not_after: Timestamp::from_millis(end) })
        }),
        (clusters(), any::<bool>()).prop_map(|(cluster, on)| Body::Lawmaker { cluster, on }),
        ("[a-z0-9._-]{1,60}", any::<u64>(), vec(vec(any::<u8>(), 0..80), 0..5)).prop_map(
            |(domain, sequence, roots)| { Body::Bundle(TrustBundle { trust_domain: named(&domain), sequence, roots }) }
        ),
        intentions().prop_map(Body::Intention),
        ("[a-z]{1,9}", "[a-z]{1,9}", 1..=u16::MAX, accounts, stalenesses()).prop_map(
            |(service, namespace, port, accounts, staleness)| {
                let account = |(account, namespace): &(String, String)| AccountRef {
                    account: named(account),
                    namespace: named(namespace),
                };
                Body::Service(Export {
                    service: named(&service),
                    namespace: named(&namespace),
                    port,
                    accounts: accounts.iter().map(account).collect(),
                    staleness,
                })
            }
        ),
        ("[a-z]{1,9}", "[a-z]{1,9}").prop_map(|(service, namespace)| Body::ServiceGone {
            service: named(&service),
            namespace: named(&namespace),
        }),
        (30_u32.., any::<bool>()).prop_map(|(kind, critical)| Body::Unknown { kind, critical }),
    ]
}

prop_compose! {
    fn records()(
        body in bodies(), federation in digests(), writer in clusters(), audience in audiences(), epoch in 1_u64..,
        seq in prop_oneof![Just(1), 1_u64..], previous in digests(), replaces in vec(record_ids(), 0..4),
        author in "[^\\p{Cc}]{0,60}", at in any::<u64>(),
    ) -> Record {
        let founding = matches!(body, Body::Founding(_));
        Record {
            federation: FederationId::from_digest(if founding { Digest::ZERO } else { federation }),
            writer,
            audience,
            epoch,
            seq,
            previous: if seq == 1 { Digest::ZERO } else { previous },
            replaces,
            author,
            written_at: Timestamp::from_millis(at),
            body,
        }
    }
}

proptest! {
    #[test]
    fn any_record_reads_back_as_it_was_written(record in records(), signature in any::<[u8; 32]>()) {
        let bytes = encode_record_checked(&record).expect("encodes");
        let signature = [signature, signature].concat();
        let envelope = decode_envelope(&encode_envelope(&bytes, &signature)).expect("decodes");
        prop_assert_eq!(envelope.record, record);
        prop_assert_eq!(envelope.record_bytes, bytes);
        prop_assert_eq!(envelope.signature.to_vec(), signature);
    }

    #[test]
    fn any_candidate_reads_back(candidate in candidates()) {
        prop_assert_eq!(decode_candidate(&encode_candidate(&candidate)).expect("decodes"), candidate);
    }

    #[test]
    fn any_bytes_are_an_error_or_a_value_and_never_a_panic(bytes in vec(any::<u8>(), 0..2000)) {
        let _ = decode_envelope(&bytes);
        let _ = decode_record(&bytes);
        let _ = decode_candidate(&bytes);
        if let Ok(vector) = federation::Vector::decode(&bytes[..]) {
            let _ = Vector::try_from(&vector);
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let _ = parse_join_token(&format!("hanse1.{text}"));
        let _ = parse_workload_token(&text);
    }

    #[test]
    fn a_record_with_bytes_changed_never_panics_and_what_is_read_can_be_written(
        record in records(), changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = encode_record(&record);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(read) = decode_record(&bytes) {
            let again = encode_record(&read);
            prop_assert_eq!(decode_record(&again).expect("reads again"), read);
        }
    }

    #[test]
    fn any_base64_behind_the_prefix_is_an_error_or_a_token(bytes in vec(any::<u8>(), 0..300)) {
        use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
        let encoded = URL_SAFE_NO_PAD.encode(bytes);
        let _ = parse_join_token(&format!("hanse1.{encoded}"));
        let _ = parse_workload_token(&format!("hansew1.{encoded}"));
    }
}
