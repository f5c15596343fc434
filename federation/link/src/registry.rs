//! The live sessions with every member, and which of several is the one in use.
//!
//! In: sessions as they begin and end. Out: the preferred one per member, and a tick on each change.
//! Never: opens or closes a connection by itself, but for one session too many.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use federation_model::{ClusterId, ClusterName, Digest, Message, Timestamp, VerifiedPeer};
use rustls::pki_types::CertificateDer;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use crate::{
    endpoint::code,
    limits::{SESSIONS_PER_MEMBER_MAX, STREAMS_BESIDES},
    metrics,
    session::Spoken,
    wire::Frame,
};

/// Locks, and goes on after a panic of another holder: every value here is valid at each step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who dialled a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// This cluster dialled.
    Dialled,
    /// The member dialled.
    Accepted,
}

impl Direction {
    /// Short fixed word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dialled => "dialled",
            Self::Accepted => "accepted",
        }
    }
}

/// What heartbeats tell of a session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Health {
    pub(crate) rtt: Option<Duration>,
    /// Their clock less ours.
    pub(crate) clock_offset_ms: Option<i64>,
    /// When a heartbeat of ours was last answered, or the session began.
    pub(crate) answered: Instant,
    pub(crate) skew_told: bool,
}

/// What a session stands on: the peer's identity as last proved, and the earliest end of either side's credential.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) peer: VerifiedPeer,
    /// The chain by which it was proved: after a renewal, the successor's.
    pub(crate) chain: Arc<[CertificateDer<'static>]>,
    pub(crate) deadline: Timestamp,
    /// When a successor shall be dialled: half of what was left when this was set.
    pub(crate) renew_at: Timestamp,
}

/// What goes out on a replication stream.
pub(crate) enum Outgoing {
    Message(Message),
    /// In place of a vector.
    Digest {
        digest: Digest,
        ask: bool,
    },
}

/// One live QUIC connection with a member.
pub(crate) struct Session {
    /// Order of beginning, within this process.
    pub(crate) number: u64,
    pub(crate) member: ClusterId,
    pub(crate) name: ClusterName,
    pub(crate) direction: Direction,
    pub(crate) connection: quinn::Connection,
    /// What the two ends of this connection alone know: how a successor names it.
    pub(crate) exporter: [u8; 32],
    pub(crate) spoken: Spoken,
    /// The peer said that its edge goes: no new tunnels here.
    pub(crate) leaving: AtomicBool,
    /// Boxed, as the queue has room for 32 even while it is empty.
    pub(crate) control: mpsc::Sender<Box<Frame>>,
    pub(crate) replication: mpsc::Sender<Outgoing>,
    pub(crate) standing: Mutex<Standing>,
    pub(crate) health: Mutex<Health>,
    pub(crate) tunnels: Arc<AtomicU32>,
    /// How many the peer may have open.
    pub(crate) room: Mutex<u32>,
    /// Why this side closes it, told before the connection is closed.
    pub(crate) ending: Mutex<Option<&'static str>>,
}

impl Session {
    pub(crate) fn peer(&self) -> VerifiedPeer {
        lock(&self.standing).peer.clone()
    }

    pub(crate) fn deadline(&self) -> Timestamp {
        lock(&self.standing).deadline
    }

    pub(crate) fn tunnel_count(&self) -> u32 {
        self.tunnels.load(Ordering::Relaxed)
    }

    /// Lets the peer open twice as many tunnels if half of what it may is used, `most` at most.
    pub(crate) fn make_room(&self, most: u32) {
        let mut room = lock(&self.room);
        if *room < most && self.tunnel_count() >= *room / 2 {
            *room = room.saturating_mul(2).min(most);
            let streams = room.saturating_add(STREAMS_BESIDES);
            self.connection.set_max_concurrent_bi_streams(quinn::VarInt::from_u32(streams));
        }
    }

    /// Closes the connection; the peer and our own status learn the word.
    pub(crate) fn close(&self, code: quinn::VarInt, reason: &'static str) {
        lock(&self.ending).get_or_insert(reason);
        self.connection.close(code, reason.as_bytes());
    }

    /// Puts a frame on the control stream. Dropped, and counted, if the peer does not keep up.
    pub(crate) fn tell(&self, frame: Frame) -> bool {
        let told = self.control.try_send(Box::new(frame)).is_ok();
        if !told {
            ::metrics::counter!(metrics::DROPPED, "queue" => "control").increment(1);
        }
        told
    }

    /// Moves the deadline to what a successor proved; never back.
    pub(crate) fn renew(&self, next: Standing) -> bool {
        let mut standing = lock(&self.standing);
        if standing.peer.id() != next.peer.id() {
            return false;
        }
        if next.deadline > standing.deadline {
            *standing = next;
        }
        true
    }
}

/// The middle of what is left, a little earlier by chance so that links of one age do not renew in one instant.
pub(crate) fn half_way(now: Timestamp, deadline: Timestamp) -> Timestamp {
    let left = deadline.since(now);
    now.after(left.mul_f64(rand::random_range(0.40..0.50)))
}

/// What is remembered of a member between its sessions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Past {
    /// Why the last dial or session failed, until one succeeds.
    pub(crate) error: Option<String>,
    /// When something was last heard.
    pub(crate) heard: Option<Instant>,
    /// When the last session began.
    pub(crate) began: Option<Instant>,
    /// When its edge last said that it goes.
    pub(crate) left: Option<Instant>,
}

#[derive(Default)]
struct Inner {
    sessions: HashMap<ClusterId, Vec<Arc<Session>>>,
    past: HashMap<ClusterId, Past>,
    /// Who waits for the sessions of one member.
    ticks: HashMap<ClusterId, watch::Sender<u64>>,
}

impl Inner {
    fn tick(&self, member: &ClusterId) {
        if let Some(ticks) = self.ticks.get(member) {
            ticks.send_modify(|count| *count += 1);
        }
    }
}

/// Every live session, by member.
pub(crate) struct Registry {
    own: ClusterId,
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
    next: AtomicU64,
}

impl Registry {
    pub(crate) fn new(own: ClusterId) -> Self {
        Self { own, inner: Mutex::default(), changed: watch::Sender::new(0), next: AtomicU64::new(1) }
    }

    pub(crate) fn next_number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Ticks with every session that begins or ends.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Ticks with every session of one member that begins or ends: with thousands of members, each of which waits for its
    /// own, a tick for all would wake all.
    pub(crate) fn changes_of(&self, member: &ClusterId) -> watch::Receiver<u64> {
        lock(&self.inner).ticks.entry(*member).or_default().subscribe()
    }

    pub(crate) fn tick(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    pub(crate) fn insert(&self, session: Arc<Session>) {
        let surplus = {
            let mut inner = lock(&self.inner);
            let past = inner.past.entry(session.member).or_default();
            (past.error, past.heard, past.began) = (None, Some(Instant::now()), Some(Instant::now()));
            let member = session.member;
            let sessions = inner.sessions.entry(member).or_default();
            sessions.push(session);
            let surplus = (sessions.len() > SESSIONS_PER_MEMBER_MAX).then(|| sessions.remove(0));
            inner.tick(&member);
            surplus
        };
        if let Some(surplus) = surplus {
            surplus.close(code::OVERLOADED, "too_many_sessions");
        }
        self.report();
        self.tick();
    }

    /// Takes a session out; says whether it was the member's last.
    pub(crate) fn remove(&self, session: &Session, reason: &str) -> bool {
        let last = {
            let mut inner = lock(&self.inner);
            let Inner { sessions, past, .. } = &mut *inner;
            let left = sessions.get_mut(&session.member).map_or(0, |sessions| {
                sessions.retain(|held| held.number != session.number);
                sessions.len()
            });
            if left == 0 {
                sessions.remove(&session.member);
                past.entry(session.member).or_default().error = Some(format!("session ended: {reason}"));
            }
            inner.tick(&session.member);
            left == 0
        };
        self.report();
        self.tick();
        last
    }

    fn report(&self) {
        let count: usize = lock(&self.inner).sessions.values().map(Vec::len).sum();
        ::metrics::gauge!(metrics::SESSIONS).set(count as f64);
    }

    /// The session in use with a member: of those whose far end stays, if there are any, and of those dialled by the lower
    /// cluster id, the newest; else the newest.
    pub(crate) fn preferred(&self, member: &ClusterId) -> Option<Arc<Session>> {
        let inner = lock(&self.inner);
        inner.sessions.get(member)?.iter().max_by_key(|session| self.rank(session)).cloned()
    }

    /// The session in use with each member that has one.
    pub(crate) fn all_preferred(&self) -> BTreeMap<ClusterId, Arc<Session>> {
        let inner = lock(&self.inner);
        let best = |sessions: &Vec<Arc<Session>>| sessions.iter().max_by_key(|session| self.rank(session)).cloned();
        inner.sessions.iter().filter_map(|(member, sessions)| Some((*member, best(sessions)?))).collect()
    }

    fn rank(&self, session: &Session) -> (bool, bool, u64) {
        let by_lower = match session.direction {
            Direction::Dialled => self.own < session.member,
            Direction::Accepted => session.member < self.own,
        };
        (!session.leaving.load(Ordering::Relaxed), by_lower, session.number)
    }

    pub(crate) fn is_preferred(&self, session: &Session) -> bool {
        self.preferred(&session.member).is_some_and(|held| held.number == session.number)
    }

    /// Every live session with a member, oldest first.
    pub(crate) fn of(&self, member: &ClusterId) -> Vec<Arc<Session>> {
        lock(&self.inner).sessions.get(member).cloned().unwrap_or_default()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Session>> {
        lock(&self.inner).sessions.values().flatten().cloned().collect()
    }

    pub(crate) fn past(&self, member: &ClusterId) -> Past {
        lock(&self.inner).past.get(member).cloned().unwrap_or_default()
    }

    pub(crate) fn note(&self, member: &ClusterId, change: impl FnOnce(&mut Past)) {
        change(lock(&self.inner).past.entry(*member).or_default());
    }

    /// Forgets what is remembered of those that are no members any more.
    pub(crate) fn keep(&self, wanted: impl Fn(&ClusterId) -> bool) {
        let mut inner = lock(&self.inner);
        inner.past.retain(|member, _| wanted(member));
        inner.ticks.retain(|member, ticks| wanted(member) || ticks.receiver_count() > 0);
    }
}
