//! What the simulated operators write, and the parties that it is about.

use std::collections::BTreeMap;

use federation_model::{
    Accept, Action, Audience, Body, ClusterId, DestinationPattern, Eviction, Export, Intention, IntentionKey, Label,
    Layer, MemberTerms, RuleState, ServiceId, SourcePattern, SpiffeId, TrustBundle,
};
use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};

use crate::node::candidate;

const NAMESPACES: [&str; 2] = ["shop", "billing"];
const NAMES: [&str; 3] = ["web", "payments", "batch"];

/// What an operator may do. A new kind of record gets a line here, a share in [`SHARES`], and its words in [`write`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Terms,
    Rotate,
    Lawmaker,
    Evict,
    Service,
    Rule,
}

/// How often each is done, relative to the others.
const SHARES: [(Act, u32); 6] =
    [(Act::Terms, 4), (Act::Rotate, 4), (Act::Lawmaker, 4), (Act::Evict, 1), (Act::Service, 16), (Act::Rule, 51)];

fn label<T: std::str::FromStr>(random: &mut StdRng, names: &[&str]) -> Label<T> {
    match names.choose(random).and_then(|name| name.parse().ok()) {
        Some(name) if random.random_bool(0.7) => Label::Is(name),
        _ => Label::Any,
    }
}

fn cluster_label(random: &mut StdRng, clusters: usize) -> Label<ClusterId> {
    if random.random_bool(0.6) { Label::Is(candidate(random.random_range(0..clusters)).id) } else { Label::Any }
}

/// A key out of few, so that writers meet.
fn key(random: &mut StdRng, clusters: usize) -> IntentionKey {
    let layer = match random.random_range(0..20) {
        0 => Layer::Guardrail,
        1 => Layer::Timed,
        2 => Layer::Shadow,
        _ => Layer::Rule,
    };
    IntentionKey {
        source: SourcePattern::Account {
            account: label(random, &NAMES),
            namespace: label(random, &NAMESPACES),
            cluster: cluster_label(random, clusters),
        },
        destination: DestinationPattern {
            service: label(random, &NAMES),
            namespace: label(random, &NAMESPACES),
            cluster: cluster_label(random, clusters),
        },
        layer,
    }
}

/// Keys that this world's operators quarrel over.
pub(crate) fn keys(random: &mut StdRng, clusters: usize) -> Vec<IntentionKey> {
    (0..random.random_range(2..8)).map(|_| key(random, clusters)).collect()
}

fn act(random: &mut StdRng) -> Act {
    let mut left = random.random_range(0..SHARES.iter().map(|(_, share)| share).sum());
    for (act, share) in SHARES {
        if left < share {
            return act;
        }
        left -= share;
    }
    Act::Rule
}

/// A write of cluster `number`, and to whom.
pub(crate) fn write(
    random: &mut StdRng,
    number: usize,
    clusters: usize,
    keys: &[IntentionKey],
    sequence: u64,
) -> (Audience, Body) {
    match act(random) {
        Act::Terms => {
            let accept = if random.random_bool(0.3) { Accept::Own } else { Accept::Federation };
            (Audience::Law, Body::Terms(MemberTerms { accept, ..MemberTerms::default() }))
        }
        Act::Rotate => (Audience::Law, rotation(random, number, sequence)),
        Act::Lawmaker => {
            let cluster = candidate(random.random_range(0..clusters)).id;
            (Audience::Law, Body::Lawmaker { cluster, on: random.random_bool(0.8) })
        }
        // Of itself it leaves; the heads of anybody else are named when it is written.
        Act::Evict => {
            let cluster = candidate(random.random_range(0..clusters)).id;
            (Audience::Law, Body::Eviction(Eviction { cluster, heads: BTreeMap::new() }))
        }
        Act::Service => (audience(random, clusters), service(random)),
        Act::Rule => {
            let state = match random.random_range(0..10) {
                0..=4 => RuleState::Is(Action::Allow),
                5..=7 => RuleState::Is(Action::Deny),
                _ => RuleState::Deleted,
            };
            let key = keys.choose(random).cloned().unwrap_or_else(|| key(random, clusters));
            (Audience::Law, Body::Intention(Intention { key, state }))
        }
    }
}

/// The next bundle of a cluster.
pub(crate) fn rotation(random: &mut StdRng, number: usize, sequence: u64) -> Body {
    let trust_domain = candidate(number).trust_domain;
    let roots = (0..random.random_range(0..3)).map(|_| vec![random.random_range(0..4)]).collect();
    Body::Bundle(TrustBundle { trust_domain, sequence, roots })
}

pub(crate) fn audience(random: &mut StdRng, clusters: usize) -> Audience {
    match random.random_range(0..3) {
        0 => Audience::All,
        // Its own number makes it a service that never leaves.
        _ => Audience::Member(candidate(random.random_range(0..clusters)).id),
    }
}

pub(crate) fn service(random: &mut StdRng) -> Body {
    let service = NAMES.choose(random).copied().unwrap_or("web").parse().expect("a label");
    let namespace = NAMESPACES.choose(random).copied().unwrap_or("shop").parse().expect("a label");
    if random.random_bool(0.3) {
        Body::ServiceGone { service, namespace }
    } else {
        let port = random.random_range(1..9);
        Body::Service(Export { service, namespace, port, accounts: Vec::new(), staleness: Default::default() })
    }
}

/// An account somewhere, now and then of nobody's trust domain, and a service of cluster `to`.
pub(crate) fn pair(random: &mut StdRng, clusters: usize, to: usize) -> (SpiffeId, ServiceId) {
    let from = if random.random_bool(0.05) {
        "stranger.example".parse().expect("a trust domain")
    } else {
        candidate(random.random_range(0..clusters)).trust_domain
    };
    let mut pick = |names: &[&'static str]| names.choose(random).copied().unwrap_or("web");
    let source = format!("spiffe://{from}/ns/{}/sa/{}", pick(&NAMESPACES), pick(&NAMES));
    let service = ServiceId {
        service: pick(&NAMES).parse().expect("a label"),
        namespace: pick(&NAMESPACES).parse().expect("a label"),
        cluster: candidate(to).id,
    };
    (source.parse().expect("a SPIFFE ID"), service)
}
