//! Edges that go in good order: what they say before, and who waits for their successors.
//!
//! In: that this edge goes, or the word of a peer that it does. Out: sessions that take no new tunnels, and a wait that
//! ends with the successor's session. Never: ends a session; it carries what lives on it to its end.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use federation_model::{ClusterId, ConnectionId};
use proto::federation::Leaving;
use tokio::time::Instant;

use crate::{
    Event, Shared,
    registry::{Session, lock},
    wire::Frame,
};

/// The feature that stands for the frame in greetings.
pub(crate) const FEATURE: &str = "leaving";
/// Most connections in one frame.
const CONNECTIONS_MAX: usize = 1_000;
/// Pause before another try where a session stands but took no tunnel.
const AGAIN: Duration = Duration::from_millis(50);

/// Whether the far end of a session stays.
pub(crate) fn stays(session: &Session) -> bool {
    !session.leaving.load(Ordering::Relaxed)
}

/// Tells every peer that understands it; the longest round trip of all.
pub(crate) fn announce(shared: &Shared) -> Duration {
    let mut longest = Duration::ZERO;
    for session in shared.registry.all() {
        longest = longest.max(lock(&session.health).rtt.unwrap_or_default());
        if session.spoken.leaving {
            session.tell(Frame::Leaving(Leaving { edge: true, connections: Vec::new() }));
        }
    }
    longest
}

/// Tells a member's edge which connections from there shall end.
pub(crate) fn tell(shared: &Shared, member: ClusterId, connections: &[ConnectionId]) -> bool {
    let sessions = shared.registry.of(&member);
    let Some(session) = sessions.iter().rev().find(|session| session.spoken.leaving) else { return false };
    let connections = connections.iter().take(CONNECTIONS_MAX).map(|id| id.0.to_vec()).collect();
    session.tell(Frame::Leaving(Leaving { edge: false, connections }))
}

/// Takes the word of a peer.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn heard(shared: &Shared, session: &Arc<Session>, said: &Leaving) -> Result<(), &'static str> {
    if said.connections.len() > CONNECTIONS_MAX {
        return Err("more than 1,000 connections in one frame");
    }
    let connections: Result<Vec<_>, _> =
        said.connections.iter().map(|id| ConnectionId::try_from(id.as_slice())).collect();
    let connections = connections?;
    if said.edge {
        tracing::info!(cluster = %session.name, number = session.number, "the member's edge goes; its successor is waited for");
        // Each of its sessions ends with the edge.
        for held in shared.registry.of(&session.member) {
            held.leaving.store(true, Ordering::Relaxed);
        }
        shared.registry.note(&session.member, |past| past.left = Some(Instant::now()));
        shared.registry.tick();
    }
    if !connections.is_empty() {
        shared.emit(Event::Leaving { member: session.member, connections });
    }
    Ok(())
}

/// A session ended: if its peer closed it to shut down, the successor is waited for from now on.
pub(crate) fn ended(shared: &Shared, session: &Session) {
    use quinn::ConnectionError::ApplicationClosed;
    let shut = matches!(session.connection.close_reason(), Some(ApplicationClosed(close))
        if close.error_code == crate::endpoint::code::SHUTDOWN);
    if shut || !stays(session) {
        shared.registry.note(&session.member, |past| past.left = Some(Instant::now()));
    }
}

/// See [`crate::Link::back`].
pub(crate) async fn back(shared: &Shared, member: ClusterId, hold: Duration) -> bool {
    let mut changes = shared.registry.changes();
    let usable = || shared.registry.preferred(&member).is_some_and(|session| stays(&session));
    if usable() {
        // It came back just now, or is ending and its task has not noticed.
        let _ = tokio::time::timeout(AGAIN, changes.changed()).await;
        return true;
    }
    loop {
        let active = shared.snapshot.borrow().as_ref().is_some_and(|snapshot| snapshot.members.is_active(&member));
        let left = shared.registry.past(&member).left.unwrap_or(shared.opened).max(shared.opened);
        let Some(rest) = hold.checked_sub(left.elapsed()).filter(|_| active) else { return false };
        if !matches!(tokio::time::timeout(rest, changes.changed()).await, Ok(Ok(()))) {
            return false;
        }
        if usable() {
            return true;
        }
    }
}
