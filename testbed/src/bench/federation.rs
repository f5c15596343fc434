//! What the model costs: one change and one decision by the number of records, a cold fold, and memory per record.
//!
//! In: nothing. Out: figures by name. Never: signs or stores anything: records are made with made-up digests.

use std::{collections::BTreeMap, hint::black_box, sync::Arc};

use anyhow::{Context, Result, ensure};
use federation_model::{
    Action, Admission, Audience, Authentic, Body, Candidate, ClusterId, DestinationPattern, Digest, Export,
    FederationId, Intention, IntentionKey, Label, Layer, MemberTerms, Record, RecordId, RecordKey, Replica,
    ReplicationKey, RuleState, SealingKey, ServiceId, SourcePattern, SpiffeId, Timestamp, TrustDomain, fold,
};
use serde_json::{Value, json};
use tokio::time::Instant;

const SIZES: [u32; 3] = [1_000, 10_000, 100_000];
/// Changes that are measured at each size.
const CHANGES: u32 = 2_000;
/// Decisions per round; the best of a few rounds counts, since what else the machine does is not measured.
const PAIRS: u32 = 20_000;
const ROUNDS: usize = 7;
/// One record in so many is a service.
const SERVICE_EVERY: u32 = 20;
/// Bytes of an envelope: about what a signed intention has on the wire.
const ENVELOPE_BYTES: usize = 300;

pub(crate) fn measure() -> Result<Value> {
    let size = SIZES.into_iter().max().unwrap_or_default();
    // First, while nothing that was freed hides what is taken.
    let mut figures = json!({ "bytes_per_record": bytes_per_record(size)? });
    for kind in [Change::New, Change::Again, Change::Endpoints] {
        let mut by_size = json!({});
        for size in SIZES {
            by_size[size.to_string()] = one_change(size, kind)?;
        }
        figures[kind.name()] = by_size;
    }
    let mut decisions = json!({});
    for size in SIZES {
        decisions[size.to_string()] = decision_ns(size)?.into();
    }
    figures["decision_ns"] = decisions;
    figures["cold_fold_ms"] = cold_fold_ms(size)?.into();
    Ok(figures)
}

/// What is changed.
#[derive(Clone, Copy)]
enum Change {
    /// An intention that was not there.
    New,
    /// One and the same intention, over and over.
    Again,
    /// Where a member is reached.
    Endpoints,
}

impl Change {
    fn name(self) -> &'static str {
        match self {
            Self::New => "one_change_us",
            Self::Again => "one_change_of_a_hot_key_us",
            Self::Endpoints => "one_change_of_endpoints_us",
        }
    }
}

/// Median and 99th percentile, in microseconds, of taking a record and making the snapshot that has it, while the one
/// before is still held by readers.
fn one_change(size: u32, change: Change) -> Result<Value> {
    let mut world = World::of(size)?;
    let mut held = world.replica.snapshot(0).context("a member")?;
    let mut took = Vec::new();
    for number in 0..CHANGES {
        let body = match change {
            Change::New => intention(size + number),
            Change::Again => intention(0),
            Change::Endpoints => endpoints(number)?,
        };
        let record = world.next(body);
        let started = Instant::now();
        world.replica.on_local(record)?;
        let snapshot = world.replica.snapshot(u64::from(number) + 1).context("a member")?;
        let list = black_box(world.replica.list().clone());
        took.push(started.elapsed().as_secs_f64() * 1e6);
        ensure!(list.len() == world.replica.len(), "the list is not that of the replica");
        held = black_box(snapshot);
    }
    drop(held);
    took.sort_by(f64::total_cmp);
    let at = |share: usize| took.get(took.len() * share / 100).copied().unwrap_or_default();
    Ok(json!({ "p50": round(at(50)), "p99": round(at(99)) }))
}

fn decision_ns(size: u32) -> Result<f64> {
    let mut world = World::of(size)?;
    let snapshot = world.replica.snapshot(1).context("a member")?;
    let pairs: Vec<_> = (0..PAIRS)
        .map(|number| pair(&world.writer, number.wrapping_mul(2_654_435_761) % size))
        .collect::<Result<_>>()?;
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let allowed = pairs.iter().filter(|(source, service)| snapshot.authorizer.allows(source, service)).count();
        let each = started.elapsed().as_secs_f64() * 1e9 / pairs.len() as f64;
        ensure!(allowed > pairs.len() / 2, "only {allowed} of {} pairs are allowed", pairs.len());
        best = best.min(each);
    }
    Ok(round(best))
}

/// The fold of everything at once, the best of a few.
fn cold_fold_ms(size: u32) -> Result<f64> {
    let world = World::of(size)?;
    let mut best = f64::MAX;
    for _ in 0..3 {
        let started = Instant::now();
        let snapshot =
            fold(world.writer.own, world.writer.federation, 1, world.replica.records()).context("a member")?;
        best = best.min(started.elapsed().as_secs_f64() * 1e3);
        ensure!(snapshot.authorizer.len() + snapshot.catalog.len() >= size as usize, "not everything was folded");
    }
    Ok(round(best))
}

/// Resident memory per record: of the records themselves with their envelopes, and of all that is built around them, in
/// the replica and its snapshot.
fn bytes_per_record(size: u32) -> Result<Value> {
    let start = resident()?;
    let mut writer = Writer::new()?;
    let records = writer.history(size)?;
    let read = resident()?;
    let mut replica = Replica::new(writer.own, writer.federation);
    records.iter().try_for_each(|record| replica.on_local(record.clone()).map(drop))?;
    let snapshot = replica.snapshot(1).context("a member")?;
    let built = resident()?;
    ensure!(snapshot.authorizer.len() + snapshot.catalog.len() >= size as usize, "not everything was folded");
    let each = |from: usize, to: usize| (to.saturating_sub(from) as f64 / f64::from(size)).round();
    Ok(json!({ "envelope": ENVELOPE_BYTES, "record": each(start, read), "around_it": each(read, built) }))
}

/// Resident bytes of this process.
fn resident() -> Result<usize> {
    let text = std::fs::read_to_string("/proc/self/statm").context("/proc/self/statm")?;
    let pages: usize = text.split_whitespace().nth(1).context("no resident pages")?.parse()?;
    Ok(pages * 4096)
}

fn round(figure: f64) -> f64 {
    (figure * 100.0).round() / 100.0
}

/// The founder of a federation, who writes everything.
struct Writer {
    own: ClusterId,
    domain: TrustDomain,
    federation: FederationId,
    /// Of each log, the last place and digest.
    heads: BTreeMap<Audience, (u64, Digest)>,
    written: u64,
}

impl Writer {
    fn new() -> Result<Self> {
        let (own, domain) = (ClusterId::from_digest(digest(0)), "east.mesh.internal".parse()?);
        let federation = FederationId::from_digest(Digest::ZERO);
        Ok(Self { own, domain, federation, heads: BTreeMap::new(), written: 0 })
    }

    /// A founding, an admission, and as many records that say different things.
    fn history(&mut self, size: u32) -> Result<Vec<Authentic<Record>>> {
        let founding = self.next(Audience::Law, Body::Founding(candidate(0, "east")?), Vec::new());
        self.federation = FederationId::from_digest(founding.digest());
        let admission = Admission { candidate: candidate(u64::MAX, "west")?, lawmaker: true };
        let mut records = vec![founding, self.next(Audience::Law, Body::Admission(admission), Vec::new())];
        for number in 0..size {
            records.push(if number % SERVICE_EVERY == 0 {
                self.next(Audience::All, service(number)?, Vec::new())
            } else {
                self.next(Audience::Law, intention(number), Vec::new())
            });
        }
        Ok(records)
    }

    fn next(&mut self, audience: Audience, body: Body, replaces: Vec<RecordId>) -> Authentic<Record> {
        self.written += 1;
        let (last, previous) = self.heads.get(&audience).copied().unwrap_or((0, Digest::ZERO));
        let (seq, digest) = (last + 1, digest(self.written));
        self.heads.insert(audience, (seq, digest));
        let record = Record {
            federation: self.federation,
            writer: self.own,
            audience,
            epoch: 1,
            seq,
            previous,
            replaces,
            author: "spiffe://east.mesh.internal/operator".to_owned(),
            written_at: Timestamp::ZERO,
            body,
        };
        Authentic::assertion(record, Arc::from(vec![0; ENVELOPE_BYTES]), digest)
    }
}

/// The replica of that founder.
struct World {
    writer: Writer,
    replica: Replica,
}

impl World {
    fn of(size: u32) -> Result<Self> {
        let mut writer = Writer::new()?;
        let records = writer.history(size)?;
        let mut replica = Replica::new(writer.own, writer.federation);
        records.into_iter().try_for_each(|record| replica.on_local(record).map(drop))?;
        Ok(Self { writer, replica })
    }

    /// The next record of the law, in place of what its key held.
    fn next(&mut self, body: Body) -> Authentic<Record> {
        let replaces = match &body {
            Body::Intention(intention) => self.replica.replaceable(&RecordKey::Intention(intention.key.clone())),
            Body::Terms(_) => self.replica.replaceable(&RecordKey::Terms(self.writer.own)),
            _ => Vec::new(),
        };
        self.writer.next(Audience::Law, body, replaces)
    }
}

fn candidate(number: u64, name: &str) -> Result<Candidate> {
    Ok(Candidate {
        id: ClusterId::from_digest(digest(number)),
        name: name.parse()?,
        trust_domain: format!("{name}.mesh.internal").parse()?,
        root: vec![0; 400],
        replication_key: ReplicationKey([0; 32]),
        sealing_key: SealingKey([0; 32]),
    })
}

fn digest(number: u64) -> Digest {
    let mut bytes = [1; 32];
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    Digest(bytes)
}

/// Names of the account and the service of a number, and of their namespaces.
fn names(number: u32) -> [String; 3] {
    [format!("account-{}", number % 1000), format!("service-{}", number % 997), format!("team-{}", number / 1000)]
}

fn intention(number: u32) -> Body {
    let [account, service, namespace] = names(number);
    fn label<T: std::str::FromStr>(text: &str) -> Label<T> {
        text.parse().map_or(Label::Any, Label::Is)
    }
    let key = IntentionKey {
        source: SourcePattern::Account {
            account: label(&account),
            namespace: label(&namespace),
            cluster: Label::Is(ClusterId::from_digest(digest(0))),
        },
        destination: DestinationPattern {
            service: label(&service),
            namespace: label(&namespace),
            cluster: Label::Is(ClusterId::from_digest(digest(0))),
        },
        layer: Layer::Rule,
    };
    Body::Intention(Intention { key, state: RuleState::Is(Action::Allow) })
}

fn service(number: u32) -> Result<Body> {
    let [_, service, namespace] = names(number);
    Ok(Body::Service(Export {
        service: service.parse()?,
        namespace: namespace.parse()?,
        port: 8080,
        accounts: Vec::new(),
        staleness: Default::default(),
    }))
}

fn endpoints(number: u32) -> Result<Body> {
    let endpoint = format!("edge-{number}.example:7000").parse().map_err(anyhow::Error::msg)?;
    Ok(Body::Terms(MemberTerms { endpoints: vec![endpoint], ..Default::default() }))
}

fn pair(writer: &Writer, number: u32) -> Result<(SpiffeId, ServiceId)> {
    let [account, service, namespace] = names(number);
    let source = format!("spiffe://{}/ns/{namespace}/sa/{account}", writer.domain).parse()?;
    Ok((source, ServiceId { service: service.parse()?, namespace: namespace.parse()?, cluster: writer.own }))
}
