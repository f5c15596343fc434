//! What the tests of this room share: clusters, records with made-up digests, a small seeded generator.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    Accept, Action, Admission, Approval, Audience, Authentic, Body, Candidate, ClusterId, DestinationPattern, Digest,
    Export, FederationId, Intention, IntentionKey, Label, Layer, Member, MemberState, MemberTerms, Members, Record,
    RecordId, Relay, ReplicationKey, RuleState, SealingKey, ServiceId, SourcePattern, SpiffeId, Staleness, Timestamp,
    TrustDomain,
};

/// Names of the test clusters by number.
pub(crate) const NAMES: [&str; 6] = ["east", "west", "onprem", "north", "south", "rogue"];

pub(crate) fn cluster(number: u8) -> ClusterId {
    ClusterId::from_digest(Digest([number + 1; 32]))
}

pub(crate) fn name(number: u8) -> &'static str {
    NAMES.get(number as usize).expect("a named cluster")
}

pub(crate) fn domain(number: u8) -> TrustDomain {
    format!("{}.mesh.internal", name(number)).parse().expect("trust domain")
}

pub(crate) fn candidate(number: u8) -> Candidate {
    Candidate {
        id: cluster(number),
        name: name(number).parse().expect("name"),
        trust_domain: domain(number),
        root: vec![number],
        replication_key: ReplicationKey([number; 32]),
        sealing_key: SealingKey([number; 32]),
    }
}

pub(crate) fn member(number: u8, lawmaker: bool, accept: Accept) -> Member {
    let Candidate { id, name, trust_domain, root, replication_key, sealing_key } = candidate(number);
    Member {
        id,
        name,
        trust_domain,
        root: root.into(),
        replication_key,
        sealing_key,
        sponsor: cluster(0),
        admitted_at: Timestamp::ZERO,
        lawmaker,
        state: MemberState::Active,
        evicted_by: Vec::new(),
        accept,
        approval: Approval::Auto,
        relay: Relay::Nobody,
        endpoints: Vec::new(),
    }
}

/// The first three clusters; east makes law.
pub(crate) fn members() -> Members {
    let mut members = Members::default();
    for number in 0..3 {
        members.insert(member(number, number == 0, Accept::Federation));
    }
    members
}

/// `account.namespace` of a cluster as a SPIFFE ID.
pub(crate) fn workload(text: &str, number: u8) -> SpiffeId {
    let (account, namespace) = text.split_once('.').expect("account.namespace");
    format!("spiffe://{}/ns/{namespace}/sa/{account}", domain(number)).parse().expect("SPIFFE ID")
}

/// `service.namespace` of a cluster.
pub(crate) fn service(text: &str, number: u8) -> ServiceId {
    let (service, namespace) = text.split_once('.').expect("service.namespace");
    ServiceId {
        service: service.parse().expect("service"),
        namespace: namespace.parse().expect("namespace"),
        cluster: cluster(number),
    }
}

/// An intention as `web.shop.east -> payments.billing.west`, layer and state beside it.
pub(crate) fn key(text: &str, layer: Layer, members: &Members) -> IntentionKey {
    let (source, destination) = text.split_once(" -> ").expect("source -> destination");
    IntentionKey {
        source: SourcePattern::parse(source, Action::Deny, cluster(0), members).expect("source"),
        destination: DestinationPattern::parse(destination, members).expect("destination"),
        layer,
    }
}

/// A digest that is good enough to tell test records apart.
pub(crate) fn digest(text: &str) -> Digest {
    let mut bytes = [0; 32];
    for (lane, out) in bytes.chunks_mut(8).enumerate() {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ (lane as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for byte in text.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3).rotate_left(5);
        }
        out.copy_from_slice(&hash.to_le_bytes());
    }
    Digest(bytes)
}

pub(crate) fn authentic(record: Record) -> Authentic<Record> {
    let text = format!("{record:?}");
    let digest = digest(&text);
    Authentic::assertion(record, Arc::from(text.as_bytes()), digest)
}

/// Writes records of one cluster, one log after the other, as an honest writer does.
#[derive(Clone)]
pub(crate) struct Writer {
    pub(crate) own: ClusterId,
    pub(crate) federation: FederationId,
    heads: BTreeMap<Audience, (u64, u64, Digest)>,
}

impl Writer {
    pub(crate) fn new(number: u8, federation: FederationId) -> Self {
        Self { own: cluster(number), federation, heads: Default::default() }
    }

    /// The founder and its founding record.
    pub(crate) fn found() -> (Self, Authentic<Record>) {
        let mut founder = Self::new(0, FederationId::from_digest(Digest::ZERO));
        let record = founder.write(Audience::Law, Body::Founding(candidate(0)), &[]);
        founder.federation = FederationId::from_digest(record.digest());
        (founder, record)
    }

    pub(crate) fn write(&mut self, audience: Audience, body: Body, replaces: &[RecordId]) -> Authentic<Record> {
        let (epoch, seq, previous) = self.heads.get(&audience).copied().unwrap_or((1, 0, Digest::ZERO));
        let record = authentic(Record {
            federation: self.federation,
            writer: self.own,
            audience,
            epoch,
            seq: seq + 1,
            previous,
            replaces: replaces.to_vec(),
            author: "test".to_owned(),
            written_at: Timestamp::ZERO,
            body,
        });
        self.heads.insert(audience, (epoch, seq + 1, record.digest()));
        record
    }

    pub(crate) fn law(&mut self, body: Body) -> Authentic<Record> {
        self.write(Audience::Law, body, &[])
    }

    pub(crate) fn admit(&mut self, number: u8, lawmaker: bool) -> Authentic<Record> {
        self.law(Body::Admission(Admission { candidate: candidate(number), lawmaker }))
    }

    pub(crate) fn terms(&mut self, accept: Accept) -> Authentic<Record> {
        self.law(Body::Terms(MemberTerms { accept, ..MemberTerms::default() }))
    }

    pub(crate) fn rule(&mut self, key: &IntentionKey, state: RuleState, replaces: &[RecordId]) -> Authentic<Record> {
        self.write(Audience::Law, Body::Intention(Intention { key: key.clone(), state }), replaces)
    }

    /// Starts the next epoch of a log.
    pub(crate) fn next_epoch(&mut self, audience: Audience) {
        let epoch = self.heads.get(&audience).map_or(1, |(epoch, ..)| *epoch);
        self.heads.insert(audience, (epoch + 1, 0, Digest::ZERO));
    }
}

pub(crate) const ALLOW: RuleState = RuleState::Is(Action::Allow);
pub(crate) const DENY: RuleState = RuleState::Is(Action::Deny);

pub(crate) fn export(text: &str, port: u16) -> Body {
    let (service, namespace) = text.split_once('.').expect("service.namespace");
    Body::Service(Export {
        service: service.parse().expect("service"),
        namespace: namespace.parse().expect("namespace"),
        port,
        accounts: Vec::new(),
        staleness: Staleness::default(),
    })
}

/// splitmix64: small, seeded, the same everywhere.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0 to `bound` - 1.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound as u64) as usize
    }

    pub(crate) fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        choices.get(self.below(choices.len())).expect("not empty")
    }
}

/// Any label of these names, or the wildcard.
pub(crate) fn label<T: std::str::FromStr>(dice: &mut Dice, names: &[&str]) -> Label<T> {
    if dice.one_in(3) { Label::Any } else { Label::Is(dice.pick(names).parse().ok().expect("name")) }
}

/// Splits seeds over the cores; each returns what it counted.
pub(crate) fn on_all_cores(
    worlds: u64,
    run: impl Fn(u64) -> BTreeMap<&'static str, u64> + Sync,
) -> BTreeMap<&'static str, u64> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from) as u64;
    let mut total: BTreeMap<&'static str, u64> = BTreeMap::new();
    std::thread::scope(|scope| {
        let run = &run;
        let handles: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
                    for seed in (thread..worlds).step_by(threads as usize) {
                        run(seed).into_iter().for_each(|(what, count)| *counts.entry(what).or_default() += count);
                    }
                    counts
                })
            })
            .collect();
        for handle in handles {
            let counts = handle.join().expect("no case failed");
            counts.into_iter().for_each(|(what, count)| *total.entry(what).or_default() += count);
        }
    });
    total
}
