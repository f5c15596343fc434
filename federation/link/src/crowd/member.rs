//! One thin member: dials the hub, greets, answers, and says that it enforces what the hub told it.
//!
//! In: its keys, where the hub is. Out: what a hub sees of a member that is level with it. Never: keeps a record.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use federation_identity::{LiveSvid, LocalSigner, Signer, Verifier, now, tls};
use federation_model::{Audience, ClusterId, RECEIPT_LOGS_MAX, Receipt, TrustDomain};
use proto::{
    convert::{decode_envelope, encode_receipt},
    federation::{self as frames, Heartbeat, HeartbeatAck, Hello, OpenReplication},
};
use quinn::{ClientConfig, RecvStream, SendStream};
use tokio::time::{Instant, MissedTickBehavior};

use super::{Actor, CrowdError, Stage, failed};
use crate::{
    SessionError,
    endpoint::{self, SERVER_NAME},
    limits::{HEARTBEAT_STALL_MAX, HEARTBEATS_MISSED_MAX, WRITE_STALL_MAX},
    receipts,
    session::{BUILD, FEATURES, VERSION_MAX, VERSION_MIN, ended},
    supervisor,
    wire::{self, CONTROL_BYTES_MAX, FRAME_BYTES_MAX, Frame, HELLO_BYTES_MAX},
};

/// A session that lived this long was a success: backoff starts over.
const SETTLED: Duration = Duration::from_secs(10);

pub(super) struct Member {
    stage: Arc<Stage>,
    signer: LocalSigner,
    id: ClusterId,
    config: ClientConfig,
    endpoint: quinn::Endpoint,
    /// Number of its last receipt.
    number: u64,
    _svid: LiveSvid,
}

impl Member {
    pub(super) fn new(
        stage: &Arc<Stage>,
        actor: &Actor,
        verifier: &Verifier,
        hub: TrustDomain,
        endpoint: quinn::Endpoint,
    ) -> Result<Self, CrowdError> {
        let (signer, svid) = (actor.signer()?, actor.svid()?);
        let tls = tls::session_client(&svid, verifier, hub).map_err(|error| failed("TLS")(error.to_string()))?;
        let config = endpoint::client_config(tls, stage.transport.clone()).map_err(failed("TLS"))?;
        let id = signer.candidate().id;
        Ok(Self { stage: stage.clone(), signer, id, config, endpoint, number: 0, _svid: svid })
    }

    /// Dials until it is cancelled, with the pauses of an edge.
    pub(super) async fn run(mut self) {
        let stage = self.stage.clone();
        let mut backoff = stage.limits.backoff_min;
        loop {
            let began = Instant::now();
            let outcome = tokio::select! {
                () = stage.cancel.cancelled() => return,
                outcome = self.session() => outcome,
            };
            if let Err(error) = outcome {
                *super::lock(&stage.seen).failures.entry(error.reason().to_owned()).or_default() += 1;
            }
            if began.elapsed() > SETTLED {
                backoff = stage.limits.backoff_min;
            }
            let pause = backoff.mul_f64(rand::random_range(0.5..1.0));
            backoff = (backoff * 2).min(supervisor::pause_max(&stage.limits, stage.members));
            tokio::select! {
                () = stage.cancel.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// One dial, and the session if there is one, to its end.
    async fn session(&mut self) -> Result<(), SessionError> {
        let (stage, address) = (self.stage.clone(), self.stage.hub);
        let limit = stage.limits.handshake;
        let failed = |detail: String| SessionError::Connect { address, detail };
        let connecting = self.endpoint.connect_with(self.config.clone(), address, SERVER_NAME);
        let connecting = connecting.map_err(|error| failed(error.to_string()))?;
        let connection = tokio::time::timeout(stage.limits.dial, connecting).await;
        let connection = connection.map_err(|_| failed("no handshake".into()))?;
        let connection = connection.map_err(|error| failed(error.to_string()))?;
        let greeting = async {
            let mut control = connection.open_bi().await.map_err(|error| ended(&error))?;
            let hello = Frame::Hello(Hello {
                version_min: VERSION_MIN,
                version_max: VERSION_MAX,
                features: FEATURES.iter().map(ToString::to_string).collect(),
                build: BUILD.to_owned(),
                federation: stage.federation.as_bytes().to_vec(),
                cluster: self.id.as_bytes().to_vec(),
                renews: Vec::new(),
                now_ms: now().as_millis(),
            });
            wire::write(&mut control.0, hello).await?;
            match wire::read(&mut control.1, HELLO_BYTES_MAX).await? {
                Frame::HelloAck(_) => {}
                Frame::Refusal(refusal) => {
                    return Err(SessionError::Refused { reason: refusal.reason, detail: refusal.detail });
                }
                other => return Err(wire::WireError::Unexpected { got: wire::name(&other) }.into()),
            }
            let mut replication = connection.open_bi().await.map_err(|error| ended(&error))?;
            wire::write(&mut replication.0, Frame::OpenReplication(OpenReplication {})).await?;
            Ok((control, replication))
        };
        let greeted = tokio::time::timeout(limit, greeting).await;
        let (control, replication) = greeted.map_err(|_| wire::WireError::TimedOut(limit))??;
        stage.up.fetch_add(1, Ordering::Relaxed);
        stage.sessions.fetch_add(1, Ordering::Relaxed);
        let outcome = self.live(&connection, control, replication).await;
        stage.up.fetch_sub(1, Ordering::Relaxed);
        connection.close(endpoint::code::DEAD, b"dead");
        outcome
    }

    async fn live(
        &mut self,
        connection: &quinn::Connection,
        (mut say, hear): (SendStream, RecvStream),
        (answer, ask): (SendStream, RecvStream),
    ) -> Result<(), SessionError> {
        let stage = self.stage.clone();
        let (frames_in, mut frames) = tokio::sync::mpsc::channel(64);
        let (news_in, mut news) = tokio::sync::mpsc::channel(64);
        let reading = read_control(hear, frames_in);
        let replicating = replicate(&stage, answer, ask, news_in);
        tokio::pin!(reading, replicating);
        let mut beats = tokio::time::interval(stage.limits.heartbeat);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let dead = stage.limits.heartbeat * HEARTBEATS_MISSED_MAX;
        let mut packets = (0, Instant::now());
        let (mut beat, mut answered) = ((0, Instant::now()), Instant::now());
        let whole_every = receipts::whole_interval(stage.members);
        let mut due = Instant::now() + receipts::gather(stage.members);
        let (mut whole, mut changed) = (None::<Instant>, BTreeMap::new());
        loop {
            tokio::select! {
                error = &mut reading => return Err(error),
                error = &mut replicating => return Err(error),
                Some(logs) = news.recv() => {
                    changed.extend(logs);
                    due = due.min(Instant::now() + receipts::gather(stage.members));
                }
                Some(frame) = frames.recv() => match frame {
                    Frame::Heartbeat(beat) => {
                        let ack = HeartbeatAck { number: beat.number, now_ms: now().as_millis() };
                        wire::write_within(&mut say, Frame::HeartbeatAck(ack), WRITE_STALL_MAX).await?;
                    }
                    Frame::HeartbeatAck(ack) => {
                        answered = Instant::now();
                        if ack.number == beat.0 {
                            let rtt = beat.1.elapsed();
                            stage.sample(|seen| seen.round_trips.push(rtt));
                        }
                    }
                    Frame::Receipt(_) => drop(stage.receipts.fetch_add(1, Ordering::Relaxed)),
                    Frame::Receipts(batch) => {
                        stage.receipts.fetch_add(batch.receipts.len() as u64, Ordering::Relaxed);
                    }
                    _ => {}
                },
                _ = beats.tick() => {
                    // Whose packets come is busy, not dead.
                    let received = connection.stats().udp_rx.datagrams;
                    if received != packets.0 {
                        packets = (received, Instant::now());
                    }
                    let (unanswered, silent) = (answered.elapsed(), packets.1.elapsed());
                    if (unanswered > dead && silent > dead) || unanswered > HEARTBEAT_STALL_MAX {
                        return Err(SessionError::Ended("heartbeats are not answered".into()));
                    }
                    beat = (beat.0 + 1, Instant::now());
                    let heartbeat = Heartbeat { number: beat.0, now_ms: now().as_millis() };
                    wire::write_within(&mut say, Frame::Heartbeat(heartbeat), WRITE_STALL_MAX).await?;
                }
                () = tokio::time::sleep_until(due) => {
                    due = Instant::now() + receipts::spread(receipts::interval(stage.members), stage.members);
                    let is_whole = whole.is_none_or(|at| at.elapsed() > whole_every);
                    let law = if is_whole { super::lock(&stage.heads).clone() } else { std::mem::take(&mut changed) };
                    if is_whole {
                        whole = Some(Instant::now());
                        changed.clear();
                    }
                    for frame in self.receipts(law, is_whole) {
                        wire::write_within(&mut say, Frame::Receipt(frame), WRITE_STALL_MAX).await?;
                    }
                }
            }
        }
    }

    /// What it enforces, in as many receipts as it takes.
    fn receipts(&mut self, law: BTreeMap<(ClusterId, u64), u64>, whole: bool) -> Vec<frames::Receipt> {
        let mut law: Vec<_> = law.into_iter().collect();
        law.sort_by_key(|((writer, _), _)| *writer != self.id);
        // As an edge does: a long account begins with the own log.
        let (first, rest) = law.split_at(if law.len() > RECEIPT_LOGS_MAX { 1 } else { law.len() });
        let mut receipts = Vec::new();
        for (at, law) in std::iter::once(first).chain(rest.chunks(RECEIPT_LOGS_MAX)).enumerate() {
            self.number = (self.number + 1).max(now().as_millis());
            let receipt = Receipt {
                federation: self.stage.federation,
                member: self.id,
                number: self.number,
                at: now(),
                whole: whole && at == 0,
                law: law.iter().copied().collect(),
                neighbours: [(self.stage.hub_id, Duration::from_millis(1))]
                    .into_iter()
                    .filter(|_| whole && at == 0)
                    .collect(),
            };
            let enforced = encode_receipt(&receipt);
            if let Ok(signature) = self.signer.sign_receipt(&enforced) {
                receipts.push(frames::Receipt { enforced, signature: signature.to_vec() });
            }
        }
        receipts
    }
}

async fn read_control(mut hear: RecvStream, frames: tokio::sync::mpsc::Sender<Frame>) -> SessionError {
    loop {
        match wire::read(&mut hear, CONTROL_BYTES_MAX).await {
            Ok(frame) => {
                let _ = frames.send(frame).await;
            }
            Err(error) => return error.into(),
        }
    }
}

type Heads = BTreeMap<(ClusterId, u64), u64>;

/// Answers a vector with the same, and notes when records come.
async fn replicate(
    stage: &Stage,
    mut answer: SendStream,
    mut ask: RecvStream,
    news: tokio::sync::mpsc::Sender<Heads>,
) -> SessionError {
    loop {
        let frame = match wire::read(&mut ask, FRAME_BYTES_MAX).await {
            Ok(frame) => frame,
            Err(error) => return error.into(),
        };
        match frame {
            Frame::Records(records) => {
                let at = now().as_millis();
                stage.sample(|seen| seen.arrivals.push(at));
                let mut heads = Heads::new();
                for raw in &records.envelopes {
                    let _ = note_head(&mut heads, raw);
                }
                super::lock(&stage.heads).extend(heads.clone());
                let _ = news.send(heads).await;
            }
            level => {
                if let Err(error) = wire::write_within(&mut answer, level, WRITE_STALL_MAX).await {
                    return error.into();
                }
            }
        }
    }
}

/// Notes the place of a public record.
pub(super) fn note_head(heads: &mut Heads, raw: &[u8]) -> Result<(), String> {
    let record = decode_envelope(raw).map_err(|error| error.to_string())?.record;
    if record.audience == Audience::Law {
        let seq = heads.entry((record.writer, record.epoch)).or_default();
        *seq = record.seq.max(*seq);
    }
    Ok(())
}
