//! Drives the replica: the one task that owns this cluster's copy of every log.
//!
//! In: local writes, admissions, vectors and records of members. Out: rows, then messages and snapshots, in that order.
//! Never: sends or publishes what is not durable; takes a record whose signature it did not have checked.
//!
//! Commands that wait together become one durable write. If the store refuses it, the replica goes back to what the
//! store holds, every caller of that batch hears of it, and what members send is left with them for a growing pause.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use federation_model::{
    Admission, Alarm, Audience, Authentic, Body, Bundles, ClusterId, Digest, Effect, FederationId, MemberState,
    Message, Record, RecordId, Replica, Vector, fold,
};
use federation_store::{Change, Expect, Kind, StoreError};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior},
};

use crate::{
    Shared, WriteError,
    compose::{compose, own_words},
    endpoint::code,
    intake::{Budget, Checked},
    level::Levels,
    limits::DRIVER_BATCH,
    metrics,
    receipts::Speaker,
    records::{self, Unfit},
    registry::{Outgoing, Session},
    state::{self, State},
};

/// Records in one durable write; what is beyond goes into the next.
const WRITE_RECORDS_MAX: usize = 2_048;
/// A snapshot is put off while records keep coming, but never for more than this many times what making one takes.
const PUBLISH_BACKLOG: u32 = 4;
/// Logs of a vector that cost a member as much of its budget as one record in vain.
const LOGS_PER_RECORD: usize = 16;
/// First pause after a write that the store refused; doubles while it goes on refusing.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause: how late peers' records may be once the store takes writes again.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What others ask of the driver.
pub(crate) enum Command {
    Write {
        audience: Audience,
        body: Box<Body>,
        author: String,
        reply: oneshot::Sender<Result<RecordId, WriteError>>,
    },
    /// Admits a joiner and marks its token used, in one durable write or not at all.
    Admit {
        admission: Box<Admission>,
        token: Box<Change>,
        reply: oneshot::Sender<Result<Authentic<Record>, AdmitError>>,
    },
    /// Leaves the own federation for one that admitted this cluster.
    Rejoin {
        federation: FederationId,
        records: Vec<Authentic<Record>>,
        reply: oneshot::Sender<Result<(), RejoinError>>,
    },
    /// Leaves the federation for one of this cluster alone.
    Refound {
        reply: oneshot::Sender<Result<FederationId, RejoinError>>,
    },
    Receipts {
        session: Arc<Session>,
        receipts: Vec<proto::federation::Receipt>,
    },
    Vector {
        session: Arc<Session>,
        vector: Vector,
        ask: bool,
    },
    /// The digest of a member's vector.
    Digest {
        session: Arc<Session>,
        digest: Digest,
        ask: bool,
    },
    Records {
        session: Arc<Session>,
        checked: Vec<Checked>,
    },
}

/// Why a joiner was not admitted.
#[derive(Debug)]
pub(crate) enum AdmitError {
    NameTaken,
    DomainTaken,
    /// That very cluster was put out for good.
    Evicted,
    /// The token changed meanwhile: judge it again.
    Conflict,
    Failed(String),
}

/// Why the federation was not changed.
#[derive(Debug)]
pub(crate) enum RejoinError {
    HasMembers(usize),
    Records(String),
    Store(String),
}

/// What one batch of commands has brought about and not yet made durable.
#[derive(Default)]
struct Pending {
    persist: Vec<Authentic<Record>>,
    sends: Vec<(ClusterId, Message)>,
    alarms: Vec<Alarm>,
    written: Vec<(oneshot::Sender<Result<RecordId, WriteError>>, RecordId)>,
    publish: bool,
}

pub(crate) struct Driver {
    shared: Arc<Shared>,
    replica: Replica,
    /// Durable, and not in the records last published.
    unpublished: Vec<Authentic<Record>>,
    /// Order of arrival of the next record.
    arrivals: u64,
    connected: BTreeMap<ClusterId, Arc<Session>>,
    levels: Levels,
    speaker: Speaker,
    /// Of members that sent something; forgotten with the process.
    budgets: HashMap<ClusterId, Budget>,
    /// While the store refuses writes.
    pause: Option<Pause>,
    revision: u64,
    dirty: bool,
    published: Instant,
    publish_cost: Duration,
}

/// The store refused a write, and no other went through since.
struct Pause {
    length: Duration,
    /// When members are asked again; `None` once they were.
    until: Option<Instant>,
}

/// What the driver starts from.
pub(crate) struct Start {
    pub(crate) replica: Replica,
    pub(crate) arrivals: u64,
}

impl Driver {
    /// A driver that has published once already.
    pub(crate) fn new(shared: Arc<Shared>, start: Start) -> Self {
        let Start { replica, arrivals } = start;
        let (published, publish_cost) = (Instant::now(), Duration::ZERO);
        let connected = BTreeMap::new();
        let mut driver = Self {
            shared,
            replica,
            unpublished: Vec::new(),
            arrivals,
            connected,
            levels: Levels::default(),
            speaker: Speaker::new(),
            budgets: HashMap::new(),
            pause: None,
            revision: 0,
            dirty: false,
            published,
            publish_cost,
        };
        driver.publish();
        driver
    }

    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut sessions = self.shared.registry.changes();
        let mut compare = tokio::time::interval(self.shared.limits.anti_entropy);
        compare.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                biased;
                () = self.shared.cancel.cancelled() => return,
                changed = sessions.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.follow_sessions().await;
                }
                _ = compare.tick() => {
                    self.compare_all();
                }
                () = resumption(&self.pause) => self.resume(),
                () = self.speaker.due(), if !self.dirty => self.speak(),
                count = commands.recv_many(&mut batch, DRIVER_BATCH) => {
                    if count == 0 {
                        return;
                    }
                    self.handle(batch.drain(..)).await;
                }
            }
            if self.dirty && (commands.is_empty() || self.published.elapsed() > self.publish_cost * PUBLISH_BACKLOG) {
                self.publish();
            }
        }
    }

    async fn handle(&mut self, batch: impl Iterator<Item = Command>) {
        let mut pending = Pending::default();
        for command in batch {
            if pending.persist.len() >= WRITE_RECORDS_MAX {
                let _ = self.flush(std::mem::take(&mut pending)).await;
            }
            match command {
                Command::Write { audience, body, author, reply } => {
                    match self.write(audience, *body, author) {
                        Ok((id, effects)) => {
                            pending.add(effects);
                            pending.written.push((reply, id));
                        }
                        Err(error) => drop(reply.send(Err(error))),
                    };
                }
                Command::Vector { session, vector, ask } => self.compare(&session, vector, ask, &mut pending),
                Command::Digest { session, digest, ask } => self.level(&session, digest, ask, &mut pending),
                Command::Refound { reply } => {
                    let _ = self.flush(std::mem::take(&mut pending)).await;
                    let _ = reply.send(self.refound().await);
                }
                Command::Receipts { session, receipts } => {
                    self.speaker.hear(&self.shared, &self.replica, &self.connected, &session, receipts);
                }
                Command::Records { .. } if self.is_paused() => {}
                Command::Records { session, checked } => self.receive(&session, checked, &mut pending),
                // These stand or fall alone.
                Command::Admit { admission, token, reply } => {
                    let _ = self.flush(std::mem::take(&mut pending)).await;
                    let _ = reply.send(self.admit(*admission, *token).await);
                }
                Command::Rejoin { federation, records, reply } => {
                    let _ = self.flush(std::mem::take(&mut pending)).await;
                    let _ = reply.send(self.rejoin(federation, records).await);
                }
            }
        }
        let _ = self.flush(pending).await;
    }

    /// Signs a record for the next place of its log and takes it.
    fn write(
        &mut self,
        audience: Audience,
        mut body: Body,
        author: String,
    ) -> Result<(RecordId, Vec<Effect>), WriteError> {
        if let Body::Eviction(eviction) = &mut body
            && eviction.cluster != self.shared.own
        {
            eviction.heads = self.replica.heads(eviction.cluster, Audience::Law);
        }
        let record = compose(&self.shared, &self.replica, audience, body, author)?;
        let id = record.id();
        let effects = self.replica.on_local(record).map_err(|error| WriteError::Bounds(error.to_string()))?;
        Ok((id, effects))
    }

    /// A member said how far it is.
    fn compare(&mut self, session: &Session, vector: Vector, ask: bool, pending: &mut Pending) {
        let cost = 1 + vector.0.len() / LOGS_PER_RECORD;
        pending.add(self.replica.on_vector(session.member, vector, ask));
        self.charge(session, cost);
    }

    /// A member said in 32 bytes how far it is.
    fn level(&mut self, session: &Session, digest: Digest, ask: bool, pending: &mut Pending) {
        let peer = session.member;
        if digest == self.levels.digest(&self.replica, &peer) {
            self.levels.agree(&peer);
            self.replica.on_level(peer);
            if ask {
                self.tell_level(session, false);
            }
        } else if ask || !self.replica.is_compared(&peer) || self.levels.differ(&peer) {
            pending.add(self.replica.on_resumed(peer));
        }
        self.charge(session, 1);
    }

    fn tell_level(&mut self, session: &Session, ask: bool) {
        let digest = self.levels.digest(&self.replica, &session.member);
        send(session, Outgoing::Digest { digest, ask });
    }

    /// Asks every member again how far it is.
    fn compare_all(&mut self) {
        for (member, session) in std::mem::take(&mut self.connected) {
            if session.spoken.digests {
                self.tell_level(&session, false);
            } else if let Some(Effect::Send { message, .. }) = self.replica.anti_entropy_with(member) {
                send(&session, Outgoing::Message(message));
            }
            self.connected.insert(member, session);
        }
    }

    /// Takes off a member's budget what brought nothing new.
    fn charge(&mut self, session: &Session, vain: usize) {
        let budget = self.budgets.entry(session.member).or_insert_with(Budget::new);
        if budget.exceeded(vain, self.replica.len()) {
            tracing::warn!(
                cluster = %session.name,
                "member sends vectors or records in vain faster than 1,000 a second; its session ends"
            );
            session.close(code::OVERLOADED, "record_budget");
        }
    }

    /// Hands what a member sent to the replica, admissions before what they vouch for.
    fn receive(&mut self, session: &Session, checked: Vec<Checked>, pending: &mut Pending) {
        let peer = session.member;
        let federation = self.replica.federation();
        let (offered, before) = (checked.len(), pending.persist.len());
        let (mut ready, mut unknown) = (Vec::new(), 0);
        for checked in checked {
            let checked = match checked {
                Checked::Good(record) => Ok(record),
                Checked::Bad(unfit) => Err(unfit),
                Checked::Later(unchecked) => {
                    if self.replica.replication_key(&unchecked.writer()).is_none() && !ready.is_empty() {
                        pending.add(self.replica.on_records(peer, std::mem::take(&mut ready), 0));
                    }
                    unchecked.check(Some(&federation), |writer| self.replica.replication_key(writer))
                }
            };
            let outcome = match checked {
                Ok(record) => {
                    ready.push(record);
                    "checked"
                }
                Err(unfit) => {
                    let outcome = unfit.reason();
                    match unfit {
                        Unfit::UnknownWriter(_) => unknown += 1,
                        Unfit::Forged(detail) => {
                            tracing::warn!(cluster = %session.name, error = detail, "member sent a forged record");
                            session.close(code::PROTOCOL, "forged_record");
                        }
                        Unfit::Unreadable(detail) => {
                            tracing::warn!(cluster = %session.name, error = detail, "member sent a record that cannot be read");
                        }
                        Unfit::OtherFederation => {}
                    }
                    outcome
                }
            };
            ::metrics::counter!(metrics::RECORDS_RECEIVED, "outcome" => outcome).increment(1);
        }
        pending.add(self.replica.on_records(peer, ready, unknown));
        let taken = pending.persist.len().saturating_sub(before);
        self.charge(session, offered.saturating_sub(taken));
    }

    async fn admit(&mut self, admission: Admission, token: Change) -> Result<Authentic<Record>, AdmitError> {
        let candidate = &admission.candidate;
        if let Some(snapshot) = self.shared.snapshot.borrow().as_ref() {
            let other = |member: Option<&federation_model::Member>| member.is_some_and(|held| held.id != candidate.id);
            if snapshot.members.get(&candidate.id).is_some_and(|held| held.state == MemberState::Evicted) {
                return Err(AdmitError::Evicted);
            }
            if other(snapshot.members.by_name(&candidate.name)) {
                return Err(AdmitError::NameTaken);
            }
            if other(snapshot.members.by_trust_domain(&candidate.trust_domain)) {
                return Err(AdmitError::DomainTaken);
            }
        }
        let author = "join".to_owned();
        let record = compose(&self.shared, &self.replica, Audience::Law, Body::Admission(admission), author)
            .map_err(|error| AdmitError::Failed(error.to_string()))?;
        let effects = self.replica.on_local(record.clone()).map_err(|error| AdmitError::Failed(error.to_string()))?;
        let mut pending = Pending::default();
        pending.add(effects);
        match self.flush_with(pending, vec![token]).await {
            Ok(()) => {
                // The joiner's first session may follow its answer at once: its bundle must be in force by then.
                self.publish();
                Ok(record)
            }
            Err(StoreError::Conflict { .. }) => Err(AdmitError::Conflict),
            Err(error) => Err(AdmitError::Failed(error.to_string())),
        }
    }

    /// Takes up another federation's records in place of the own one's, and says there again what this cluster said of
    /// itself: terms, bundle, services and rules. All in one durable write.
    async fn rejoin(&mut self, federation: FederationId, given: Vec<Authentic<Record>>) -> Result<(), RejoinError> {
        let others = self.shared.snapshot.borrow().as_ref().map_or(0, |held| held.members.len().saturating_sub(1));
        if others > 0 {
            return Err(RejoinError::HasMembers(others));
        }
        let mut replica = Replica::new(self.shared.own, federation);
        let refused = replica.load(given);
        if let Some(error) = refused.into_iter().next() {
            return Err(RejoinError::Records(error.to_string()));
        }
        self.move_to(replica).await
    }

    /// Founds a federation of this cluster alone and moves there.
    async fn refound(&mut self) -> Result<FederationId, RejoinError> {
        let replica = crate::open::founded(&self.shared).map_err(|error| RejoinError::Records(error.to_string()))?;
        let federation = replica.federation();
        self.move_to(replica).await?;
        tracing::info!(federation = %federation.short(), "left the federation; this cluster is alone again");
        Ok(federation)
    }

    /// Gives up the federation that this cluster is in for that of `replica`, and says there what it said here.
    async fn move_to(&mut self, mut replica: Replica) -> Result<(), RejoinError> {
        let (own, federation) = (self.shared.own, replica.federation());
        // It may have been there before its store was restored.
        replica.set_floor(self.shared.epoch_floor);
        for (audience, body, author) in own_words(&self.replica) {
            let record = compose(&self.shared, &replica, audience, body, author);
            let record = record.map_err(|error| RejoinError::Records(error.to_string()))?;
            replica.on_local(record).map_err(|error| RejoinError::Records(error.to_string()))?;
        }
        if fold(own, federation, 0, replica.records()).is_none_or(|held| held.members.get(&own).is_none()) {
            return Err(RejoinError::Records("they do not make this cluster a member".into()));
        }
        let failed = |error: StoreError| RejoinError::Store(error.to_string());
        let mut changes: Vec<Change> =
            replica.records().zip(0..).map(|(record, arrival)| records::put(record, arrival)).collect();
        let kept: BTreeSet<Vec<u8>> = changes.iter().map(|change| change.key().name.clone()).collect();
        let store = &self.shared.store;
        for row in store.list(Kind::Record, &[]).await.map_err(failed)? {
            if !kept.contains(&row.key.name) {
                changes.push(Change::Delete { key: row.key, expected: Expect::Any });
            }
        }
        // Tokens of the federation that is left would admit to nothing.
        for row in store.list(Kind::JoinToken, &[]).await.map_err(failed)? {
            changes.push(Change::Delete { key: row.key, expected: Expect::Any });
        }
        let state = State { own, federation, blocked: Default::default() };
        changes.push(Change::Put { key: state::key(), value: state.encode(), expected: Expect::Any });
        store.apply(changes).await.map_err(failed)?;
        self.arrivals = replica.len() as u64;
        self.replica = replica;
        self.levels = Levels::default();
        self.unpublished.clear();
        self.speaker.start_over(&self.shared);
        self.connected.clear();
        self.publish();
        self.follow_sessions().await;
        Ok(())
    }

    /// Tells the replica who came and who went: of each member, the session in use.
    async fn follow_sessions(&mut self) {
        let live = self.shared.registry.all_preferred();
        if self.is_paused() {
            for (member, session) in &live {
                if self.connected.get(member).is_none_or(|held| held.number != session.number) {
                    self.speaker.connected(session);
                }
            }
            self.connected = live;
            self.speaker.pass_on(&self.shared, &self.connected);
            return;
        }
        let mut pending = Pending::default();
        for (member, session) in &self.connected {
            if live.get(member).is_none_or(|held| held.number != session.number) {
                self.replica.on_disconnected(*member);
            }
        }
        for (member, session) in &live {
            if self.connected.get(member).is_none_or(|held| held.number != session.number) {
                if session.spoken.digests {
                    self.replica.on_met(*member);
                    self.tell_level(session, false);
                } else {
                    pending.add(self.replica.on_connected(*member));
                }
                self.speaker.connected(session);
            }
        }
        self.connected = live;
        self.speaker.pass_on(&self.shared, &self.connected);
        let _ = self.flush(pending).await;
    }

    async fn flush(&mut self, pending: Pending) -> Result<(), StoreError> {
        self.flush_with(pending, Vec::new()).await
    }

    /// Makes durable, then sends, then publishes, then answers; `also` stands in the same durable write.
    async fn flush_with(&mut self, pending: Pending, also: Vec<Change>) -> Result<(), StoreError> {
        let Pending { persist, sends, alarms, written, publish } = pending;
        let mut changes = also;
        for record in &persist {
            changes.push(records::put(record, self.arrivals));
            self.arrivals += 1;
        }
        if !changes.is_empty() {
            let started = Instant::now();
            let applied = self.shared.store.apply(changes).await;
            ::metrics::histogram!(metrics::WRITE_SECONDS).record(started.elapsed().as_secs_f64());
            if let Err(error) = applied {
                if !matches!(error, StoreError::Conflict { .. }) {
                    tracing::error!(%error, "records could not be made durable");
                }
                for (reply, _) in written {
                    let _ = reply.send(Err(WriteError::Store(error.to_string())));
                }
                self.reload(
                    matches!(error, StoreError::Uncertain { .. }),
                    !matches!(error, StoreError::Conflict { .. }),
                );
                return Err(error);
            }
            if self.pause.take().is_some_and(|pause| pause.until.is_some()) {
                self.take_up();
            }
        }
        self.unpublished.extend(persist);
        for Alarm::Equivocation { writer, audience, epoch, seq } in alarms {
            tracing::error!(
                writer = %writer.short(), ?audience, epoch, seq,
                "two records at one place in a log: the epoch is frozen there"
            );
        }
        self.send(sends);
        self.dirty |= publish;
        if self.dirty && !written.is_empty() {
            self.publish();
        }
        for (reply, id) in written {
            let _ = reply.send(Ok(id));
        }
        Ok(())
    }

    fn send(&self, sends: Vec<(ClusterId, Message)>) {
        for (peer, message) in sends {
            if let Some(session) = self.connected.get(&peer) {
                send(session, Outgoing::Message(message));
            }
        }
    }

    /// Back to what the store holds for sure. If the write that failed may have reached the disk all the same, the
    /// places that it took must not be taken twice. With `pause`, members are not asked at once for what was lost: what
    /// they bring would be refused again.
    fn reload(&mut self, uncertain: bool, pause: bool) {
        let held = self.shared.records.borrow().clone();
        self.levels = Levels::default();
        self.replica.reload(held.iter().chain(&self.unpublished).cloned(), uncertain);
        if !pause {
            return self.take_up();
        }
        let length = self.pause.as_ref().map_or(PAUSE_MIN, |pause| (pause.length * 2).min(PAUSE_MAX));
        self.pause = Some(Pause { length, until: Some(Instant::now() + length) });
    }

    /// Whether members are not listened to: the store refused a write a moment ago.
    fn is_paused(&self) -> bool {
        self.pause.as_ref().is_some_and(|pause| pause.until.is_some())
    }

    /// The pause is over: what members bring shows whether the store takes it.
    fn resume(&mut self) {
        if let Some(pause) = &mut self.pause {
            pause.until = None;
        }
        self.take_up();
    }

    /// Asks everyone for what was lost.
    fn take_up(&mut self) {
        let mut pending = Pending::default();
        for (member, session) in self.connected.clone() {
            if session.spoken.digests {
                self.replica.on_met(member);
                self.tell_level(&session, true);
            } else {
                pending.add(self.replica.on_resumed(member));
            }
        }
        self.send(pending.sends);
    }

    /// Folds and tells everyone: first the verifier, so that nobody acts on a member that it does not know.
    fn publish(&mut self) {
        let started = Instant::now();
        self.revision += 1;
        let snapshot = self.replica.snapshot(self.revision);
        match &snapshot {
            Some(snapshot) => drop(self.shared.verifier.publish(&snapshot.bundles)),
            None => drop(self.shared.verifier.publish(&Bundles::default())),
        }
        self.shared.records.send_replace(self.replica.list().clone());
        self.shared.snapshot.send_replace(snapshot.map(Arc::new));
        self.unpublished.clear();
        self.dirty = false;
        self.published = Instant::now();
        self.publish_cost = started.elapsed();
        self.speaker.published();
    }

    /// Tells everybody what is enforced here.
    fn speak(&mut self) {
        let members = self.shared.snapshot.borrow().as_ref().map_or(0, |held| held.members.len());
        self.speaker.speak(&self.shared, &self.replica, &self.connected, members);
    }
}

/// Puts something on a replication stream.
fn send(session: &Session, what: Outgoing) {
    if let Err(mpsc::error::TrySendError::Full(_)) = session.replication.try_send(what) {
        // It starts over from the vectors, which costs less than what waits.
        session.close(code::OVERLOADED, "replication_lagging");
    }
}

/// Until a pause ends; for ever without one.
async fn resumption(pause: &Option<Pause>) {
    match pause.as_ref().and_then(|pause| pause.until) {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

impl Pending {
    fn add(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Persist(records) => self.persist.extend(records),
                Effect::Send { peer, message } => self.sends.push((peer, message)),
                Effect::Publish => self.publish = true,
                Effect::Alarm(alarm) => self.alarms.push(alarm),
            }
        }
    }
}
