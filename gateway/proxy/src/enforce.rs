//! The law, enforced on what is live: asked again at each snapshot, and the clock at each deadline and end of a lease.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use federation_identity::now;
use federation_model::{ClusterId, ConnectionId, Denial, DenialReason, Stale, Staleness, Timestamp};
use tokio::{task::JoinSet, time::sleep};

use crate::{
    Core,
    authorize::Law,
    connections::{Connection, Cut, Direction},
    frame::{DETAIL_BYTES_MAX, clean},
    limits::RENEWALS_MAX,
    renewal,
};

/// Longest sleep: bounds how late a step of the wall clock is noticed.
const SLEEP_MAX: Duration = Duration::from_secs(1);
/// Shortest sleep, so that clocks that disagree by a hair cannot make it spin.
const SLEEP_MIN: Duration = Duration::from_millis(5);
/// When to look again after renewals were started or put off.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Connections judged before others get their turn.
const TURN: usize = 1_000;

/// Says that somebody enforces; when it is dropped nobody does, so nothing may live.
struct Enforcing<'a>(&'a Core);

impl Drop for Enforcing<'_> {
    fn drop(&mut self) {
        self.0.enforcing.store(false, Ordering::Release);
        for connection in self.0.connections.all() {
            connection.cut(Cut::Shutdown);
        }
    }
}

pub(crate) async fn run(core: &Arc<Core>) {
    if core.enforcing.swap(true, Ordering::AcqRel) {
        tracing::error!("a second enforcer was started; the first goes on, this one ends");
        return;
    }
    let _enforcing = Enforcing(core);
    let mut snapshot = core.inputs.snapshot.clone();
    snapshot.mark_changed();
    let mut publishes = true;
    let mut renewals = JoinSet::new();
    loop {
        // From here on a registration with any deadline leaves a wake-up behind, so none is slept over.
        core.connections.sleeps(Timestamp::MAX);
        let next = sweep(core, &mut renewals);
        core.connections.sleeps(next);
        let pause = next.since(now()).clamp(SLEEP_MIN, SLEEP_MAX);
        tokio::select! {
            biased;
            changed = snapshot.changed(), if publishes => match changed {
                Ok(()) => {
                    snapshot.mark_unchanged();
                    enforce(core, Law::of(&core.inputs)).await;
                }
                // Nobody publishes any more: the last law stays, and so do deadlines.
                Err(_) => publishes = false,
            },
            () = core.connections.earlier.notified() => {}
            Some(_) = renewals.join_next() => {}
            () = sleep(pause) => {}
        }
    }
}

/// Asks the law again about every connection, and cuts what it denies.
async fn enforce(core: &Core, law: Option<Law>) {
    let now = now();
    for (judged, connection) in core.connections.all().into_iter().enumerate() {
        if judged % TURN == TURN - 1 {
            tokio::task::yield_now().await;
        }
        let stands = match &law {
            Some(law) => law.again(&connection, now).map(|standing| (standing, law.revision())),
            None => {
                let source = connection.state().peer.id().clone();
                Err(Denial::without_rule(DenialReason::NoSnapshot, Some(&source), &connection.service.name))
            }
        };
        match stands {
            Ok((standing, policy)) => {
                let mut state = connection.state();
                (state.rule, state.lease, state.policy) = (standing.rule, standing.lease, policy);
            }
            Err(denial) => {
                connection.cut(Cut::Denied(denial));
            }
        }
    }
}

/// Cuts what has outlived its credential or its lease, starts the renewals that are due, and says when to look again.
fn sweep(core: &Arc<Core>, renewals: &mut JoinSet<()>) -> Timestamp {
    let now = now();
    let mut next = Timestamp::MAX;
    let mut due = false;
    let mut ages: HashMap<ClusterId, Option<Duration>> = HashMap::new();
    for connection in core.connections.all() {
        if connection.was_cut() {
            continue;
        }
        let (deadline, renew_at, lease) = {
            let state = connection.state();
            (state.deadline, state.renew_at, state.lease)
        };
        if now >= deadline {
            connection.cut(Cut::Expired);
            continue;
        }
        if let Some(lease) = lease {
            let cluster = connection.service.id.cluster;
            let age = *ages.entry(cluster).or_insert_with(|| core.inputs.ages.of(&cluster));
            if lease.denies(age) {
                connection.cut(Cut::Denied(outlived(&connection, age, lease)));
                continue;
            }
            next = next.min(now.after(lease.left(age)));
        }
        due |= now >= renew_at;
        next = next.min(deadline).min(if now >= renew_at { Timestamp::MAX } else { renew_at });
    }
    if due {
        // Those that could not be renewed yet were scheduled anew; the next look sees when.
        next = next.min(now.after(LOOK_AGAIN));
        let room = RENEWALS_MAX.saturating_sub(renewals.len());
        for group in renewal::due(core, now, room) {
            let core = Arc::clone(core);
            renewals.spawn(async move { renewal::renew(&core, group).await });
        }
    }
    next
}

/// The denial of a connection whose owner was not heard for the lease of its service.
fn outlived(connection: &Connection, age: Option<Duration>, lease: Staleness) -> Denial {
    let source = connection.state().peer.id().clone();
    let denial = Denial::without_rule(DenialReason::Stale, Some(&source), &connection.service.name);
    Denial { stale: Some(Box::new(Stale { age, lease: lease.lease })), ..denial }
}

/// A denial that a later hop tells. Those before are told by the connection's own end.
pub(crate) fn told(core: &Core, id: ConnectionId, from: Option<ClusterId>, reason: DenialReason, detail: &str) -> bool {
    let why = Cut::Told { reason, detail: clean(detail, DETAIL_BYTES_MAX) };
    let heard = match from {
        // A member may end what goes to it, not what goes to others.
        Some(member) => {
            core.connections.get(id, Direction::Passage).filter(|passage| passage.service.id.cluster == member)
        }
        None => core.connections.get(id, Direction::Outbound),
    };
    match heard {
        Some(connection) => connection.cut(why),
        None => {
            tracing::debug!(connection = %id, reason = reason.as_str(), "denial of an unknown connection");
            false
        }
    }
}
