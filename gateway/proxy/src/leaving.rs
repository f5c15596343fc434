//! Connections whose path ends in good order: ended where they began, once nothing is under way on them.
//!
//! In: that this process, or one further on, is about to go. Out: word to whoever comes before it on the path, and at the
//! source the end of the connection, at a moment when every byte was delivered and an answer, not a question, came last.
//! Never: cuts what is under way; whoever goes decides how long it waits for that.
//!
//! Only the source has the plaintext's edges: it alone can finish both the application's stream and TLS, so that a
//! client sees an end and no break. It stops reading the application first, so what that sends too late reaches nobody
//! and can be sent again.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use federation_model::{ClusterId, ConnectionId, SpiffeId};
use tokio::time::{Instant, sleep};

use crate::{
    Core,
    connections::{Connection, Direction},
};

/// Most connections in one notice.
pub const NOTICE_MAX: usize = 1_000;
/// How long the connections that are asked to end may take to become quiet, after which they are cut.
pub const WIND_UP_MAX: Duration = Duration::from_secs(5);
/// Pause between two looks at what is under way.
const LOOK: Duration = Duration::from_millis(20);
/// How long one on which nothing ever came back must be silent: whoever opened it may be about to ask.
const UNUSED: Duration = Duration::from_secs(1);
/// How long an answered connection must be silent until it counts as quiet, by the time since it was asked to end: a
/// pause within an answer is rarely longer, and who would be cut soon anyway risks a shorter one.
const SILENCE: [(Duration, Duration); 3] = [
    (Duration::from_secs(1), Duration::from_millis(200)),
    (Duration::from_millis(2_500), Duration::from_millis(40)),
    (Duration::MAX, Duration::from_millis(10)),
];

/// Word that connections shall end, on its way to where they began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The member that they came from. `None`: they began in this cluster.
    pub to: Option<ClusterId>,
    /// Whose they are: the sidecars to tell when `to` is `None`.
    pub source: SpiffeId,
    /// At most [`NOTICE_MAX`].
    pub connections: Vec<ConnectionId>,
}

/// Asks those of `chosen` to end that were not asked yet, each as its direction allows. Returns how many these were.
pub(crate) fn ask(core: &Core, chosen: impl IntoIterator<Item = Arc<Connection>>) -> usize {
    let mut count = 0;
    let mut notices: BTreeMap<(Option<ClusterId>, SpiffeId), Vec<ConnectionId>> = BTreeMap::new();
    for connection in chosen {
        if !connection.ask_to_end() {
            continue;
        }
        count += 1;
        if connection.direction != Direction::Outbound {
            let source = connection.state().peer.id().clone();
            notices.entry((connection.from, source)).or_default().push(connection.id);
        }
    }
    for ((to, source), connections) in notices {
        for part in connections.chunks(NOTICE_MAX) {
            core.inputs.control.leaving(Notice { to, source: source.clone(), connections: part.to_vec() });
        }
    }
    count
}

/// Takes a notice from a later hop: a member may speak of what goes to it, not of what goes to others.
pub(crate) fn heard(core: &Core, connections: &[ConnectionId], from: Option<ClusterId>) -> usize {
    let find = |id: &ConnectionId| match from {
        Some(member) => core.connections.get(*id, Direction::Passage).filter(|held| held.service.id.cluster == member),
        // A sidecar hears it from its edge, an edge from the sidecar that goes.
        None => [Direction::Outbound, Direction::Passage].into_iter().find_map(|way| core.connections.get(*id, way)),
    };
    ask(core, connections.iter().take(NOTICE_MAX).filter_map(find))
}

/// Waits until each connection that lives now was quiet once or has ended, at most for `limit`: a question that was asked
/// gets its answer, while new ones still come. Returns how many never were.
pub(crate) async fn settle(core: &Core, limit: Duration) -> usize {
    let end = Instant::now() + limit;
    let mut busy: Vec<(Arc<Connection>, u64)> = core.connections.all().into_iter().map(|held| (held, 0)).collect();
    loop {
        busy.retain_mut(|(connection, before)| {
            let (passed, quiet) = (connection.passed(), connection.is_answered());
            let still = std::mem::replace(before, passed) == passed;
            // The registry holds it as well for as long as it lives.
            Arc::strong_count(connection) > 1 && !(quiet && still)
        });
        if busy.is_empty() || Instant::now() >= end {
            return busy.len();
        }
        sleep(LOOK).await;
    }
}

/// Resolves once somebody asked for the connection's end and nothing is under way on it. To be polled after the splice,
/// so that what has come meanwhile is seen first.
pub(crate) async fn quiet(connection: &Connection) {
    connection.asked_to_end().await;
    let asked = Instant::now();
    let (mut passed, mut since) = (connection.passed(), asked);
    loop {
        let within = |(until, _): &&(Duration, Duration)| asked.elapsed() < *until;
        let silence = SILENCE.iter().find(within).map_or(UNUSED, |(_, silence)| *silence);
        sleep(silence / 2).await;
        let now = connection.passed();
        if now != passed {
            (passed, since) = (now, Instant::now());
        } else if passed == 0 && since.elapsed() >= UNUSED || connection.is_answered() && since.elapsed() >= silence {
            return;
        }
    }
}

impl Connection {
    /// Asks it to end; whether nobody had yet.
    fn ask_to_end(&self) -> bool {
        let first = !self.leaving.swap(true, Ordering::AcqRel);
        if first {
            self.asked.notify_one();
        }
        first
    }

    async fn asked_to_end(&self) {
        while !self.leaving.load(Ordering::Acquire) {
            self.asked.notified().await;
        }
    }

    /// Bytes that went through, both ways.
    fn passed(&self) -> u64 {
        self.to_server.load(Ordering::Relaxed).wrapping_add(self.to_client.load(Ordering::Relaxed))
    }

    /// Whether all that came was delivered, and what went to the client came last.
    fn is_answered(&self) -> bool {
        self.idle.load(Ordering::Relaxed) && self.answered.load(Ordering::Relaxed)
    }
}
