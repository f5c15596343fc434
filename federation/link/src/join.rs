//! Joining, `hanse-join/1`: the side that issued the token, and in [`joiner`] the side that redeems it.
//!
//! In: a connection of somebody whose chain proves no more than who it claims to be. Out: an admission, durable together
//! with the token's use, and the law; or a refusal. Before the proof is right every refusal is the same word.
//! Never: tells a guesser which of its guesses was close; admits twice on one token.

pub(crate) mod joiner;

use std::{sync::Arc, time::Duration};

use federation_identity::{
    join::{ProofKey, issuer_proof, verify_joiner},
    now,
    record::check_candidate,
    stranger,
    tls::EXPORTER_JOIN,
};
use federation_model::{
    Admission, Audience, Authentic, BAD_PROOFS_MAX, Body, Candidate, Digest, Record, Timestamp, TokenId,
};
use federation_store::StoreError;
use proto::{
    convert::decode_candidate,
    federation::{JoinAnswer, JoinRequest},
};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    Shared,
    endpoint::{self, code},
    limits::{CLOCK_SKEW_MAX, JOIN_TIME_MAX, STREAMS_OF_JOINER},
    metrics,
    registry::lock,
    replicate::{AdmitError, Command},
    tokens::{self, Held, TokenState},
    wire::{self, Frame, JOIN_BYTES_MAX, WireError},
};

/// Lowest and highest version of `hanse-join/1`.
pub(crate) const VERSION_MIN: u32 = 1;
pub(crate) const VERSION_MAX: u32 = 1;

/// Every word that an issuer refuses with.
pub(crate) const REFUSALS: [&str; 13] = [
    "not_open",
    "invalid_token",
    "token_used",
    "other_joiner",
    "own_cluster",
    "name_taken",
    "domain_taken",
    "evicted",
    "clock_skew",
    "candidate",
    "version",
    "busy",
    "unavailable",
];
/// How often a token is judged again because it changed meanwhile.
const CONFLICTS_MAX: usize = 16;

/// A refusal on its way to the joiner.
#[derive(Debug)]
struct Refused {
    reason: &'static str,
    detail: String,
}

impl Refused {
    fn new(reason: &'static str, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }

    /// What a guesser hears, whatever it guessed: one word, one sentence, one size.
    fn generic() -> Self {
        Self::new("invalid_token", "the token is not valid here")
    }

    fn unavailable(error: &StoreError) -> Self {
        tracing::error!(%error, "join could not be judged");
        Self::new("unavailable", "the issuer cannot write now: try again later with the same token")
    }
}

/// Lets so many join requests through per second.
#[derive(Debug)]
pub(crate) struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    pub(crate) fn new(per_second: u32) -> Self {
        Self { left: f64::from(per_second), at: Instant::now() }
    }

    fn take(&mut self, per_second: u32) -> bool {
        let gained = self.at.elapsed().as_secs_f64() * f64::from(per_second);
        self.left = (self.left + gained).min(f64::from(per_second));
        self.at = Instant::now();
        let taken = self.left >= 1.0;
        if taken {
            self.left -= 1.0;
        }
        taken
    }
}

/// Serves one connection of a joiner to its end.
pub(crate) async fn serve(shared: Arc<Shared>, connection: Connection) {
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(STREAMS_OF_JOINER));
    let limit = shared.limits.handshake;
    let served = tokio::time::timeout(JOIN_TIME_MAX, async {
        let (mut send, mut receive) = tokio::time::timeout(limit, connection.accept_bi()).await.ok()?.ok()?;
        let judged = match take_turn(&shared) {
            Ok(_turn) => judge(&shared, &connection, &mut receive).await,
            Err(refused) => Err(Ok(refused)),
        };
        match judged {
            Ok(frames) => {
                ::metrics::counter!(metrics::JOINS, "outcome" => "admitted").increment(1);
                for frame in frames {
                    wire::write(&mut send, frame).await.ok()?;
                }
                finish(&mut send).await;
                connection.close(code::DONE, b"done");
            }
            Err(Ok(refused)) => {
                ::metrics::counter!(metrics::JOINS, "outcome" => refused.reason).increment(1);
                wire::write(&mut send, wire::refusal(refused.reason, refused.detail)).await.ok()?;
                finish(&mut send).await;
                connection.close(code::REFUSED, refused.reason.as_bytes());
            }
            Err(Err(error)) => {
                ::metrics::counter!(metrics::JOINS, "outcome" => error.reason()).increment(1);
                tracing::debug!(%error, "join request could not be read");
                wire::write(&mut send, wire::refusal(error.reason(), error.to_string())).await.ok()?;
                finish(&mut send).await;
                connection.close(code::PROTOCOL, error.reason().as_bytes());
            }
        }
        Some(())
    });
    if !matches!(served.await, Ok(Some(()))) {
        connection.close(code::PROTOCOL, b"timed_out");
    }
}

/// Ends our side of the stream and waits until the peer has it all, or is gone.
async fn finish(send: &mut SendStream) {
    if send.finish().is_ok() {
        let _ = send.stopped().await;
    }
}

fn take_turn(shared: &Shared) -> Result<tokio::sync::SemaphorePermit<'_>, Refused> {
    let busy = || Refused::new("busy", "too many join at this moment: try again in a few seconds");
    let turn = shared.joins.try_acquire().map_err(|_| busy())?;
    if lock(&shared.join_bucket).take(shared.limits.joins_per_second) { Ok(turn) } else { Err(busy()) }
}

/// What the joiner brought.
struct Request {
    message: JoinRequest,
    candidate: Candidate,
    exporter: [u8; 32],
    pin: Digest,
}

/// Reads the request and judges it; the frames of the answer, a refusal, or a stream that made no sense.
async fn judge(
    shared: &Arc<Shared>,
    connection: &Connection,
    receive: &mut RecvStream,
) -> Result<Vec<Frame>, Result<Refused, WireError>> {
    let message = match wire::read_within(receive, JOIN_BYTES_MAX, shared.limits.handshake).await.map_err(Err)? {
        Frame::JoinRequest(message) => message,
        other => return Err(Err(WireError::Unexpected { got: wire::name(&other) })),
    };
    decide(shared, connection, message).await.map_err(Ok)
}

async fn decide(shared: &Arc<Shared>, connection: &Connection, message: JoinRequest) -> Result<Vec<Frame>, Refused> {
    let version = message.version_max.min(VERSION_MAX);
    if version < message.version_min.max(VERSION_MIN) {
        let detail = format!("this edge speaks versions {VERSION_MIN} to {VERSION_MAX} of joining");
        return Err(Refused::new("version", detail));
    }
    let candidate =
        decode_candidate(&message.candidate).map_err(|error| Refused::new("candidate", error.to_string()))?;
    let exporter = endpoint::exporter(connection, EXPORTER_JOIN).ok_or_else(Refused::generic)?;
    let pin = tokens::own_pin(shared).map_err(|detail| Refused::new("unavailable", detail))?;
    let request = Request { message, candidate, exporter, pin };
    let (held, key) = prove(shared, &request).await?;
    // From here on the other end knows the secret, and may hear why.
    check_clock(&request)?;
    let admission = settle(shared, connection, &request, held).await?;
    Ok(answer(shared, &request, version, &key, &admission))
}

/// The token and its key, if the proof is right. Everything else is one and the same refusal.
async fn prove(shared: &Shared, request: &Request) -> Result<(Held, ProofKey), Refused> {
    let Request { message, exporter, pin, .. } = request;
    let verify = |key: &ProofKey| verify_joiner(key, exporter, &message.candidate, pin, &message.proof);
    let id = <[u8; 16]>::try_from(message.token_id.as_slice()).map(TokenId);
    for _ in 0..CONFLICTS_MAX {
        let held = match &id {
            Ok(id) => tokens::get(shared, id).await.map_err(|error| Refused::unavailable(&error))?,
            Err(_) => None,
        };
        let now = tokens::clock(shared);
        let known = held.filter(|held| now < held.expires_at() && held.state(now) != TokenState::Burned);
        let Some((held, key)) = known.and_then(|held| held.proof_key(shared).map(|key| (held, key))) else {
            // As much work as for a known token, so that time tells nothing.
            verify(&ProofKey::from_bytes([0; 32]));
            return Err(Refused::generic());
        };
        if verify(&key) {
            return Ok((held, key));
        }
        if held.used_by().is_some() {
            return Err(Refused::generic());
        }
        let counted = held.changed(|token| {
            token.bad_proofs = token.bad_proofs.saturating_add(1);
            token.refusals = token.refusals.saturating_add(1);
            if token.bad_proofs >= BAD_PROOFS_MAX {
                token.proof_key.clear();
            }
        });
        tracing::warn!(token = %held.id, "join refused: bad proof");
        match shared.store.apply(vec![counted]).await {
            Ok(_) => return Err(Refused::generic()),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(Refused::unavailable(&error)),
        }
    }
    Err(Refused::generic())
}

fn check_clock(request: &Request) -> Result<(), Refused> {
    let (theirs, ours) = (Timestamp::from_millis(request.message.now_ms), now());
    let by = theirs.since(ours).max(ours.since(theirs));
    if by > CLOCK_SKEW_MAX {
        let by = Duration::from_secs(by.as_secs());
        let detail =
            format!("clocks differ by {by:?}, at most {CLOCK_SKEW_MAX:?} are allowed: set the clock that is wrong");
        return Err(Refused::new("clock_skew", detail));
    }
    Ok(())
}

/// Uses the token up for this candidate, or finds that it did so before.
async fn settle(
    shared: &Arc<Shared>,
    connection: &Connection,
    request: &Request,
    first: Held,
) -> Result<Authentic<Record>, Refused> {
    let candidate = &request.candidate;
    let mut held = first;
    for _ in 0..CONFLICTS_MAX {
        match held.used_by() {
            Some(user) if user == candidate.id => {
                check_chain(connection, candidate)?;
                return admission_of(shared, candidate)
                    .ok_or_else(|| Refused::new("token_used", "the token was used for other names of this cluster"));
            }
            Some(_) => {
                tracing::warn!(token = %held.id, joiner = %candidate.name, "join refused: the token was used by another");
                count_refusal(shared, &held, false).await;
                return Err(Refused::new(
                    "token_used",
                    "join token was used already: each works once, ask for a new one",
                ));
            }
            None => {}
        }
        if let Err(refused) = check_candidate_fits(shared, connection, candidate, &held) {
            tracing::warn!(token = %held.id, joiner = %candidate.name, reason = refused.reason, "join refused");
            // The joiner itself would have seen this before it asked: somebody else holds the token.
            count_refusal(shared, &held, refused.reason == "other_joiner").await;
            return Err(refused);
        }
        match admit(shared, candidate, &held).await {
            Ok(record) => {
                tracing::info!(token = %held.id, joiner = %candidate.name, id = %candidate.id.short(), "cluster admitted");
                return Ok(record);
            }
            Err(AdmitError::Failed(detail)) => {
                tracing::error!(error = detail, "admission failed");
                return Err(Refused::new("unavailable", "the issuer cannot admit now: try again with the same token"));
            }
            Err(AdmitError::Evicted) => {
                let detail =
                    "this cluster was evicted for good: set it up anew, with a new data_dir, and use a new token";
                return Err(Refused::new("evicted", detail));
            }
            Err(error @ (AdmitError::Conflict | AdmitError::NameTaken | AdmitError::DomainTaken)) => {
                let again = tokens::get(shared, &held.id).await.map_err(|error| Refused::unavailable(&error))?;
                let again = again.ok_or_else(Refused::generic)?;
                // Whoever used this very token has the name now: that says more than the name.
                let changed = again.revision != held.revision;
                held = again;
                match error {
                    _ if held.state(tokens::clock(shared)) == TokenState::Burned => return Err(Refused::generic()),
                    AdmitError::NameTaken if !changed => {
                        return Err(taken("name_taken", "name", candidate.name.as_str()));
                    }
                    AdmitError::DomainTaken if !changed => {
                        return Err(taken("domain_taken", "trust domain", candidate.trust_domain.as_str()));
                    }
                    _ => {}
                }
            }
        }
    }
    Err(Refused::new("busy", "the token is being tried from many sides"))
}

fn taken(reason: &'static str, what: &str, value: &str) -> Refused {
    Refused::new(reason, format!("{what} {value} is another member's: set up this cluster with another one"))
}

/// The chain must show the very root that the candidate names: whoever sent the candidate holds its keys.
fn check_chain(connection: &Connection, candidate: &Candidate) -> Result<(), Refused> {
    let wrong = |detail: String| Refused::new("candidate", detail);
    let shown = stranger(&endpoint::peer_chain(connection), now()).map_err(|error| wrong(error.to_string()))?;
    if shown.root_der != candidate.root || shown.id != candidate.trust_domain.edge(&candidate.name) {
        return Err(wrong("the connection proves another cluster than the request names".into()));
    }
    check_candidate(candidate).map_err(|error| wrong(error.to_string()))
}

fn check_candidate_fits(
    shared: &Shared,
    connection: &Connection,
    candidate: &Candidate,
    held: &Held,
) -> Result<(), Refused> {
    if candidate.name != held.joiner {
        let detail = format!("the token is for cluster {}, not for {}", held.joiner, candidate.name);
        return Err(Refused::new("other_joiner", detail));
    }
    if candidate.id == shared.own {
        return Err(Refused::new("own_cluster", "the token's issuer cannot join itself"));
    }
    if candidate.trust_domain == shared.candidate.trust_domain {
        return Err(taken("domain_taken", "trust domain", &candidate.trust_domain.to_string()));
    }
    check_chain(connection, candidate)
}

/// Admission and use of the token in one durable write.
async fn admit(shared: &Shared, candidate: &Candidate, held: &Held) -> Result<Authentic<Record>, AdmitError> {
    let used = held.changed(|token| {
        token.used_by = candidate.id.as_bytes().to_vec();
        token.used_at_ms = now().as_millis();
    });
    let admission = Box::new(Admission { candidate: candidate.clone(), lawmaker: held.token.lawmaker });
    let (reply, replied) = oneshot::channel();
    let command = Command::Admit { admission, token: Box::new(used), reply };
    let gone = || AdmitError::Failed("the link is shutting down".into());
    shared.driver.send(command).await.map_err(|_| gone())?;
    replied.await.map_err(|_| gone())?
}

/// Notes a refusal in the token's row; `burn` makes the token void. Whoever was quicker has noted enough.
async fn count_refusal(shared: &Shared, held: &Held, burn: bool) {
    let noted = held.changed(|token| {
        token.refusals = token.refusals.saturating_add(1);
        if burn {
            token.bad_proofs = BAD_PROOFS_MAX;
            token.proof_key.clear();
        }
    });
    if let Err(error) = shared.store.apply(vec![noted]).await
        && !matches!(error, StoreError::Conflict { .. })
    {
        tracing::error!(%error, "refusal could not be noted");
    }
}

/// The admission of exactly this candidate by this cluster.
fn admission_of(shared: &Shared, candidate: &Candidate) -> Option<Authentic<Record>> {
    let records = shared.records.borrow().clone();
    let found = records.iter().find(|record| {
        record.value().writer == shared.own
            && matches!(&record.value().body, Body::Admission(admission) if admission.candidate == *candidate)
    });
    found.cloned()
}

/// The answer and the whole law, the founding record first, as it arrived here.
fn answer(
    shared: &Shared,
    request: &Request,
    version: u32,
    key: &ProofKey,
    admission: &Authentic<Record>,
) -> Vec<Frame> {
    let records = shared.records.borrow().clone();
    let law = records.iter().filter(|record| record.value().audience == Audience::Law);
    let envelopes: Vec<Arc<[u8]>> = law.map(|record| record.raw().clone()).collect();
    let Request { message, exporter, pin, .. } = request;
    let proof = issuer_proof(key, exporter, &message.candidate, pin, &admission.digest());
    let federation = shared.snapshot.borrow().as_ref().map(|snapshot| snapshot.federation.as_bytes().to_vec());
    let answer = JoinAnswer {
        version,
        proof: proof.to_vec(),
        federation: federation.unwrap_or_default(),
        issuer: shared.own.as_bytes().to_vec(),
        now_ms: now().as_millis(),
        envelopes: u32::try_from(envelopes.len()).unwrap_or(u32::MAX),
    };
    let mut frames = vec![Frame::JoinAnswer(answer)];
    frames.extend(wire::records_frames(&envelopes));
    frames
}
