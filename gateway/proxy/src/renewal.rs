//! Renewals: TLS cannot renew a connection that is open, so a fresh one between the same two identities stands in.
//!
//! The source opens one connection per destination service and process, and lists what TLS exported on the live ones;
//! both ends verify anew and move those deadlines. Edges, which see no TLS, get a fresh signed header for each.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use federation_identity::{now, passthrough};
use federation_model::{
    ClusterId, ConnectionId, Denial, DenialReason, InstanceId, Service, ServiceId, SpiffeId, Timestamp, VerifiedPeer,
};
use tokio::{io::AsyncWriteExt, time::timeout};
use tracing::{debug, warn};

use crate::{
    Core,
    authorize::{Law, Refusal},
    connect,
    connections::{Connection, Direction, Heading},
    frame::{self, Answer, Exporter, RENEWS_MAX},
    metrics,
};

/// Shortest time between two attempts for one connection.
const AGAIN_MIN: Duration = Duration::from_millis(100);

/// When to try next: before half of what is left, up to a fifth of that earlier.
pub(crate) fn next(now: Timestamp, deadline: Timestamp) -> Timestamp {
    let half = deadline.since(now) / 2;
    let early: f64 = rand::random_range(0.0..0.2);
    now.after(half.mul_f64(1.0 - early).max(AGAIN_MIN))
}

/// Connections that one renewal stands for: the same service, process and server identity.
pub(crate) struct Group {
    service: Service,
    server: SpiffeId,
    instance: InstanceId,
    members: Vec<Arc<Connection>>,
}

/// The far end of a group.
type Far = (ServiceId, InstanceId, SpiffeId);

/// The groups of which a member is due, at most `room`; the others come with it. Each is scheduled anew at once, so
/// that an attempt that fails is followed by another.
pub(crate) fn due(core: &Core, now: Timestamp, room: usize) -> Vec<Group> {
    let mut groups: BTreeMap<Far, (bool, Vec<Arc<Connection>>)> = BTreeMap::new();
    let own_end = core.inputs.svid.get().map_or(Timestamp::ZERO, |svid| svid.not_after());
    for connection in core.connections.all() {
        let key = {
            let mut state = connection.state();
            if connection.direction != Direction::Outbound || state.pending || connection.was_cut() {
                continue;
            }
            // As long as the own SVID is the old one there is nothing to gain.
            if own_end <= state.deadline {
                if now >= state.renew_at {
                    state.renew_at = next(now, state.deadline);
                }
                continue;
            }
            match (&state.instance, &state.server) {
                (Some(instance), Some(server)) => {
                    let key = (connection.service.id.clone(), *instance, server.id().clone());
                    (key, now >= state.renew_at)
                }
                _ => continue,
            }
        };
        let (key, due) = key;
        let group = groups.entry(key).or_default();
        group.0 |= due;
        group.1.push(connection);
    }
    let mut found = Vec::new();
    for ((_, instance, server), (due, members)) in groups {
        for part in members.chunks(RENEWS_MAX).filter(|_| due) {
            let Some(first) = part.first().filter(|_| found.len() < room) else { break };
            for member in part {
                let mut state = member.state();
                state.renew_at = next(now, state.deadline);
            }
            let (service, members) = (first.service.clone(), part.to_vec());
            found.push(Group { service, server: server.clone(), instance, members });
        }
    }
    found
}

/// One renewal, from dial to moved deadlines. Failing is no error: there is another attempt, or the deadline.
pub(crate) async fn renew(core: &Arc<Core>, group: Group) {
    let count = group.members.len();
    match attempt(core, &group).await {
        Ok(moved) => {
            metrics::renewal("client", "moved", moved);
            debug!(service = %group.service.name, instance = %group.instance, moved, of = count, "connections renewed");
        }
        Err(refusal) => {
            let failed = matches!(refusal.denial.reason, DenialReason::Unreachable | DenialReason::NoInstance);
            metrics::renewal("client", if failed { "failed" } else { "refused" }, count);
            warn!(
                service = %group.service.name,
                instance = %group.instance,
                reason = refusal.denial.reason.as_str(),
                check = refusal.word,
                detail = %refusal.detail,
                connections = count,
                "connections were not renewed; they are cut when their credential ends"
            );
        }
    }
}

async fn attempt(core: &Arc<Core>, group: &Group) -> Result<usize, Refusal> {
    let name = &group.service.name;
    let own = connect::own_peer(core, name)?;
    let law = Law::in_force(&core.inputs, Some(own.id()), name)?;
    let service = law.service(name, Some(own.id()))?;
    let permit = law.permit(&own, &service, now())?;
    let renews: Vec<(Arc<Connection>, Exporter)> = group
        .members
        .iter()
        .filter_map(|member| member.state().exporter.map(|exporter| (member.clone(), exporter)))
        .collect();
    let exporters = renews.iter().map(|(_, exporter)| *exporter).collect();
    // Its own id, not one of those it stands for: edges route by the instance.
    let id = ConnectionId(rand::random());
    let expected = vec![group.server.clone()];
    let mut side =
        connect::establish(core, &own, &permit, service, expected, id, Some(group.instance), exporters).await?;
    let refuse =
        |reason, word, detail: &dyn std::fmt::Display| Refusal::new(reason, Some(own.id()), name).because(word, detail);
    let body = match timeout(core.inputs.limits.answer_timeout, frame::read_body(&mut side.tls)).await {
        Ok(body) => body.map_err(|error| refuse(DenialReason::Unreachable, "stream_broke", &error))?,
        Err(late) => return Err(refuse(DenialReason::Unreachable, "answer_timeout", &late)),
    };
    let renewed = match Answer::decode(&body) {
        Ok(Answer::Permit { instance, renewed, .. }) if instance == group.instance => renewed,
        Ok(Answer::Permit { .. }) => {
            return Err(refuse(DenialReason::NoInstance, "other_instance", &"another process answered"));
        }
        Ok(Answer::Denial { reason, detail, .. }) => {
            let reason = DenialReason::from_word(&reason).unwrap_or(DenialReason::Rule);
            return Err(refuse(reason, "destination", &detail));
        }
        Err(error) => return Err(refuse(DenialReason::Malformed, error.reason(), &error)),
    };
    let mut moved = 0;
    for (place, (member, _)) in renews.iter().enumerate() {
        if renewed & (1 << place) == 0 {
            continue;
        }
        moved += 1;
        let (heading, renew_at) = {
            let mut state = member.state();
            state.peer = own.clone();
            state.server = Some(side.server.clone());
            state.deadline = state.deadline.max(side.deadline);
            state.renew_at = next(now(), state.deadline);
            (state.heading.clone(), state.renew_at)
        };
        core.connections.due(renew_at);
        if let Some(heading) = heading {
            extend_path(core, member, &heading, &own);
        }
    }
    // The other end closes once it has answered; nothing hangs on how this one goes.
    let _ = timeout(core.inputs.limits.handshake_timeout, side.tls.shutdown()).await;
    Ok(moved)
}

/// Signs a fresh header for a live connection, and sends it along the path.
fn extend_path(core: &Core, connection: &Connection, heading: &Heading, own: &VerifiedPeer) {
    let Some(svid) = core.inputs.svid.get().filter(|svid| svid.id() == own.id()) else { return };
    let signed = passthrough::sign_extension(&svid, &heading.destination, connection.id, None, heading.hello, now());
    match signed {
        Ok(header) => core.inputs.control.extend(connection.id, &connection.service, header),
        Err(error) => warn!(connection = %connection.id, %error, "no extension could be signed"),
    }
}

/// The destination's part: moves the deadlines of inbound connections that the same identity opened to the same
/// service. Bit *i* of the answer is set if the *i*-th was moved.
pub(crate) fn moved(
    core: &Core,
    client: &VerifiedPeer,
    deadline: Timestamp,
    service: &Service,
    renews: &[Exporter],
) -> u64 {
    let mut bits = 0_u64;
    for (place, exporter) in renews.iter().take(RENEWS_MAX).enumerate() {
        let Some(connection) = core.connections.by_exporter(exporter) else { continue };
        let mut state = connection.state();
        if connection.service.id != service.id || state.peer.id() != client.id() || connection.was_cut() {
            continue;
        }
        state.peer = client.clone();
        state.deadline = state.deadline.max(deadline);
        bits |= 1 << place;
    }
    metrics::renewal("server", "moved", bits.count_ones() as usize);
    bits
}

/// An edge's part: a fresh header for a live passage moves its deadline, and goes on along the path.
pub(crate) fn extend(core: &Core, id: ConnectionId, header: &[u8], from: Option<ClusterId>) -> Result<(), Denial> {
    let result = try_extend(core, id, header, from);
    match &result {
        Ok(()) => metrics::renewal("passage", "moved", 1),
        Err(refusal) => {
            metrics::renewal("passage", "refused", 1);
            warn!(
                connection = %id,
                reason = refusal.denial.reason.as_str(),
                check = refusal.word,
                detail = %refusal.detail,
                "passage was not extended"
            );
        }
    }
    result.map_err(|refusal| refusal.denial)
}

fn try_extend(core: &Core, id: ConnectionId, header: &[u8], from: Option<ClusterId>) -> Result<(), Refusal> {
    let nowhere =
        |word, detail: &dyn std::fmt::Display| Refusal::new(DenialReason::Malformed, None, "").because(word, detail);
    let passage = core
        .connections
        .get(id, Direction::Passage)
        .filter(|passage| passage.from == from)
        .ok_or_else(|| nowhere("unknown_connection", &"no passage of this id came from there"))?;
    let parsed = match passthrough::parse(header) {
        Ok(Some((parsed, taken))) if taken == header.len() => parsed,
        Ok(_) => return Err(nowhere("header_length", &"the header is cut short, or followed by something")),
        Err(error) => return Err(nowhere(error.reason(), &error)),
    };
    let (source, heading) = {
        let state = passage.state();
        (state.peer.id().clone(), state.heading.clone())
    };
    let heading = heading.ok_or_else(|| nowhere("no_heading", &"the passage has no header to extend"))?;
    let live = passthrough::Extended {
        source: &source,
        destination: &heading.destination,
        connection: id,
        hello_digest: heading.hello,
        at: heading.at,
    };
    let now = now();
    let name = &passage.service.name;
    let signed = passthrough::verify_extension(&parsed, &live, &core.inputs.verifier, now)
        .map_err(|error| Refusal::new(DenialReason::WrongProof, Some(&source), name).because(error.reason(), &error))?;
    let law = Law::in_force(&core.inputs, Some(&source), name)?;
    let standing = law.stands(&passage, &signed, now)?;
    {
        let mut state = passage.state();
        state.deadline = state.deadline.max(signed.not_after());
        state.peer = signed;
        (state.rule, state.lease) = (standing.rule, standing.lease);
        state.heading = Some(Heading { at: parsed.at, ..heading });
    }
    core.inputs.control.extend(id, &passage.service, header.to_vec());
    Ok(())
}
