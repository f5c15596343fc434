//! How links fare: what operators see, and what `hanse check` finds out by trying.

use std::{net::SocketAddr, time::Duration};

use federation_identity::now;
use federation_model::{ClusterId, ClusterName, Member, MemberState, Relay, Timestamp};
use tokio::time::Instant;

use crate::{
    Direction, Shared,
    endpoint::code,
    limits::HEARTBEATS_MISSED_MAX,
    receipts,
    registry::lock,
    session,
    supervisor::{connect, resolve},
};

/// The state of a link in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkState {
    /// A session, and fresh answers on it.
    Up,
    /// A session whose heartbeats are not answered in time, or over which no fresh data comes.
    Degraded,
    /// No session; this edge is dialling, or pauses between dials.
    Dialling,
    /// No session, and the member names nothing to dial: it has to dial us.
    Waiting,
    /// Held, blocked, suspended, evicted or gone: nobody dials.
    Out(MemberState),
}

impl LinkState {
    /// Short fixed word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Dialling => "dialling",
            Self::Waiting => "waiting",
            Self::Out(state) => state.as_str(),
        }
    }
}

/// A way to a member through another that relays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayPath {
    /// Who relays.
    pub member: ClusterId,
    pub name: ClusterName,
    /// Round trip over both sessions, as this cluster and the relay measured them.
    pub rtt: Duration,
}

/// How the link with one member fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    pub member: ClusterId,
    pub name: ClusterName,
    pub state: LinkState,
    /// Who dialled the session in use.
    pub direction: Option<Direction>,
    /// The far end of the session in use.
    pub address: Option<SocketAddr>,
    pub rtt: Option<Duration>,
    /// What the member's edge says of its build, of the session in use.
    pub build: Option<String>,
    /// The relay over which tunnels go while there is no session.
    pub relay: Option<RelayPath>,
    /// Their clock less ours.
    pub clock_offset_ms: Option<i64>,
    /// Time since this cluster last held all that the member had said by then; `None` if never. Of a member whose
    /// version says nothing of that: time since anything was heard.
    pub data_age: Option<Duration>,
    /// Tunnels over all sessions.
    pub tunnels: u32,
    pub sessions: usize,
    /// When the session in use ends unless it is renewed.
    pub deadline: Option<Timestamp>,
    /// Why there is no session, or why the last one ended.
    pub error: Option<String>,
    /// Bytes of UDP payload over all live sessions.
    pub bytes_sent: u64,
    pub bytes_received: u64,
}

/// What trying a link for real found.
#[derive(Clone, Debug)]
pub struct ProbeReport {
    pub member: ClusterId,
    pub name: ClusterName,
    /// Per address of its endpoints: how long a full handshake took, or why there was none.
    pub handshakes: Vec<(String, Result<Duration, String>)>,
    /// Round trip of the last heartbeat over the live session; `None` without one.
    pub heartbeat: Option<Duration>,
    pub clock_offset_ms: Option<i64>,
}

pub(crate) fn all(shared: &Shared) -> Vec<LinkStatus> {
    let Some(snapshot) = shared.snapshot.borrow().clone() else { return Vec::new() };
    let others = snapshot.members.present().filter(|member| member.id != shared.own);
    let members = snapshot.members.len();
    let mut statuses: Vec<LinkStatus> = others.map(|member| of(shared, member, members)).collect();
    statuses.sort_by(|one, other| one.name.cmp(&other.name));
    statuses
}

fn of(shared: &Shared, member: &Member, members: usize) -> LinkStatus {
    let sessions = shared.registry.of(&member.id);
    let preferred = shared.registry.preferred(&member.id);
    let past = shared.registry.past(&member.id);
    let health = preferred.as_ref().map(|session| *lock(&session.health));
    let late = shared.limits.heartbeat * HEARTBEATS_MISSED_MAX;
    let speaks = preferred.as_ref().is_some_and(|session| session.spoken.receipts);
    let said = shared.receipts.read(|receipts, now| receipts.age(&member.id, now));
    // One that does not speak yet has as long for its first word as for any other.
    let began = past.began.map(|began| began.elapsed());
    let fresh = !speaks || said.or(began).is_some_and(|age| age <= receipts::stale_after(members));
    let state = if !member.state.is_active() {
        LinkState::Out(member.state)
    } else if let Some(health) = health {
        if health.answered.elapsed() <= late && fresh { LinkState::Up } else { LinkState::Degraded }
    } else if member.endpoints.is_empty() {
        LinkState::Waiting
    } else {
        LinkState::Dialling
    };
    let bytes = sessions.iter().map(|session| session::bytes(&session.connection));
    let (bytes_sent, bytes_received) = bytes.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    LinkStatus {
        member: member.id,
        name: member.name.clone(),
        state,
        direction: preferred.as_ref().map(|session| session.direction),
        address: preferred.as_ref().map(|session| session.connection.remote_address()),
        rtt: health.and_then(|health| health.rtt),
        build: preferred.as_ref().map(|session| session.spoken.build.clone()),
        relay: if preferred.is_none() && member.state.is_active() { relay_toward(shared, &member.id) } else { None },
        clock_offset_ms: health.and_then(|health| health.clock_offset_ms),
        data_age: data_age(shared, &member.id),
        tunnels: sessions.iter().map(|session| session.tunnel_count()).sum(),
        sessions: sessions.len(),
        deadline: preferred.as_ref().map(|session| session.deadline()),
        error: past.error.filter(|_| state != LinkState::Up),
        bytes_sent,
        bytes_received,
    }
}

/// Time since this cluster last held all that a member had said by then. Of one whose version says nothing of that: time
/// since anything was heard.
pub(crate) fn data_age(shared: &Shared, member: &ClusterId) -> Option<Duration> {
    let said = shared.receipts.read(|receipts, now| receipts.age(member, now));
    if said.is_some() || shared.registry.preferred(member).is_some_and(|session| session.spoken.receipts) {
        return said;
    }
    shared.registry.past(member).heard.map(|heard| heard.elapsed())
}

/// The nearest member that relays, with a session here, and that last said it has one with `member`.
pub(crate) fn relay_toward(shared: &Shared, member: &ClusterId) -> Option<RelayPath> {
    let snapshot = shared.snapshot.borrow().clone()?;
    let relays = snapshot.members.present().filter(|relay| relay.relay == Relay::Members && relay.state.is_active());
    let ways = relays.filter(|relay| relay.id != *member && relay.id != shared.own).filter_map(|relay| {
        let session = shared.registry.preferred(&relay.id)?;
        let onward = shared.receipts.read(|receipts, _| receipts.round_trip(&relay.id, member))?;
        let here = lock(&session.health).rtt.unwrap_or_default();
        Some(RelayPath { member: relay.id, name: relay.name.clone(), rtt: here + onward })
    });
    ways.min_by_key(|way| (way.rtt, way.member))
}

pub(crate) async fn probe(shared: &Shared, id: ClusterId) -> Option<ProbeReport> {
    let member = shared.snapshot.borrow().as_ref().and_then(|snapshot| snapshot.members.get(&id).cloned())?;
    let mut handshakes = Vec::new();
    for endpoint in &member.endpoints {
        let addresses = match resolve(endpoint, shared.limits.handshake).await {
            Ok(addresses) => addresses,
            Err(error) => {
                handshakes.push((endpoint.to_string(), Err(error.to_string())));
                continue;
            }
        };
        for address in addresses {
            let started = Instant::now();
            let tried = connect(shared, &member, address).await.map_err(|error| error.to_string());
            let tried = tried.and_then(|connection| {
                let chain = crate::endpoint::peer_chain(&connection);
                let proved = shared.verifier.session_peer(&chain, now()).map_err(|error| error.to_string());
                connection.close(code::PROBE, b"probe");
                let wanted = member.trust_domain.edge(&member.name);
                proved.and_then(|peer| {
                    if *peer.id() == wanted { Ok(started.elapsed()) } else { Err(format!("{} answered", peer.id())) }
                })
            });
            handshakes.push((address.to_string(), tried));
        }
    }
    let health = shared.registry.preferred(&id).map(|session| *lock(&session.health));
    let fresh = health.filter(|health| health.answered.elapsed() <= shared.limits.heartbeat * HEARTBEATS_MISSED_MAX);
    Some(ProbeReport {
        member: id,
        name: member.name,
        handshakes,
        heartbeat: fresh.and_then(|health| health.rtt),
        clock_offset_ms: fresh.and_then(|health| health.clock_offset_ms),
    })
}
