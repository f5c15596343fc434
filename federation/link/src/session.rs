//! A session: two edges that proved themselves, greeted, and now share a control stream, a replication stream and
//! tunnels.
//!
//! In: a QUIC connection whose handshake is done. Out: a [`Session`] in the registry, and a task that runs it to its end.
//! Order of the greeting: identity from the TLS chain, then versions, then federation and cluster, then what it renews.
//! Never: lets a stream but the first be read before the greeting is done.

mod run;

pub(crate) use run::bytes;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32},
    },
    time::Duration,
};

use federation_identity::now;
use federation_model::{Member, Snapshot, Timestamp, VerifiedPeer};
use proto::federation::{Hello, HelloAck, OpenReplication};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::{sync::mpsc, time::Instant};
use tracing::Instrument;

use crate::{
    SessionError, Shared, endpoint,
    endpoint::code,
    leaving, level,
    limits::{CONTROL_QUEUE, RENEWS_MAX, REPLICATION_QUEUE, STREAMS_BESIDES, TUNNELS_FIRST},
    metrics, receipts,
    registry::{Direction, Health, Session, Standing, half_way},
    wire::{self, Frame, HELLO_BYTES_MAX, printable},
};

/// Lowest and highest version of `hanse-fed/1` that this edge speaks.
pub(crate) const VERSION_MIN: u32 = 1;
pub(crate) const VERSION_MAX: u32 = 1;
/// Optional features of this edge.
pub(crate) const FEATURES: [&str; 4] = [receipts::FEATURE, receipts::BATCHES, level::FEATURE, leaving::FEATURE];
/// What this edge says of its build.
pub(crate) const BUILD: &str = concat!("hanse/", env!("CARGO_PKG_VERSION"));
/// Label of the exporter that names a session (RFC 8446, 7.5).
pub(crate) const EXPORTER_LABEL: &[u8] = b"EXPORTER-hanse-session";

/// Streams of an established connection that the greeting opened.
pub(crate) struct Streams {
    control: (SendStream, RecvStream),
    /// `None` on the side that accepts: the dialler opens it.
    replication: Option<(SendStream, RecvStream)>,
}

/// Who the peer is, as this very connection proves, and how long that holds.
struct Proved {
    peer: VerifiedPeer,
    chain: Arc<[CertificateDer<'static>]>,
    member: Member,
    exporter: [u8; 32],
    deadline: Timestamp,
}

impl Proved {
    /// What a session stands on by this.
    fn standing(&self) -> Standing {
        Standing {
            peer: self.peer.clone(),
            chain: Arc::clone(&self.chain),
            deadline: self.deadline,
            renew_at: half_way(now(), self.deadline),
        }
    }
}

/// Identity before anything else: a chain of a member's edge, under that member's own bundle.
fn prove(
    shared: &Shared,
    connection: &Connection,
    own_end: Timestamp,
) -> Result<(Proved, Arc<Snapshot>), SessionError> {
    let refuse = |reason: &'static str, detail: String| SessionError::Refuse { reason, detail };
    let chain = endpoint::peer_chain(connection);
    let peer = shared.verifier.session_peer(&chain, now()).map_err(|error| refuse("identity", error.to_string()))?;
    let snapshot = shared.snapshot.borrow().clone();
    let snapshot = snapshot.ok_or_else(|| refuse("not_ready", "this edge has no readable law yet".into()))?;
    let member = snapshot.members.by_trust_domain(peer.trust_domain());
    let member = member.ok_or_else(|| refuse("not_a_member", format!("{} is no member's", peer.trust_domain())))?;
    if *peer.id() != member.trust_domain.edge(&member.name) {
        return Err(refuse("identity", format!("{} is not the edge of {}", peer.id(), member.name)));
    }
    if member.id == shared.own {
        return Err(refuse("own_cluster", "this is the edge itself".into()));
    }
    if !member.state.is_active() {
        return Err(refuse(member.state.as_str(), format!("{} is {} here", member.name, member.state)));
    }
    let exporter = endpoint::exporter(connection, EXPORTER_LABEL);
    let exporter = exporter.ok_or_else(|| refuse("exporter", "the connection exports no key".into()))?;
    let deadline = peer.not_after().min(own_end);
    let proved = Proved { peer, chain: chain.into(), member: member.clone(), exporter, deadline };
    Ok((proved, snapshot))
}

/// What the peer's greeting said of its build. Only these words decide what it is sent: never the build's own text.
#[derive(Clone, Debug)]
pub(crate) struct Spoken {
    /// It reads receipts.
    pub(crate) receipts: bool,
    /// Many of them in one frame.
    pub(crate) batches: bool,
    /// It compares digests of vectors.
    pub(crate) digests: bool,
    /// It reads that something on a path leaves.
    pub(crate) leaving: bool,
    /// Its build in its own words, fit for a person.
    pub(crate) build: String,
}

impl Spoken {
    fn new(features: &[String], build: &str) -> Self {
        let named = |wanted: &str| features.iter().any(|feature| feature == wanted);
        Self {
            receipts: named(receipts::FEATURE),
            batches: named(receipts::BATCHES),
            digests: named(level::FEATURE),
            leaving: named(leaving::FEATURE),
            build: printable(build),
        }
    }
}

/// When this edge's own SVID ends; `None` while it has none.
pub(crate) fn own_end(shared: &Shared) -> Option<Timestamp> {
    shared.live_svid.get().map(|svid| svid.not_after())
}

/// Greets as the one who dialled, standing for `renews` too, and runs the session. `own_end` was read before the dial.
pub(crate) async fn begin_dialled(
    shared: &Arc<Shared>,
    connection: Connection,
    wanted: &Member,
    renews: &[Arc<Session>],
    own_end: Timestamp,
) -> Result<Arc<Session>, SessionError> {
    let (proved, snapshot) = prove(shared, &connection, own_end)?;
    if proved.member.id != wanted.id {
        let detail = format!("{} answered", proved.member.name);
        return Err(SessionError::Identity {
            address: connection.remote_address(),
            member: wanted.name.to_string(),
            detail,
        });
    }
    if !renews.is_empty() && !is_worth_it(proved.deadline, renews) {
        connection.close(code::PROBE, b"no_gain");
        return Err(SessionError::NoGain);
    }
    let limit = shared.limits.handshake;
    let greeting = async {
        let mut control = connection.open_bi().await.map_err(|error| ended(&error))?;
        let hello = Frame::Hello(Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            features: FEATURES.iter().map(ToString::to_string).collect(),
            build: BUILD.to_owned(),
            federation: snapshot.federation.as_bytes().to_vec(),
            cluster: shared.own.as_bytes().to_vec(),
            renews: renews.iter().take(RENEWS_MAX).map(|session| session.exporter.to_vec()).collect(),
            now_ms: now().as_millis(),
        });
        wire::write(&mut control.0, hello).await.map_err(|error| closed_or(&connection, error))?;
        match wire::read(&mut control.1, HELLO_BYTES_MAX).await {
            Ok(Frame::HelloAck(ack)) if (VERSION_MIN..=VERSION_MAX).contains(&ack.version) => {
                Ok((control, Spoken::new(&ack.features, &ack.build)))
            }
            Ok(Frame::HelloAck(ack)) => Err(SessionError::Refuse {
                reason: "version",
                detail: format!("the peer chose version {}, {VERSION_MIN} to {VERSION_MAX} were offered", ack.version),
            }),
            Ok(Frame::Refusal(refusal)) => {
                Err(SessionError::Refused { reason: printable(&refusal.reason), detail: printable(&refusal.detail) })
            }
            Ok(other) => Err(wire::WireError::Unexpected { got: wire::name(&other) }.into()),
            Err(error) => Err(closed_or(&connection, error)),
        }
    };
    let (control, spoken) = tokio::time::timeout(limit, greeting)
        .await
        .unwrap_or_else(|_| Err(wire::WireError::TimedOut(limit).into()))
        .inspect_err(|error| connection.close(code::PROTOCOL, error.reason().as_bytes()))?;
    let mut replication = connection.open_bi().await.map_err(|error| ended(&error))?;
    wire::write_within(&mut replication.0, Frame::OpenReplication(OpenReplication {}), limit).await?;
    renew(renews, &proved);
    let streams = Streams { control, replication: Some(replication) };
    Ok(start(shared, connection, proved, Direction::Dialled, spoken, streams))
}

/// Greets as the one who accepted, and runs the session. A refusal is told to the peer before it is returned.
pub(crate) async fn begin_accepted(
    shared: &Arc<Shared>,
    connection: Connection,
    own_end: Timestamp,
) -> Result<Arc<Session>, SessionError> {
    let limit = shared.limits.handshake;
    let opened = tokio::time::timeout(limit, connection.accept_bi()).await;
    let mut control = match opened {
        Ok(Ok(streams)) => streams,
        Ok(Err(error)) => return Err(ended(&error)),
        Err(_) => {
            connection.close(code::PROTOCOL, b"timed_out");
            return Err(wire::WireError::TimedOut(limit).into());
        }
    };
    let answered = answer(shared, &connection, &mut control, own_end, limit).await;
    let (proved, spoken) = match answered {
        Ok(answered) => answered,
        Err(error) => {
            refuse(&connection, &mut control.0, &error, limit).await;
            return Err(error);
        }
    };
    let streams = Streams { control, replication: None };
    Ok(start(shared, connection, proved, Direction::Accepted, spoken, streams))
}

async fn answer(
    shared: &Arc<Shared>,
    connection: &Connection,
    control: &mut (SendStream, RecvStream),
    own_end: Timestamp,
    limit: Duration,
) -> Result<(Proved, Spoken), SessionError> {
    let refuse = |reason: &'static str, detail: String| SessionError::Refuse { reason, detail };
    let hello = match wire::read_within(&mut control.1, HELLO_BYTES_MAX, limit).await? {
        Frame::Hello(hello) => hello,
        other => return Err(wire::WireError::Unexpected { got: wire::name(&other) }.into()),
    };
    let version = hello.version_max.min(VERSION_MAX);
    if version < hello.version_min.max(VERSION_MIN) {
        let detail = format!(
            "this edge speaks versions {VERSION_MIN} to {VERSION_MAX}, the peer {} to {}: bring the older one up to date",
            hello.version_min, hello.version_max
        );
        return Err(refuse("version", detail));
    }
    if hello.renews.len() > RENEWS_MAX || hello.renews.iter().any(|value| value.len() != 32) {
        return Err(refuse("renews", format!("at most {RENEWS_MAX} values of 32 bytes may be renewed at once")));
    }
    let (proved, snapshot) = prove(shared, connection, own_end)?;
    if hello.federation != snapshot.federation.as_bytes() {
        let detail = format!("this cluster is in federation {}", snapshot.federation.short());
        return Err(refuse("other_federation", detail));
    }
    if hello.cluster != proved.member.id.as_bytes() {
        return Err(refuse("cluster_id", format!("the id in the greeting is not that of {}", proved.member.name)));
    }
    let ack = Frame::HelloAck(HelloAck {
        version,
        features: FEATURES.iter().map(ToString::to_string).collect(),
        build: BUILD.to_owned(),
        now_ms: now().as_millis(),
    });
    let renewed: Vec<Arc<Session>> = shared.registry.of(&proved.member.id);
    let renewed = renewed.into_iter().filter(|session| {
        session.direction == Direction::Accepted && hello.renews.iter().any(|value| *value == session.exporter)
    });
    renew(&renewed.collect::<Vec<_>>(), &proved);
    wire::write_within(&mut control.0, ack, limit).await?;
    Ok((proved, Spoken::new(&hello.features, &hello.build)))
}

/// Whether a successor gives at least half as much time again as is left. Every SVID is renewed at half life, so it does
/// before a third of the life is left; until then two sides that renew out of step would only make sessions.
fn is_worth_it(deadline: Timestamp, renews: &[Arc<Session>]) -> bool {
    let now = now();
    renews.iter().any(|session| {
        let left = session.deadline().since(now);
        deadline.since(now) >= left + left / 2
    })
}

/// Both sides verified the same identities again: the sessions named go on until the new deadline.
fn renew(sessions: &[Arc<Session>], proved: &Proved) {
    for session in sessions.iter().filter(|session| session.member == proved.member.id) {
        if session.renew(proved.standing()) {
            ::metrics::counter!(metrics::RENEWALS).increment(1);
            tracing::debug!(cluster = %session.name, number = session.number, "session renewed by its successor");
        }
    }
}

/// Tells the peer why, by frame and by the reason of the close, and waits a moment for it to have arrived.
async fn refuse(connection: &Connection, send: &mut SendStream, error: &SessionError, limit: Duration) {
    let reason = error.reason();
    ::metrics::counter!(metrics::REFUSALS, "reason" => reason).increment(1);
    let told = async {
        if wire::write(send, wire::refusal(reason, error.to_string())).await.is_ok() && send.finish().is_ok() {
            let _ = send.stopped().await;
        }
    };
    let _ = tokio::time::timeout(limit.min(Duration::from_secs(1)), told).await;
    connection.close(code::REFUSED, reason.as_bytes());
}

/// Enters the session in the registry and starts its task.
fn start(
    shared: &Arc<Shared>,
    connection: Connection,
    proved: Proved,
    direction: Direction,
    spoken: Spoken,
    streams: Streams,
) -> Arc<Session> {
    let (control, control_queue) = mpsc::channel(CONTROL_QUEUE);
    let (replication, replication_queue) = mpsc::channel(REPLICATION_QUEUE);
    let room = shared.limits.tunnels_max.min(TUNNELS_FIRST);
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(room.saturating_add(STREAMS_BESIDES)));
    let standing = proved.standing();
    let Proved { member, exporter, .. } = proved;
    let session = Arc::new(Session {
        number: shared.registry.next_number(),
        member: member.id,
        name: member.name.clone(),
        direction,
        connection,
        exporter,
        spoken,
        leaving: AtomicBool::new(false),
        control,
        replication,
        standing: Mutex::new(standing),
        health: Mutex::new(Health { rtt: None, clock_offset_ms: None, answered: Instant::now(), skew_told: false }),
        tunnels: Arc::new(AtomicU32::new(0)),
        room: Mutex::new(room),
        ending: Mutex::new(None),
    });
    tracing::info!(
        cluster = %member.name,
        address = %session.connection.remote_address(),
        direction = direction.as_str(),
        number = session.number,
        "session began"
    );
    shared.registry.insert(session.clone());
    let span = tracing::debug_span!("session", cluster = %member.name, number = session.number);
    let task = run::run(shared.clone(), session.clone(), streams, control_queue, replication_queue);
    shared.tasks.spawn(task.instrument(span));
    session
}

/// What a connection says of its end, fit for a person.
pub(crate) fn ended(error: &quinn::ConnectionError) -> SessionError {
    match error {
        quinn::ConnectionError::ApplicationClosed(close) if close.error_code != code::SHUTDOWN => {
            let reason = printable(&String::from_utf8_lossy(&close.reason));
            SessionError::Refused { detail: format!("the peer closed the connection: {reason}"), reason }
        }
        other => SessionError::Ended(printable(&other.to_string())),
    }
}

/// The connection's own reason says more than a stream that broke with it.
fn closed_or(connection: &Connection, error: wire::WireError) -> SessionError {
    match connection.close_reason() {
        Some(reason) if !error.is_fault_of_peer() => ended(&reason),
        _ => error.into(),
    }
}
