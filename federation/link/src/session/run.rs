//! Runs one session to its end: control stream, heartbeats, deadline, replication, and the streams that the peer opens.
//!
//! All of it is one task, so that a session is gone as a whole; only the first frames of new streams are read beside it.

use std::{pin::pin, sync::Arc, time::Duration};

use federation_identity::now;
use federation_model::{ConnectionId, Digest, Message};
use proto::federation::{Heartbeat, HeartbeatAck, Receipt, VectorDigest};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::{Instant, MissedTickBehavior},
};

use super::Streams;
use crate::{
    Event, Shared,
    endpoint::code,
    intake, leaving,
    limits::{
        CLOCK_SKEW_ALARM, HEARTBEAT_STALL_MAX, HEARTBEATS_MISSED_MAX, OPENINGS_MAX, RECEIPTS_MAX, RECEIPTS_WAIT_MAX,
        WRITE_STALL_MAX,
    },
    metrics,
    registry::{Direction, Outgoing, Session, lock},
    replicate::Command,
    tunnel::Tunnel,
    wire::{self, CONTROL_BYTES_MAX, FRAME_BYTES_MAX, Frame, OPEN_BYTES_MAX, WireError, printable},
};

/// Checks of deadline and silence per heartbeat.
const CHECKS_PER_HEARTBEAT: u32 = 4;
/// Priorities of streams (higher goes first): heartbeats must pass bulk.
const PRIORITY_CONTROL: i32 = 2;
const PRIORITY_REPLICATION: i32 = 1;

/// How a session ends, from this side.
struct Ending {
    code: VarInt,
    reason: &'static str,
    detail: Option<String>,
}

impl Ending {
    fn new(code: VarInt, reason: &'static str) -> Self {
        Self { code, reason, detail: None }
    }

    fn wire(error: &WireError) -> Self {
        Self { code: code::PROTOCOL, reason: error.reason(), detail: Some(error.to_string()) }
    }
}

/// Heartbeats that were sent and not answered yet, newest last.
#[derive(Default)]
struct Beats {
    number: u64,
    sent: std::collections::VecDeque<(u64, Instant)>,
}

pub(super) async fn run(
    shared: Arc<Shared>,
    session: Arc<Session>,
    streams: Streams,
    control_queue: mpsc::Receiver<Box<Frame>>,
    replication_queue: mpsc::Receiver<Outgoing>,
) {
    let Streams { control: (control_send, control_receive), replication } = streams;
    let _ = control_send.set_priority(PRIORITY_CONTROL);
    let (replication_given, replication_awaited) = oneshot::channel();
    let (mut given, mut opened) = (Some(replication_given), None);
    match replication {
        Some(streams) => {
            given.take().map(|sender| sender.send(streams).ok());
        }
        None => opened = given.take(),
    }
    let beats = std::sync::Mutex::new(Beats::default());
    let ending = {
        let mut read = pin!(read_control(&shared, &session, control_receive, &beats));
        let mut write = pin!(write_control(control_send, control_queue));
        let mut watch = pin!(watch(&shared, &session, &beats));
        let mut accept = pin!(accept(&shared, &session, opened));
        let mut replicate = pin!(replicate(&shared, &session, replication_awaited, replication_queue));
        tokio::select! {
            error = session.connection.closed() => Ending {
                code: code::DONE,
                reason: closed_reason(&session),
                detail: Some(super::ended(&error).to_string()),
            },
            ending = &mut read => ending,
            ending = &mut write => ending,
            ending = &mut watch => ending,
            ending = &mut accept => ending,
            ending = &mut replicate => ending,
            () = shared.cancel.cancelled() => Ending::new(code::SHUTDOWN, "shutdown"),
        }
    };
    finish(&shared, &session, ending);
}

/// The word of an end that the connection brought: ours if we closed it elsewhere.
fn closed_reason(session: &Session) -> &'static str {
    let own = *lock(&session.ending);
    own.unwrap_or(match session.connection.close_reason() {
        Some(quinn::ConnectionError::TimedOut) => "silent",
        Some(quinn::ConnectionError::ApplicationClosed(_)) => "closed_by_peer",
        _ => "lost",
    })
}

fn finish(shared: &Shared, session: &Session, ending: Ending) {
    // What the connection already said of its end is nearer to the cause than a stream that broke with it.
    let (reason, detail) = match session.connection.close_reason() {
        Some(error) => (closed_reason(session), Some(super::ended(&error).to_string())),
        None => (ending.reason, ending.detail),
    };
    session.connection.close(ending.code, reason.as_bytes());
    ::metrics::counter!(metrics::SESSIONS_CLOSED, "reason" => reason).increment(1);
    let shown = match (&detail, reason) {
        (Some(detail), "closed_by_peer" | "lost" | "silent") => detail.clone(),
        (Some(detail), _) => format!("{reason}: {detail}"),
        (None, _) => reason.to_owned(),
    };
    tracing::info!(
        cluster = %session.name,
        number = session.number,
        reason,
        detail = detail.as_deref().unwrap_or_default(),
        "session ended"
    );
    leaving::ended(shared, session);
    if shared.registry.remove(session, &shown) {
        shared.emit(Event::SessionClosed { member: session.member });
    }
}

async fn read_control(
    shared: &Arc<Shared>,
    session: &Arc<Session>,
    mut receive: RecvStream,
    beats: &std::sync::Mutex<Beats>,
) -> Ending {
    loop {
        let frame = match wire::read(&mut receive, CONTROL_BYTES_MAX).await {
            Ok(frame) => frame,
            Err(error) => return Ending::wire(&error),
        };
        shared.registry.note(&session.member, |past| past.heard = Some(Instant::now()));
        let fault = match frame {
            Frame::Heartbeat(beat) => {
                let ack = HeartbeatAck { number: beat.number, now_ms: now().as_millis() };
                session.tell(Frame::HeartbeatAck(ack));
                None
            }
            Frame::HeartbeatAck(ack) => {
                answered(session, beats, &ack);
                None
            }
            Frame::Denied(denied) => ConnectionId::try_from(denied.connection.as_slice()).err().or_else(|| {
                let connection = ConnectionId::try_from(denied.connection.as_slice()).ok()?;
                shared.emit(Event::Denied {
                    member: session.member,
                    connection,
                    reason: printable(&denied.reason),
                    detail: printable(&denied.detail),
                });
                None
            }),
            Frame::Extend(extend) => match ConnectionId::try_from(extend.connection.as_slice()) {
                Ok(connection) => {
                    let (member, peer) = (session.member, session.peer());
                    shared.emit(Event::Extend { member, peer, connection, header: extend.header });
                    None
                }
                Err(error) => Some(error),
            },
            Frame::Receipt(receipt) => {
                hear(shared, session, vec![receipt]).await;
                None
            }
            Frame::Receipts(batch) if batch.receipts.len() <= RECEIPTS_MAX => {
                hear(shared, session, batch.receipts).await;
                None
            }
            Frame::Leaving(said) => leaving::heard(shared, session, &said).err(),
            other => return Ending::wire(&WireError::Unexpected { got: wire::name(&other) }),
        };
        if let Some(detail) = fault {
            return Ending { code: code::PROTOCOL, reason: "connection_id", detail: Some(detail.to_owned()) };
        }
    }
}

/// Hands receipts to the driver, which may have its hands full of them: all members confirm a change at once.
async fn hear(shared: &Shared, session: &Arc<Session>, receipts: Vec<Receipt>) {
    let command = Command::Receipts { session: session.clone(), receipts };
    // Heartbeats come behind them on this stream. What is lost here, the member's next whole receipt says again.
    if shared.driver.send_timeout(command, RECEIPTS_WAIT_MAX).await.is_err() {
        ::metrics::counter!(metrics::DROPPED, "queue" => "driver").increment(1);
    }
}

/// Round trip and clock offset from one answered heartbeat.
fn answered(session: &Session, beats: &std::sync::Mutex<Beats>, ack: &HeartbeatAck) {
    let sent = {
        let mut beats = lock(beats);
        let at = beats.sent.iter().position(|(number, _)| *number == ack.number);
        at.and_then(|at| beats.sent.drain(..=at).next_back())
    };
    let Some((_, sent)) = sent else { return };
    let rtt = sent.elapsed();
    ::metrics::histogram!(metrics::RTT).record(rtt.as_secs_f64());
    let theirs = i64::try_from(ack.now_ms).unwrap_or(i64::MAX);
    let half = i64::try_from(rtt.as_millis() / 2).unwrap_or(0);
    let ours = i64::try_from(now().as_millis()).unwrap_or(i64::MAX);
    let offset = theirs.saturating_add(half).saturating_sub(ours);
    let mut health = lock(&session.health);
    health.rtt = Some(rtt);
    health.clock_offset_ms = Some(offset);
    health.answered = Instant::now();
    if offset.unsigned_abs() > CLOCK_SKEW_ALARM.as_millis() as u64 && !health.skew_told {
        health.skew_told = true;
        tracing::warn!(cluster = %session.name, clock_offset_ms = offset, "clocks differ by more than 60 s");
    }
}

async fn write_control(mut send: SendStream, mut queue: mpsc::Receiver<Box<Frame>>) -> Ending {
    while let Some(frame) = queue.recv().await {
        if let Err(error) = wire::write_within(&mut send, *frame, WRITE_STALL_MAX).await {
            return Ending::wire(&error);
        }
    }
    Ending::new(code::DONE, "done")
}

/// Heartbeats out, and the four reasons to end a session from here: deadline, death, replacement, a stuck peer.
async fn watch(shared: &Arc<Shared>, session: &Arc<Session>, beats: &std::sync::Mutex<Beats>) -> Ending {
    let limits = &shared.limits;
    let mut ticks = tokio::time::interval((limits.heartbeat / CHECKS_PER_HEARTBEAT).max(Duration::from_millis(5)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next_beat = Instant::now();
    let mut packets = (0, Instant::now());
    let mut replaced: Option<Instant> = None;
    loop {
        let left = session.deadline().since(now());
        // The deadline may fall between two ticks; it is met to the millisecond.
        tokio::select! {
            _ = ticks.tick() => {}
            () = tokio::time::sleep(left) => {}
        }
        if session.deadline() <= now() {
            return Ending::new(code::EXPIRED, "expired");
        }
        if next_beat <= Instant::now() {
            next_beat = Instant::now() + limits.heartbeat;
            let number = {
                let mut beats = lock(beats);
                beats.number += 1;
                let number = beats.number;
                beats.sent.push_back((number, Instant::now()));
                while beats.sent.len() > 2 * HEARTBEAT_STALL_MAX.as_secs() as usize {
                    beats.sent.pop_front();
                }
                number
            };
            session.tell(Frame::Heartbeat(Heartbeat { number, now_ms: now().as_millis() }));
        }
        let received = session.connection.stats().udp_rx.datagrams;
        if received != packets.0 {
            packets = (received, Instant::now());
        }
        // A peer whose tunnels fill the connection's window cannot answer, but its packets still come.
        let unanswered = lock(&session.health).answered.elapsed();
        let silent = packets.1.elapsed();
        let dead = limits.heartbeat * HEARTBEATS_MISSED_MAX;
        if (unanswered > dead && silent > dead) || unanswered > HEARTBEAT_STALL_MAX.max(dead) {
            return Ending::new(code::DEAD, "dead");
        }
        if session.tunnel_count() == 0 && !shared.registry.is_preferred(session) {
            if replaced.get_or_insert_with(Instant::now).elapsed() >= limits.retired_grace {
                return Ending::new(code::REPLACED, "replaced");
            }
        } else {
            replaced = None;
        }
    }
}

/// Takes the streams that the peer opens.
async fn accept(
    shared: &Arc<Shared>,
    session: &Arc<Session>,
    mut replication: Option<oneshot::Sender<(SendStream, RecvStream)>>,
) -> Ending {
    let openings = Arc::new(Semaphore::new(OPENINGS_MAX));
    let (replication_opened, mut replications) = mpsc::channel::<Box<(SendStream, RecvStream)>>(1);
    loop {
        let permit = openings.clone().acquire_owned().await;
        let (send, receive) = tokio::select! {
            streams = session.connection.accept_bi() => match streams {
                Ok(streams) => streams,
                // The connection's own end says why.
                Err(_) => std::future::pending().await,
            },
            Some(streams) = replications.recv() => {
                match replication.take() {
                    Some(sender) if session.direction == Direction::Accepted => { let _ = sender.send(*streams); }
                    _ => return Ending::wire(&WireError::Unexpected { got: "open_replication" }),
                }
                continue;
            }
        };
        let (shared, session, opened) = (shared.clone(), session.clone(), replication_opened.clone());
        tokio::spawn(async move {
            let _permit = permit;
            open(&shared, &session, send, receive, opened).await;
        });
    }
}

/// Reads the first frame of one stream.
async fn open(
    shared: &Shared,
    session: &Session,
    send: SendStream,
    mut receive: RecvStream,
    replication: mpsc::Sender<Box<(SendStream, RecvStream)>>,
) {
    match wire::read_within(&mut receive, OPEN_BYTES_MAX, shared.limits.handshake).await {
        Ok(Frame::OpenTunnel(_)) => {
            ::metrics::counter!(metrics::TUNNELS_OPENED, "direction" => "inbound").increment(1);
            let tunnel = Tunnel::new(session, send, receive);
            session.make_room(shared.limits.tunnels_max);
            match shared.tunnels.try_send(tunnel) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(tunnel) | mpsc::error::TrySendError::Closed(tunnel)) => {
                    ::metrics::counter!(metrics::DROPPED, "queue" => "tunnels").increment(1);
                    tunnel.refuse(code::OVERLOADED);
                }
            }
        }
        Ok(Frame::OpenReplication(_)) => {
            let _ = replication.send(Box::new((send, receive))).await;
        }
        Ok(other) => session.close(code::PROTOCOL, WireError::Unexpected { got: wire::name(&other) }.reason()),
        Err(error) if error.is_fault_of_peer() => session.close(code::PROTOCOL, error.reason()),
        Err(_) => {}
    }
}

/// Vectors and records, both ways.
async fn replicate(
    shared: &Arc<Shared>,
    session: &Arc<Session>,
    streams: oneshot::Receiver<(SendStream, RecvStream)>,
    queue: mpsc::Receiver<Outgoing>,
) -> Ending {
    let Ok((send, receive)) = streams.await else { return std::future::pending().await };
    let _ = send.set_priority(PRIORITY_REPLICATION);
    tokio::select! {
        ending = write_replication(send, queue) => ending,
        ending = read_replication(shared, session, receive) => ending,
    }
}

async fn write_replication(mut send: SendStream, mut queue: mpsc::Receiver<Outgoing>) -> Ending {
    while let Some(message) = queue.recv().await {
        let frames = match message {
            Outgoing::Message(Message::Vector { vector, ask }) => wire::vector_frames(&vector, ask),
            Outgoing::Message(Message::Records(envelopes)) => wire::records_frames(&envelopes),
            Outgoing::Digest { digest, ask } => {
                vec![Frame::VectorDigest(VectorDigest { digest: digest.0.to_vec(), ask })]
            }
        };
        for frame in frames {
            if let Err(error) = wire::write_within(&mut send, frame, WRITE_STALL_MAX).await {
                return Ending::wire(&error);
            }
        }
    }
    Ending::new(code::DONE, "done")
}

async fn read_replication(shared: &Arc<Shared>, session: &Arc<Session>, mut receive: RecvStream) -> Ending {
    let mut parts = wire::Parts::default();
    loop {
        let command = match wire::read(&mut receive, FRAME_BYTES_MAX).await {
            Ok(Frame::Vector(frame)) => match parts.add(frame) {
                Ok(Some((vector, ask))) => Command::Vector { session: session.clone(), vector, ask },
                Ok(None) => continue,
                Err(error) => {
                    return Ending { code: code::PROTOCOL, reason: "vector", detail: Some(error) };
                }
            },
            Ok(other) if parts.is_open() => return Ending::wire(&WireError::Unexpected { got: wire::name(&other) }),
            Ok(Frame::VectorDigest(frame)) => match frame.digest.as_slice().try_into().map(Digest) {
                Ok(digest) => Command::Digest { session: session.clone(), digest, ask: frame.ask },
                Err(_) => return Ending::new(code::PROTOCOL, "vector_digest"),
            },
            Ok(Frame::Records(records)) if records.envelopes.len() <= wire::ENVELOPES_MAX => {
                let snapshot = shared.snapshot.borrow().clone();
                let checked = intake::check(records.envelopes, snapshot, &shared.recent).await;
                Command::Records { session: session.clone(), checked }
            }
            Ok(Frame::Records(_)) => {
                return Ending::new(code::PROTOCOL, "too_many_envelopes");
            }
            Ok(other) => return Ending::wire(&WireError::Unexpected { got: wire::name(&other) }),
            Err(error) => return Ending::wire(&error),
        };
        // Waits for the driver: what the peer sends faster than it can be kept stays in the stream's window.
        if shared.driver.send(command).await.is_err() {
            return Ending::new(code::SHUTDOWN, "shutdown");
        }
    }
}

/// The bytes that a connection carried, both ways.
pub(crate) fn bytes(connection: &Connection) -> (u64, u64) {
    let stats = connection.stats();
    (stats.udp_tx.bytes, stats.udp_rx.bytes)
}
