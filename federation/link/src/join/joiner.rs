//! The side that redeems a token: finds the issuer, proves itself, checks every word of the answer, and takes up the
//! federation's records in place of its own.

use std::{net::SocketAddr, sync::Arc};

use federation_identity::{
    join::{ProofKey, joiner_proof, verify_issuer},
    now, stranger,
    tls::{self, EXPORTER_JOIN},
};
use federation_model::{
    Audience, Authentic, Body, Candidate, ClusterId, ClusterName, FederationId, JoinToken, Record, Timestamp,
};
use proto::{
    convert::{encode_candidate, parse_join_token},
    federation::{JoinAnswer, JoinRequest},
};
use quinn::{Connection, ConnectionError, RecvStream};
use tokio::sync::oneshot;

use super::{VERSION_MAX, VERSION_MIN};
use crate::{
    JoinError, Shared,
    endpoint::{self, SERVER_NAME, code},
    limits::{CLOCK_SKEW_MAX, JOIN_ENVELOPES_MAX, JOIN_RECORDS_BYTES_MAX, JOIN_TIME_MAX},
    records,
    replicate::{Command, RejoinError},
    supervisor::resolve,
    wire::{self, FRAME_BYTES_MAX, Frame, HELLO_BYTES_MAX, WireError, printable},
};

/// What a join brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinSummary {
    pub federation: FederationId,
    /// Who issued the token and admitted this cluster.
    pub issuer: ClusterId,
    pub issuer_name: ClusterName,
    /// Every member, this cluster included, by name.
    pub members: Vec<(ClusterName, ClusterId)>,
}

/// Redeems a token. May be called again with the same token if it failed on the way.
pub(crate) async fn join(shared: &Arc<Shared>, text: &str) -> Result<JoinSummary, JoinError> {
    let token = parse_join_token(text)?;
    let _joining = shared.joining.lock().await;
    check_before(shared, &token)?;
    let connection = reach(shared, &token).await?;
    let exchanged = tokio::time::timeout(JOIN_TIME_MAX, exchange(shared, &token, &connection)).await;
    let exchanged = exchanged.unwrap_or_else(|_| Err(wire_error(&token, WireError::TimedOut(JOIN_TIME_MAX))));
    // In TLS 1.3 the one that dials is done before the other has judged it: that verdict may come this late.
    let verdict = connection.close_reason().and_then(|reason| by_identity(shared, &token, &reason));
    let exchanged = exchanged.map_err(|error| match error {
        JoinError::Wire { .. } => verdict.unwrap_or(error),
        error => error,
    });
    connection.close(code::DONE, b"done");
    let (federation, issuer, records) = exchanged?;
    take_up(shared, &token, federation, records).await?;
    let snapshot = shared.snapshot.borrow().clone();
    let members = snapshot.iter().flat_map(|snapshot| snapshot.members.present());
    let mut members: Vec<_> = members.map(|member| (member.name.clone(), member.id)).collect();
    members.sort();
    tracing::info!(issuer = %token.issuer, federation = %federation.short(), members = members.len(), "joined");
    Ok(JoinSummary { federation, issuer, issuer_name: token.issuer, members })
}

/// What can be said before anything is sent.
fn check_before(shared: &Shared, token: &JoinToken) -> Result<(), JoinError> {
    token.check(&shared.candidate.name, now())?;
    if token.issuer_trust_domain == shared.candidate.trust_domain {
        return Err(JoinError::OwnTrustDomain(token.issuer_trust_domain.clone()));
    }
    let others = shared.snapshot.borrow().as_ref().map_or(0, |snapshot| snapshot.members.len().saturating_sub(1));
    if others > 0 {
        return Err(JoinError::HasMembers(others));
    }
    // An admission names the first root, and only who holds its key could prove it to a stranger.
    let shown = shared.live_svid.get().and_then(|svid| stranger(svid.chain(), now()).ok());
    match shown {
        Some(shown) if shown.root_der != shared.candidate.root => Err(JoinError::Rotated),
        _ => Ok(()),
    }
}

/// The first of the token's endpoints that proves the pinned key.
async fn reach(shared: &Shared, token: &JoinToken) -> Result<Connection, JoinError> {
    let unreachable = |tried: String| JoinError::Unreachable { issuer: token.issuer.clone(), tried };
    let tls = tls::join_client(&shared.live_svid, token.issuer_pin, token.issuer_trust_domain.clone());
    let tls = tls.map_err(|error| unreachable(error.to_string()))?;
    let config = endpoint::client_config(tls, shared.transport.clone()).map_err(unreachable)?;
    let mut tried = Vec::new();
    let mut refused = None;
    for named in &token.endpoints {
        let addresses = match resolve(named, shared.limits.handshake).await {
            Ok(addresses) => addresses,
            Err(error) => {
                tried.push(error.to_string());
                continue;
            }
        };
        for address in addresses {
            match connect(shared, config.clone(), address).await {
                Ok(connection) => return Ok(connection),
                Err(error) => {
                    refused = refused.or_else(|| by_identity(shared, token, &error));
                    tried.push(format!("{address}: {}", printable(&error.to_string())));
                }
            }
        }
    }
    Err(refused.unwrap_or_else(|| unreachable(tried.join("; "))))
}

async fn connect(
    shared: &Shared,
    config: quinn::ClientConfig,
    address: SocketAddr,
) -> Result<Connection, ConnectionError> {
    let connecting = shared.dialling.connect_with(config, address, SERVER_NAME);
    let Ok(connecting) = connecting else { return Err(ConnectionError::Reset) };
    tokio::time::timeout(shared.limits.handshake, connecting).await.unwrap_or(Err(ConnectionError::TimedOut))
}

/// Whether a handshake failed because one side did not believe the other (QUIC-TLS, RFC 9001, 4.8).
fn by_identity(shared: &Shared, token: &JoinToken, error: &ConnectionError) -> Option<JoinError> {
    let is_crypto = |code: quinn::TransportErrorCode| (0x100..0x200).contains(&u64::from(code));
    match error {
        ConnectionError::TransportError(error) if is_crypto(error.code) => {
            Some(JoinError::Pin { issuer: token.issuer.clone(), detail: printable(&error.reason) })
        }
        ConnectionError::ConnectionClosed(close) if is_crypto(close.error_code) => {
            let own = &shared.candidate.trust_domain;
            // The far end's own word on why; it decides nothing here but what a person reads.
            let known = String::from_utf8_lossy(&close.reason).contains("UnknownIssuer");
            let (reason, detail) = if known {
                let detail = format!(
                    "a member there has trust domain {own} already, under another root: was the token used by another \
                     cluster of this name? If not, set up this one with another trust domain"
                );
                ("domain_taken", detail)
            } else {
                ("not_open", "it lets no joiners in now: the token was used, is void or has expired there".into())
            };
            Some(JoinError::Refused { issuer: token.issuer.clone(), reason: reason.into(), detail })
        }
        _ => None,
    }
}

fn wire_error(token: &JoinToken, source: WireError) -> JoinError {
    JoinError::Wire { issuer: token.issuer.clone(), source }
}

/// Request and answer on one stream.
async fn exchange(
    shared: &Shared,
    token: &JoinToken,
    connection: &Connection,
) -> Result<(FederationId, ClusterId, Vec<Authentic<Record>>), JoinError> {
    let lost = |error: ConnectionError| wire_error(token, WireError::Lost(error.into()));
    let exporter = endpoint::exporter(connection, EXPORTER_JOIN).ok_or_else(|| wire_error(token, WireError::Closed))?;
    let candidate = encode_candidate(&shared.candidate);
    let key = ProofKey::derive(&token.secret);
    let request = JoinRequest {
        version_min: VERSION_MIN,
        version_max: VERSION_MAX,
        token_id: token.id.0.to_vec(),
        proof: joiner_proof(&key, &exporter, &candidate, &token.issuer_pin).to_vec(),
        candidate: candidate.clone(),
        now_ms: now().as_millis(),
    };
    let (mut send, mut receive) = connection.open_bi().await.map_err(lost)?;
    wire::write(&mut send, Frame::JoinRequest(request)).await.map_err(|error| wire_error(token, error))?;
    let answer = read_answer(token, &mut receive).await?;
    check_answer(token, &answer)?;
    let envelopes = read_records(token, &answer, &mut receive).await?;
    let wrong = |detail: String| JoinError::Answer { issuer: token.issuer.clone(), detail };
    let federation = FederationId::try_from(answer.federation.as_slice()).map_err(|error| wrong(error.into()))?;
    let issuer = ClusterId::try_from(answer.issuer.as_slice()).map_err(|error| wrong(error.into()))?;
    let (records, unfit) = records::check_all(federation, envelopes).await;
    if let Some(unfit) = unfit.first() {
        return Err(wrong(format!("a record of the law is {}", unfit.reason())));
    }
    // Only the law: what else an issuer might slip in has its own way here.
    if records.iter().any(|record| record.value().audience != Audience::Law) {
        return Err(wrong("it sent records that are not of the law".into()));
    }
    check_issuer(token, connection, issuer, &records)?;
    let admission = records.iter().find(|record| {
        record.value().writer == issuer
            && matches!(&record.value().body, Body::Admission(admission) if admission.candidate == shared.candidate)
    });
    let admission = admission.ok_or_else(|| wrong("it did not admit this cluster as it is".into()))?;
    let pin = &token.issuer_pin;
    if !verify_issuer(&key, &exporter, &candidate, pin, &admission.digest(), &answer.proof) {
        return Err(JoinError::IssuerProof { issuer: token.issuer.clone() });
    }
    Ok((federation, issuer, records))
}

async fn read_answer(token: &JoinToken, receive: &mut RecvStream) -> Result<JoinAnswer, JoinError> {
    match wire::read(receive, HELLO_BYTES_MAX).await.map_err(|error| wire_error(token, error))? {
        Frame::JoinAnswer(answer) => Ok(answer),
        Frame::Refusal(refusal) => Err(JoinError::Refused {
            issuer: token.issuer.clone(),
            reason: printable(&refusal.reason),
            detail: printable(&refusal.detail),
        }),
        other => Err(wire_error(token, WireError::Unexpected { got: wire::name(&other) })),
    }
}

fn check_answer(token: &JoinToken, answer: &JoinAnswer) -> Result<(), JoinError> {
    let issuer = || token.issuer.clone();
    if !(VERSION_MIN..=VERSION_MAX).contains(&answer.version) {
        return Err(JoinError::Version { issuer: issuer(), theirs: answer.version, ours: VERSION_MAX });
    }
    let (theirs, ours) = (Timestamp::from_millis(answer.now_ms), now());
    let by = theirs.since(ours).max(ours.since(theirs));
    if by > CLOCK_SKEW_MAX {
        return Err(JoinError::ClockSkew { issuer: issuer(), by });
    }
    if answer.envelopes > JOIN_ENVELOPES_MAX {
        let detail = format!("{} records, at most {JOIN_ENVELOPES_MAX} are taken", answer.envelopes);
        return Err(JoinError::Answer { issuer: issuer(), detail });
    }
    Ok(())
}

async fn read_records(
    token: &JoinToken,
    answer: &JoinAnswer,
    receive: &mut RecvStream,
) -> Result<Vec<Arc<[u8]>>, JoinError> {
    let wrong = |detail: String| JoinError::Answer { issuer: token.issuer.clone(), detail };
    let count = answer.envelopes as usize;
    let (mut envelopes, mut bytes) = (Vec::<Arc<[u8]>>::new(), 0_usize);
    while envelopes.len() < count {
        match wire::read(receive, FRAME_BYTES_MAX).await.map_err(|error| wire_error(token, error))? {
            Frame::Records(records) => {
                bytes += records.envelopes.iter().map(Vec::len).sum::<usize>();
                envelopes.extend(records.envelopes.into_iter().map(Arc::from));
            }
            other => return Err(wire_error(token, WireError::Unexpected { got: wire::name(&other) })),
        }
        if envelopes.len() > count || bytes > JOIN_RECORDS_BYTES_MAX {
            return Err(wrong("it sent more records than it said, or than are taken".into()));
        }
    }
    Ok(envelopes)
}

/// The one that answered must be the member that it says it is, under the very root that the token pins.
fn check_issuer(
    token: &JoinToken,
    connection: &Connection,
    issuer: ClusterId,
    records: &[Authentic<Record>],
) -> Result<(), JoinError> {
    let wrong = |detail: &str| JoinError::Answer { issuer: token.issuer.clone(), detail: detail.into() };
    let shown = stranger(&endpoint::peer_chain(connection), now()).map_err(|error| wrong(&error.to_string()))?;
    let named: Option<&Candidate> = records.iter().find_map(|record| match &record.value().body {
        Body::Founding(candidate) if candidate.id == issuer => Some(candidate),
        Body::Admission(admission) if admission.candidate.id == issuer => Some(&admission.candidate),
        _ => None,
    });
    let named = named.ok_or_else(|| wrong("its law does not name it as a member"))?;
    // Its own newest bundle says which roots it has by now; before the first, its admission does.
    let bundles = records.iter().filter_map(|record| match &record.value().body {
        Body::Bundle(bundle) if record.value().writer == issuer => Some(bundle),
        _ => None,
    });
    let roots = bundles.max_by_key(|bundle| bundle.sequence).map_or(std::slice::from_ref(&named.root), |b| &b.roots);
    if !roots.contains(&shown.root_der)
        || named.trust_domain != token.issuer_trust_domain
        || named.name != token.issuer
        || shown.root_pin != token.issuer_pin
    {
        return Err(wrong("its law names it with another root, name or trust domain than the token"));
    }
    Ok(())
}

/// Everything in one durable write; after it this cluster is a member.
async fn take_up(
    shared: &Shared,
    token: &JoinToken,
    federation: FederationId,
    records: Vec<Authentic<Record>>,
) -> Result<(), JoinError> {
    let (reply, replied) = oneshot::channel();
    let command = Command::Rejoin { federation, records, reply };
    shared.driver.send(command).await.map_err(|_| JoinError::Closed)?;
    replied.await.map_err(|_| JoinError::Closed)?.map_err(|error| match error {
        RejoinError::HasMembers(others) => JoinError::HasMembers(others),
        RejoinError::Records(detail) => JoinError::Answer { issuer: token.issuer.clone(), detail },
        RejoinError::Store(detail) => JoinError::Store(detail),
    })
}
