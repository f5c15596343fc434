//! The registry of live connections: the one place through which expiry, denial, eviction and operators act on them.
//!
//! In: connections as they are let through. Out: lists, and the word to end. Never: moves bytes, or decides who may
//! what. Bounded: the connection past the bound is refused.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use federation_model::{
    ClusterId, ConnectionId, Denial, DenialReason, Digest, InstanceId, RecordId, Service, ServiceRef, SpiffeId,
    Staleness, Timestamp, VerifiedPeer,
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{authorize::Refusal, frame::Exporter, metrics};

/// Which way a connection goes through this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From the application beside this process into the mesh.
    Outbound,
    /// From the mesh to the application beside this process.
    Inbound,
    /// Sealed bytes that pass on.
    Passage,
}

impl Direction {
    /// Short fixed word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
            Self::Passage => "passage",
        }
    }
}

/// Why a live connection is ended from this side.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cut {
    /// The law in force now denies it.
    Denied(Denial),
    /// The credential that it stands on ended, and nobody renewed it.
    Expired,
    /// An edge on the path, or the far end, refused it and said why.
    Told { reason: DenialReason, detail: String },
    /// An operator or another part of this program asked for it, in words.
    Asked(String),
    /// The program ends.
    Shutdown,
}

impl Cut {
    /// Short fixed word for metrics and audit.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Denied(denial) => denial.reason.as_str(),
            Self::Expired => "expired",
            Self::Told { reason, .. } => reason.as_str(),
            Self::Asked(_) => "operator",
            Self::Shutdown => "shutdown",
        }
    }

    /// The reason in the words of a denial, for those who are told.
    pub(crate) fn denial_reason(&self) -> DenialReason {
        match self {
            Self::Denied(denial) => denial.reason,
            Self::Expired => DenialReason::Expired,
            Self::Told { reason, .. } => *reason,
            Self::Asked(_) | Self::Shutdown => DenialReason::Unreachable,
        }
    }

    /// As the refusal of a connection that was still being set up.
    pub(crate) fn refusal(&self, source: &SpiffeId, service: &ServiceRef) -> Refusal {
        match self {
            Self::Denied(denial) => denial.clone().into(),
            _ => Refusal::new(self.denial_reason(), Some(source), service).because(self.reason(), self.detail()),
        }
    }

    /// A sentence for a person.
    pub fn detail(&self) -> String {
        match self {
            Self::Denied(denial) => denial.to_string(),
            Self::Expired => "the credential it stands on has ended and was not renewed".to_owned(),
            Self::Told { detail, .. } | Self::Asked(detail) => detail.clone(),
            Self::Shutdown => "this proxy is shutting down".to_owned(),
        }
    }
}

/// One connection as lists show it.
#[derive(Clone, Debug)]
pub struct ConnectionSummary {
    pub id: ConnectionId,
    pub direction: Direction,
    pub source: SpiffeId,
    pub service: ServiceRef,
    /// The identity that serves it, where this process saw it: outbound only.
    pub server: Option<SpiffeId>,
    /// The member whose session brought it.
    pub from: Option<ClusterId>,
    pub since: Timestamp,
    /// When it is cut unless somebody renews it.
    pub deadline: Timestamp,
    /// Snapshot revision under which it was last judged.
    pub policy: u64,
    pub rule: Option<RecordId>,
    /// Still being set up.
    pub pending: bool,
    pub bytes_to_server: u64,
    pub bytes_to_client: u64,
}

/// What a connection is registered with.
pub(crate) struct Registration {
    pub(crate) id: ConnectionId,
    pub(crate) direction: Direction,
    pub(crate) service: Service,
    pub(crate) from: Option<ClusterId>,
    pub(crate) peer: VerifiedPeer,
    pub(crate) session: Option<VerifiedPeer>,
    pub(crate) rule: RecordId,
    pub(crate) policy: u64,
    pub(crate) lease: Option<Staleness>,
    pub(crate) deadline: Timestamp,
    pub(crate) now: Timestamp,
    /// What its header said; `None` for an outbound connection until its handshake.
    pub(crate) heading: Option<Heading>,
}

/// What a connection's last header said: an extension must say the same, later.
#[derive(Clone, Debug)]
pub(crate) struct Heading {
    pub(crate) destination: String,
    /// Digest of the ClientHello that it was signed for.
    pub(crate) hello: Digest,
    pub(crate) at: Timestamp,
}

/// What may change while a connection lives.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// The source, with the newest proof of it.
    pub(crate) peer: VerifiedPeer,
    pub(crate) deadline: Timestamp,
    pub(crate) policy: u64,
    pub(crate) rule: RecordId,
    /// The lease with whose end it is cut, if its service has such a one.
    pub(crate) lease: Option<Staleness>,
    pub(crate) pending: bool,
    /// Outbound: who serves it, by the newest proof, and which process.
    pub(crate) server: Option<VerifiedPeer>,
    pub(crate) instance: Option<InstanceId>,
    pub(crate) exporter: Option<Exporter>,
    pub(crate) heading: Option<Heading>,
    /// Outbound: when to renew next; `MAX` for the others and while pending.
    pub(crate) renew_at: Timestamp,
}

/// A connection in the registry.
pub(crate) struct Connection {
    pub(crate) id: ConnectionId,
    pub(crate) direction: Direction,
    pub(crate) service: Service,
    pub(crate) from: Option<ClusterId>,
    pub(crate) session: Option<VerifiedPeer>,
    pub(crate) since: Timestamp,
    pub(crate) opened: Instant,
    pub(crate) to_server: AtomicU64,
    pub(crate) to_client: AtomicU64,
    /// What went through last went to the client.
    pub(crate) answered: AtomicBool,
    /// Nothing that came waits to be delivered.
    pub(crate) idle: AtomicBool,
    /// Somebody asked for its end at a quiet moment.
    pub(crate) leaving: AtomicBool,
    pub(crate) asked: Notify,
    state: Mutex<State>,
    ended: CancellationToken,
    why: OnceLock<Cut>,
}

impl Connection {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // Plain assignments alone happen under this lock, so what a panic would leave is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it; the first reason counts. Returns whether this call did it.
    pub(crate) fn cut(&self, why: Cut) -> bool {
        let first = self.why.set(why).is_ok();
        self.ended.cancel();
        first
    }

    /// Resolves with the reason once it was cut.
    pub(crate) async fn ended(&self) -> Cut {
        self.ended.cancelled().await;
        self.why.get().cloned().unwrap_or(Cut::Shutdown)
    }

    pub(crate) fn was_cut(&self) -> bool {
        self.ended.is_cancelled()
    }

    pub(crate) fn summary(&self) -> ConnectionSummary {
        let state = self.state();
        ConnectionSummary {
            id: self.id,
            direction: self.direction,
            source: state.peer.id().clone(),
            service: self.service.name.clone(),
            server: state.server.as_ref().map(|server| server.id().clone()),
            from: self.from,
            since: self.since,
            deadline: state.deadline,
            policy: state.policy,
            rule: Some(state.rule),
            pending: state.pending,
            bytes_to_server: self.to_server.load(Ordering::Relaxed),
            bytes_to_client: self.to_client.load(Ordering::Relaxed),
        }
    }
}

type Key = (ConnectionId, Direction);

#[derive(Default)]
struct Table {
    held: HashMap<Key, Arc<Connection>>,
    /// Inbound connections by what TLS exports on both ends.
    exporters: HashMap<Exporter, Key>,
    counts: [usize; 3],
}

/// Every connection of this process that is live or being set up.
pub struct Connections {
    table: Mutex<Table>,
    most: usize,
    /// Wakes the enforcer when something is due earlier than it sleeps.
    pub(crate) earlier: Notify,
    sleeps_until: AtomicU64,
}

/// Why a connection cannot be registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotRegistered {
    Full,
    SameId,
}

impl Connections {
    pub(crate) fn new(most: usize) -> Self {
        Self { table: Mutex::default(), most, earlier: Notify::new(), sleeps_until: AtomicU64::new(u64::MAX) }
    }

    /// All of them, in no order.
    pub fn list(&self) -> Vec<ConnectionSummary> {
        self.all().iter().map(|connection| connection.summary()).collect()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.table().held.len()
    }

    /// Cuts those that `chosen` picks, and returns how many.
    pub fn cut_where(&self, why: &Cut, chosen: impl Fn(&ConnectionSummary) -> bool) -> usize {
        self.all().iter().filter(|held| chosen(&held.summary()) && held.cut(why.clone())).count()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Connection>> {
        self.table().held.values().cloned().collect()
    }

    pub(crate) fn get(&self, id: ConnectionId, direction: Direction) -> Option<Arc<Connection>> {
        self.table().held.get(&(id, direction)).cloned()
    }

    pub(crate) fn by_exporter(&self, exporter: &Exporter) -> Option<Arc<Connection>> {
        let table = self.table();
        table.exporters.get(exporter).and_then(|key| table.held.get(key)).cloned()
    }

    /// Takes a connection in; it leaves with the guard.
    pub(crate) fn register(self: &Arc<Self>, new: Registration) -> Result<Registered, NotRegistered> {
        let key = (new.id, new.direction);
        let connection = Arc::new(Connection {
            id: new.id,
            direction: new.direction,
            service: new.service,
            from: new.from,
            session: new.session,
            since: new.now,
            opened: Instant::now(),
            to_server: AtomicU64::new(0),
            to_client: AtomicU64::new(0),
            answered: AtomicBool::new(false),
            idle: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            asked: Notify::new(),
            state: Mutex::new(State {
                peer: new.peer,
                deadline: new.deadline,
                policy: new.policy,
                rule: new.rule,
                lease: new.lease,
                pending: true,
                server: None,
                instance: None,
                exporter: None,
                heading: new.heading,
                renew_at: Timestamp::MAX,
            }),
            ended: CancellationToken::new(),
            why: OnceLock::new(),
        });
        {
            let mut table = self.table();
            if table.held.len() >= self.most {
                return Err(NotRegistered::Full);
            }
            if table.held.contains_key(&key) {
                return Err(NotRegistered::SameId);
            }
            table.held.insert(key, connection.clone());
            table.count(new.direction, 1);
        }
        self.due(new.deadline);
        Ok(Registered { registry: self.clone(), connection })
    }

    /// Makes an inbound connection findable by its exporter value.
    pub(crate) fn export(&self, connection: &Connection, exporter: Exporter) {
        connection.state().exporter = Some(exporter);
        self.table().exporters.insert(exporter, (connection.id, connection.direction));
    }

    /// Says that something is due at `at`: the enforcer is woken if it meant to sleep longer.
    pub(crate) fn due(&self, at: Timestamp) {
        if at.as_millis() < self.sleeps_until.load(Ordering::Acquire) {
            self.earlier.notify_one();
        }
    }

    /// Says until when the enforcer sleeps.
    pub(crate) fn sleeps(&self, until: Timestamp) {
        self.sleeps_until.store(until.as_millis(), Ordering::Release);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Inserts and removals alone happen under this lock, so what a panic would leave is still whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn count(&mut self, direction: Direction, change: isize) {
        let place = match direction {
            Direction::Outbound => &mut self.counts[0],
            Direction::Inbound => &mut self.counts[1],
            Direction::Passage => &mut self.counts[2],
        };
        *place = place.saturating_add_signed(change);
        metrics::live(direction, *place);
    }
}

/// A registered connection; dropping it takes it out of the registry.
pub(crate) struct Registered {
    registry: Arc<Connections>,
    connection: Arc<Connection>,
}

impl std::ops::Deref for Registered {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl Registered {
    /// It is set up: bytes may pass.
    pub(crate) fn live(&self) {
        self.connection.state().pending = false;
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let key = (self.connection.id, self.connection.direction);
        let exporter = self.connection.state().exporter;
        let mut table = self.registry.table();
        if table.held.remove(&key).is_some() {
            table.count(key.1, -1);
        }
        if let Some(exporter) = exporter {
            table.exporters.remove(&exporter);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::world::registered;

    #[test]
    fn a_connection_leaves_with_its_guard_and_so_does_its_exporter() {
        let registry = Arc::new(Connections::new(2));
        let (one, other) = (registered(&registry), registered(&registry));
        registry.export(&one, [1; 32]);
        assert_eq!(registry.by_exporter(&[1; 32]).map(|found| found.id), Some(one.id));
        assert_eq!((registry.count(), registry.list().len()), (2, 2));
        drop(one);
        assert!(registry.by_exporter(&[1; 32]).is_none());
        assert_eq!(registry.list()[0].id, other.id);
        drop(other);
        assert_eq!((registry.count(), registry.table().counts), (0, [0; 3]));
    }

    #[tokio::test]
    async fn the_first_reason_to_end_counts() {
        let registry = Arc::new(Connections::new(1));
        let connection = registered(&registry);
        assert!(connection.summary().pending && !connection.was_cut());
        assert!(connection.cut(Cut::Expired));
        assert!(!connection.cut(Cut::Shutdown));
        assert_eq!(connection.ended().await, Cut::Expired);
    }

    #[tokio::test]
    async fn only_what_is_due_earlier_wakes_the_enforcer() {
        let registry = Connections::new(1);
        registry.sleeps(Timestamp::from_secs(100));
        registry.due(Timestamp::from_secs(100));
        let woken = || tokio::time::timeout(std::time::Duration::from_millis(10), registry.earlier.notified());
        assert!(woken().await.is_err());
        registry.due(Timestamp::from_secs(99));
        assert!(woken().await.is_ok());
    }
}
