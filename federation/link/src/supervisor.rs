//! Keeps a session with every member that can be dialled: one task each, with jittered backoff.
//!
//! Names are resolved anew at every attempt. While a healthy session exists nobody dials, but to renew it. A member
//! without endpoints dials us; a member that is not active here is left alone.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use federation_identity::{now, tls};
use federation_model::{Bundles, ClusterId, Endpoint, Member, MemberState, Snapshot, Timestamp};
use quinn::ConnectionError;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    SessionError, Shared,
    endpoint::{self, SERVER_NAME, code, may_dial},
    limits::{ADDRESSES_MAX, RENEWS_MAX},
    metrics, receipts,
    registry::{Direction, Session, half_way, lock},
    session,
    wire::printable,
};

/// A session that lived this long was a success: backoff starts over.
const SETTLED: Duration = Duration::from_secs(10);
/// How long the member with the higher id leaves the first dial to the other, where both can dial.
const COURTESY: Duration = Duration::from_millis(150);
/// Members up to which each is dialled as often as [`crate::Limits::backoff_max`] says.
const EAGER_MEMBERS: f64 = 64.0;
/// How long the session with one that was put out goes on, so that it learns of it.
const FAREWELL: Duration = Duration::from_millis(250);
/// Shortest pause between two attempts to renew one session.
const RENEW_PAUSE_MIN: Duration = Duration::from_millis(100);

/// The addresses of an endpoint, at most [`ADDRESSES_MAX`], without those that no member may be dialled at.
pub(crate) async fn resolve(endpoint: &Endpoint, limit: Duration) -> Result<Vec<SocketAddr>, SessionError> {
    let failed = |detail: String| SessionError::Lookup { endpoint: endpoint.to_string(), detail };
    let found = tokio::time::timeout(limit, tokio::net::lookup_host(endpoint.as_str())).await;
    let found = found.map_err(|_| failed(format!("no answer within {limit:?}")))?;
    let found = found.map_err(|error| failed(error.to_string()))?;
    let addresses: Vec<SocketAddr> = found.take(ADDRESSES_MAX).filter(may_dial).collect();
    if addresses.is_empty() { Err(failed("it names no address that may be dialled".into())) } else { Ok(addresses) }
}

/// Starts and ends the tasks as members come and go, and closes sessions whose identity is no longer believed.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut snapshots = shared.snapshot.subscribe();
    let mut tasks: HashMap<ClusterId, CancellationToken> = HashMap::new();
    let mut bundles: Arc<Bundles> = Arc::default();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        if let Some(snapshot) = &snapshot {
            follow(&shared, snapshot, &mut tasks);
            if snapshot.bundles != bundles {
                bundles = snapshot.bundles.clone();
                recheck(&shared);
            }
        }
        tokio::select! {
            () = shared.cancel.cancelled() => return,
            changed = snapshots.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

fn follow(shared: &Arc<Shared>, snapshot: &Snapshot, tasks: &mut HashMap<ClusterId, CancellationToken>) {
    let wanted = |id: &ClusterId| *id != shared.own && snapshot.members.is_active(id);
    tasks.retain(|id, task| {
        let keep = wanted(id);
        if !keep {
            task.cancel();
        }
        keep
    });
    for session in shared.registry.all() {
        if !wanted(&session.member) {
            let state = snapshot.members.get(&session.member).map(|member| member.state);
            end(shared, session, state);
        }
    }
    shared.registry.keep(|id| snapshot.members.get(id).is_some());
    receipts::keep(shared, |id| snapshot.members.get(id).is_some());
    for member in snapshot.members.iter().filter(|member| wanted(&member.id)) {
        tasks.entry(member.id).or_insert_with(|| {
            let (cancel, tracker) = (shared.cancel.child_token(), shared.tasks.clone());
            let (shared, id, cancelled) = (shared.clone(), member.id, cancel.clone());
            let task = async move {
                tokio::select! {
                    () = cancelled.cancelled() => {}
                    () = keep_linked(shared.clone(), id) => {}
                }
            };
            tracker.spawn(task);
            cancel
        });
    }
}

/// Ends the session with one that is not active any more. Whom the federation put out is told so first: what it has to
/// know is on its way, nothing else passes any more.
fn end(shared: &Shared, session: Arc<Session>, state: Option<MemberState>) {
    let word = state.map_or("removed", MemberState::as_str);
    if !state.is_some_and(MemberState::is_out) {
        return session.close(code::REMOVED, word);
    }
    shared.tasks.spawn(async move {
        sleep(FAREWELL).await;
        session.close(code::REMOVED, word);
    });
}

/// Roots changed: a session whose chain no longer verifies ends now, not at its deadline.
fn recheck(shared: &Shared) {
    let snapshot = shared.snapshot.borrow().clone();
    let active = |session: &Session| snapshot.as_ref().is_none_or(|held| held.members.is_active(&session.member));
    for session in shared.registry.all().into_iter().filter(|session| active(session)) {
        // A renewed session stands on its successor's chain. That one's end is the deadline's business, its root is ours.
        let standing = lock(&session.standing).clone();
        let at = now().min(standing.peer.not_after().before(Duration::from_millis(1)));
        if let Err(error) = shared.verifier.session_peer(&standing.chain, at) {
            tracing::warn!(cluster = %session.name, %error, "session ends: its identity is no longer believed");
            session.close(code::REFUSED, "identity");
        }
    }
}

/// What the task of one member does next.
enum Next {
    Dial,
    /// A successor, for these.
    Renew(Vec<Arc<Session>>),
    /// Nothing before this, unless something changes.
    Wait(Duration),
}

/// Longest sleep without looking again: clocks may be set.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

async fn keep_linked(shared: Arc<Shared>, id: ClusterId) {
    let mut snapshots = shared.snapshot.subscribe();
    let mut sessions = shared.registry.changes_of(&id);
    let mut backoff = shared.limits.backoff_min;
    // Both ends of a new pair wake at the same time.
    let courtesy = if shared.own < id { Duration::ZERO } else { COURTESY };
    sleep(courtesy.mul_f64(rand::random_range(0.7..1.3))).await;
    loop {
        let member = snapshots.borrow_and_update().as_ref().and_then(|held| held.members.get(&id).cloned());
        sessions.borrow_and_update();
        let Some(member) = member else { return };
        let attempt = match next(&shared, &member) {
            Next::Wait(pause) => {
                tokio::select! {
                    () = sleep(pause) => {}
                    _ = sessions.changed() => {}
                    changed = snapshots.changed() => if changed.is_err() { return },
                }
                continue;
            }
            Next::Dial => dial(&shared, &member, &[]).await,
            Next::Renew(due) => {
                let renewed = dial(&shared, &member, &due).await;
                after_renewal(&due, now());
                renewed
            }
        };
        match attempt {
            Ok(_) => {
                ::metrics::counter!(metrics::DIALS, "outcome" => "session").increment(1);
                backoff = shared.limits.backoff_min;
            }
            // The peer's SVID is what ends first; the sessions are looked at again when there may be a newer one.
            Err(SessionError::NoGain) => {
                ::metrics::counter!(metrics::DIALS, "outcome" => "no_gain").increment(1);
            }
            Err(error) => {
                ::metrics::counter!(metrics::DIALS, "outcome" => error.reason()).increment(1);
                tracing::debug!(cluster = %member.name, %error, backoff = ?backoff, "dial failed");
                shared.registry.note(&id, |past| past.error = Some(error.to_string()));
                let settled = shared.registry.past(&id).began.is_some_and(|began| began.elapsed() > SETTLED);
                if settled && backoff > shared.limits.backoff_min && shared.registry.preferred(&id).is_some() {
                    backoff = shared.limits.backoff_min;
                }
                let endpoints = member.endpoints.clone();
                let pause = backoff.mul_f64(rand::random_range(0.5..1.0));
                backoff = (backoff * 2).min(longest_pause(&shared));
                if wait_out(&shared, &mut snapshots, &id, &endpoints, pause).await {
                    backoff = shared.limits.backoff_min;
                }
            }
        }
    }
}

/// One that dials many members at a time is less eager.
fn longest_pause(shared: &Shared) -> Duration {
    let members = shared.snapshot.borrow().as_ref().map_or(0, |held| held.members.len());
    pause_max(&shared.limits, members)
}

/// Longest pause between dials of one of so many members.
pub(crate) fn pause_max(limits: &crate::Limits, members: usize) -> Duration {
    limits.backoff_max.mul_f64((members as f64 / EAGER_MEMBERS).max(1.0))
}

/// Waits, but not for a member whose endpoints changed or that dialled us meanwhile: says whether one of these happened.
async fn wait_out(
    shared: &Shared,
    snapshots: &mut watch::Receiver<Option<Arc<Snapshot>>>,
    id: &ClusterId,
    endpoints: &[Endpoint],
    pause: Duration,
) -> bool {
    let until = Instant::now() + pause;
    let mut sessions = shared.registry.changes_of(id);
    let linked = shared.registry.preferred(id).is_some();
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(until) => return false,
            _ = sessions.changed() => {
                if shared.registry.preferred(id).is_some() != linked {
                    return true;
                }
            }
            changed = snapshots.changed() => {
                if changed.is_err() {
                    return false;
                }
                let snapshot = snapshots.borrow().clone();
                let now = snapshot.as_ref().and_then(|held| held.members.get(id));
                if now.is_none_or(|member| member.endpoints != endpoints) {
                    return true;
                }
            }
        }
    }
}

fn next(shared: &Shared, member: &Member) -> Next {
    let live = shared.registry.of(&member.id);
    if live.is_empty() {
        return if member.endpoints.is_empty() { Next::Wait(LOOK_AGAIN) } else { Next::Dial };
    }
    let now = now();
    let own_end = session::own_end(shared).unwrap_or(now);
    let mut due = Vec::new();
    let mut soonest = LOOK_AGAIN;
    for session in live.iter().filter(|session| session.direction == Direction::Dialled) {
        // One that is to be closed anyway needs no more time.
        if session.tunnel_count() == 0 && !shared.registry.is_preferred(session) {
            continue;
        }
        let mut standing = lock(&session.standing);
        if now < standing.renew_at {
            soonest = soonest.min(standing.renew_at.since(now));
        } else if own_end <= standing.deadline && standing.peer.not_after() > standing.deadline {
            // Our own SVID is what ends first, and there is no newer one yet.
            standing.renew_at = pause_before(now, standing.deadline);
            soonest = soonest.min(standing.renew_at.since(now));
        } else {
            due.push((standing.deadline, session.clone()));
        }
    }
    if due.is_empty() {
        return Next::Wait(soonest.max(Duration::from_millis(10)));
    }
    due.sort_by_key(|(deadline, session)| (*deadline, session.number));
    Next::Renew(due.into_iter().take(RENEWS_MAX).map(|(_, session)| session).collect())
}

/// When to try again what could not be renewed now: an eighth of what is left.
fn pause_before(now: Timestamp, deadline: Timestamp) -> Timestamp {
    now.after((deadline.since(now) / 8).max(RENEW_PAUSE_MIN))
}

/// A successor that moved nothing, or none at all: these are tried again before long.
fn after_renewal(tried: &[Arc<Session>], now: Timestamp) {
    for session in tried {
        let mut standing = lock(&session.standing);
        if standing.renew_at <= now {
            standing.renew_at = pause_before(now, standing.deadline);
        }
    }
}

/// One attempt over all endpoints of a member, standing for `renews` too.
pub(crate) async fn dial(
    shared: &Arc<Shared>,
    member: &Member,
    renews: &[Arc<Session>],
) -> Result<Arc<Session>, SessionError> {
    let mut last = SessionError::NoEndpoint(member.name.to_string());
    for named in &member.endpoints {
        let addresses = match resolve(named, shared.limits.handshake).await {
            Ok(addresses) => addresses,
            Err(error) => {
                last = error;
                continue;
            }
        };
        for address in addresses {
            match dial_address(shared, member, address, renews).await {
                Ok(session) => {
                    return Ok(session);
                }
                Err(error @ SessionError::NoGain) => return Err(error),
                Err(error) => last = error,
            }
        }
    }
    Err(last)
}

async fn dial_address(
    shared: &Arc<Shared>,
    member: &Member,
    address: SocketAddr,
    renews: &[Arc<Session>],
) -> Result<Arc<Session>, SessionError> {
    // Read before the handshake: whichever SVID it shows, this one ends no later.
    let own_end = session::own_end(shared).ok_or_else(|| SessionError::Tls("this edge has no SVID yet".into()))?;
    let connection = connect(shared, member, address).await?;
    let session = session::begin_dialled(shared, connection, member, renews, own_end).await?;
    let mut standing = lock(&session.standing);
    standing.renew_at = standing.renew_at.min(half_way(now(), standing.deadline));
    drop(standing);
    Ok(session)
}

/// A QUIC connection whose far end proved to be an edge of the member's trust domain.
pub(crate) async fn connect(
    shared: &Shared,
    member: &Member,
    address: SocketAddr,
) -> Result<quinn::Connection, SessionError> {
    let tls = tls::session_client(&shared.live_svid, &shared.verifier, member.trust_domain.clone());
    let tls = tls.map_err(|error| SessionError::Tls(error.to_string()))?;
    let config = endpoint::client_config(tls, shared.transport.clone()).map_err(SessionError::Tls)?;
    let failed = |detail: String| SessionError::Connect { address, detail };
    let connecting = shared.dialling.connect_with(config, address, SERVER_NAME);
    let connecting = connecting.map_err(|error| failed(error.to_string()))?;
    let limit = shared.limits.dial;
    match tokio::time::timeout(limit, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(ConnectionError::TransportError(error))) if (0x100..0x200).contains(&u64::from(error.code)) => {
            let (member, detail) = (member.name.to_string(), printable(&error.reason));
            Err(SessionError::Identity { address, member, detail })
        }
        Ok(Err(error)) => Err(failed(printable(&error.to_string()))),
        Err(_) => Err(failed(format!("no handshake within {limit:?}"))),
    }
}
