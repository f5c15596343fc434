//! Out of an application: authorize → route → dial → handshake → splice.

use std::sync::Arc;

use federation_identity::now;
use federation_model::{
    ConnectionId, Denial, DenialReason, InstanceId, Permit, Service, ServiceRef, SpiffeId, VerifiedPeer,
};
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, sleep_until, timeout},
};
use tokio_rustls::client::TlsStream;

use crate::{
    Core,
    authorize::{Law, Refusal},
    connections::{Direction, Registered, Registration},
    dial::{self, Leave},
    frame::{Answer, Exporter, Opening, VERSION},
    handshake::{self, Answered, ClientSide, Refused},
    leaving, renewal,
    report::{Asked, End},
    route::{Next, Route},
    splice::splice,
    stream::{BoxStream, Stream, farewell},
};

/// A connection whose TLS is up and whose frame is sent; the server has not answered yet.
pub(crate) struct Opened {
    connection: Registered,
    asked: Asked,
    tls: TlsStream<BoxStream>,
}

pub(crate) async fn connect<S: Stream>(
    core: &Arc<Core>,
    mut client: S,
    service: &ServiceRef,
    port: u16,
) -> Result<(), Denial> {
    match open(core, service, port).await {
        Ok(opened) => carry(core, client, opened).await,
        Err(refusal) => {
            client.reset();
            Err(refusal.denial)
        }
    }
}

/// Everything up to the client's frame. A refusal was reported when this returns it.
pub(crate) async fn open(core: &Arc<Core>, name: &ServiceRef, port: u16) -> Result<Opened, Refusal> {
    let mut asked = Asked::new(Direction::Outbound, None);
    if let Some(local) = stand_in(core, name) {
        match attempt(core, &local, port, &mut asked).await {
            Ok((connection, tls)) => {
                tracing::debug!(service = %name, by = %local, "stood in for: the owner was not heard for its lease");
                return Ok(Opened { connection, asked, tls });
            }
            Err(refusal) => {
                let reason = refusal.denial.reason.as_str();
                tracing::debug!(service = %name, by = %local, reason, "cannot stand in; the stale service is called");
            }
        }
        asked = Asked::new(Direction::Outbound, None);
    }
    match attempt(core, name, port, &mut asked).await {
        Ok((connection, side)) => Ok(Opened { connection, asked, tls: side }),
        Err(refusal) => {
            core.report_denied(&asked, &refusal);
            Err(refusal)
        }
    }
}

async fn attempt(
    core: &Arc<Core>,
    name: &ServiceRef,
    port: u16,
    asked: &mut Asked,
) -> Result<(Registered, TlsStream<BoxStream>), Refusal> {
    let own = own_peer(core, name)?;
    asked.credential = Some(own.leaf());
    core.enforced(Some(own.id()), name)?;
    let law = Law::in_force(&core.inputs, Some(own.id()), name)?;
    let service = law.service(name, Some(own.id()))?;
    if service.port != port {
        return Err(Refusal::new(DenialReason::UnknownService, Some(own.id()), name)
            .because("wrong_port", format!("{name} listens on port {}, not {port}", service.port)));
    }
    let at = now();
    let permit = law.permit(&own, &service, at)?;
    let id = ConnectionId(rand::random());
    asked.connection = Some(id);
    let connection = core.register(Registration {
        id,
        direction: Direction::Outbound,
        service: service.clone(),
        from: None,
        peer: own.clone(),
        session: None,
        rule: *permit.rule(),
        policy: law.revision(),
        lease: law.lease(&service),
        deadline: permit.deadline(),
        now: at,
        heading: None,
    })?;
    let expected = service.server_ids();
    let established = tokio::select! {
        biased;
        cut = connection.ended() => Err(cut.refusal(own.id(), name)),
        established = establish(core, &own, &permit, service, expected, id, None, Vec::new()) => established,
    };
    let side = match established {
        Ok(side) => side,
        Err(refusal) => return Err(told_why(core, &connection, own.id(), refusal).await),
    };
    {
        let mut state = connection.state();
        state.deadline = side.deadline;
        state.server = Some(side.server.clone());
        state.exporter = Some(side.exporter);
        state.heading = Some(side.heading);
    }
    core.connections.due(side.deadline);
    // The law may have changed while nobody knew yet who serves it.
    Law::in_force(&core.inputs, Some(own.id()), name)?.again(&connection, now())?;
    Ok((connection, side.tls))
}

/// The own cluster's service to call in place of one whose owner was not heard for its lease. Nobody gets anywhere by it
/// who may not call the one that was asked for.
pub(crate) fn stand_in(core: &Core, name: &ServiceRef) -> Option<ServiceRef> {
    let law = Law::of(&core.inputs)?;
    let service = law.service(name, None).ok()?;
    let local = law.stand_in(&service)?;
    let own = own_peer(core, name).ok()?;
    law.permit(&own, &service, now()).ok().map(|_| local)
}

/// Dials, finishes the handshake, and sends the client's frame: for a connection that carries bytes, or a renewal.
#[expect(clippy::too_many_arguments, reason = "each is another fact about the one connection")]
pub(crate) async fn establish(
    core: &Core,
    own: &VerifiedPeer,
    permit: &Permit,
    service: Service,
    expected: Vec<SpiffeId>,
    connection: ConnectionId,
    instance: Option<InstanceId>,
    renews: Vec<Exporter>,
) -> Result<ClientSide, Refusal> {
    let limits = &core.inputs.limits;
    let route = Route { service, next: Next::Mesh, instance, connection };
    let stream = dial::dial(core, Leave::Permit(permit), &route).await?;
    let name = &route.service.name;
    let mut side = handshake::client(core, stream, own, name, expected, connection, instance).await?;
    let opening =
        Opening { versions: (VERSION, VERSION), service: name.clone(), connection, features: 0, renews }.encode();
    let sent = timeout(limits.handshake_timeout, async {
        side.tls.write_all(&opening).await?;
        side.tls.flush().await
    });
    let broke = |detail: &dyn std::fmt::Display| {
        Refusal::new(DenialReason::Unreachable, Some(own.id()), name).because("stream_broke", detail)
    };
    match sent.await {
        Ok(Ok(())) => Ok(side),
        Ok(Err(error)) => Err(broke(&error)),
        Err(late) => Err(broke(&late)),
    }
}

/// Carries bytes until both ends have finished, or something ended it. The server's answer comes on the way.
pub(crate) async fn carry<S: Stream>(core: &Arc<Core>, mut client: S, opened: Opened) -> Result<(), Denial> {
    let Opened { connection, asked, tls } = opened;
    let (mut server, mut answer) = Answered::new(tls);
    let limits = &core.inputs.limits;
    let until = Instant::now() + limits.answer_timeout;
    let mut permitted = false;
    let mut outcome: Result<End, Refused> = {
        let carried = splice(&mut client, &mut server, &connection, limits);
        let quiet = leaving::quiet(&connection);
        tokio::pin!(carried, quiet);
        loop {
            tokio::select! {
                biased;
                cut = connection.ended() => break Ok(End::Cut(cut)),
                said = &mut answer, if !permitted => match understood(said.ok()) {
                    Ok(instance) => {
                        permitted = true;
                        settle(core, &connection, instance);
                    }
                    Err(refused) => break Err(refused),
                },
                end = &mut carried => break Ok(End::from(end)),
                () = &mut quiet, if permitted => break Ok(End::WoundUp),
                () = sleep_until(until), if !permitted => {
                    let detail = format!("the destination did not answer within {:?}", limits.answer_timeout);
                    break Err(Refused { reason: DenialReason::Unreachable, word: "answer_timeout", detail });
                }
            }
        }
    };
    // The answer and the end of the stream can come in one poll; the answer says more.
    if !permitted
        && matches!(outcome, Ok(End::Broken(_) | End::Closed))
        && let Ok(said) = answer.try_recv()
    {
        match understood(Some(said)) {
            Ok(instance) => {
                permitted = true;
                settle(core, &connection, instance);
            }
            Err(refused) => outcome = Err(refused),
        }
    }
    match outcome {
        Ok(End::Closed) => {}
        Ok(End::WoundUp) => {
            // An end, not a break. What the application may be sending at this moment goes nowhere.
            let _ = client.shutdown().await;
            farewell(&mut server, &[]).await;
        }
        _ => {
            client.reset();
            server.reset();
        }
    }
    drop((client, server));
    let source = connection.state().peer.id().clone();
    let refusal = match outcome {
        Err(refused) => {
            let refusal = Refusal::new(refused.reason, Some(&source), &connection.service.name);
            told_why(core, &connection, &source, refusal.because(refused.word, refused.detail)).await
        }
        Ok(End::Cut(cut)) if !permitted => cut.refusal(&source, &connection.service.name),
        Ok(end) => {
            let end = core.why(&connection, end).await;
            core.report_ended(&connection, &end);
            return Ok(());
        }
    };
    core.report_denied(&asked, &refusal);
    Err(refusal.denial)
}

/// What the server's frame comes to.
fn understood(said: Option<handshake::Said>) -> Result<InstanceId, Refused> {
    let malformed = |word, detail: String| Refused { reason: DenialReason::Malformed, word, detail };
    match said {
        Some(Ok(Answer::Permit { version: VERSION, instance, .. })) => Ok(instance),
        Some(Ok(Answer::Permit { version, .. })) => {
            Err(malformed("frame_version", format!("destination chose version {version}, {VERSION} was offered")))
        }
        Some(Ok(Answer::Denial { reason, detail, audit })) => Err(Refused {
            // A word of a later version is a denial all the same.
            reason: DenialReason::from_word(&reason).unwrap_or(DenialReason::Rule),
            word: "destination",
            detail: format!("{detail} (audit {})", audit.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
        }),
        Some(Err(refused)) => Err(refused),
        None => Err(malformed("no_answer", "the stream ended before the destination answered".to_owned())),
    }
}

/// The destination has let it through: from here on it lives, and is renewed.
fn settle(core: &Core, connection: &Registered, instance: InstanceId) {
    let renew_at = {
        let mut state = connection.state();
        state.instance = Some(instance);
        state.renew_at = renewal::next(now(), state.deadline);
        state.renew_at
    };
    connection.live();
    core.connections.due(renew_at);
    core.report_permitted(connection);
}

/// Proves the own SVID, so that the law is asked about it as about any other.
pub(crate) fn own_peer(core: &Core, service: &ServiceRef) -> Result<VerifiedPeer, Refusal> {
    let refuse = |reason| Refusal::new(reason, None, service);
    let svid = core.inputs.svid.get();
    let svid =
        svid.ok_or_else(|| refuse(DenialReason::WrongProof).because("no_svid", "this process has no SVID yet"))?;
    core.inputs.verifier.own_peer(&svid, now()).map_err(|error| {
        let reason = match &error {
            federation_identity::SvidError::Expired { .. } => DenialReason::Expired,
            federation_identity::SvidError::Revoked(_) => DenialReason::Revoked,
            _ => DenialReason::WrongProof,
        };
        let mut refusal = refuse(reason).because(error.reason(), &error);
        refusal.denial.source = Some(svid.id().clone());
        refusal
    })
}

/// A stream that broke without a word may have been refused by an edge, which says so on another channel.
async fn told_why(core: &Core, connection: &Registered, source: &SpiffeId, refusal: Refusal) -> Refusal {
    if refusal.denial.reason != DenialReason::Unreachable || refusal.word != "stream_broke" {
        return refusal;
    }
    match timeout(core.inputs.limits.told_grace, connection.ended()).await {
        Ok(cut) => cut.refusal(source, &connection.service.name),
        Err(_) => refusal,
    }
}

impl Core {
    /// The same for a connection that was live, or that ended before a byte came back.
    pub(crate) async fn why(&self, connection: &Registered, end: End) -> End {
        let odd = match &end {
            End::Broken(_) => true,
            End::WoundUp => false,
            End::Closed => connection.to_client.load(std::sync::atomic::Ordering::Relaxed) == 0,
            End::Cut(_) => false,
        };
        if !odd {
            return end;
        }
        match timeout(self.inputs.limits.told_grace, connection.ended()).await {
            Ok(cut) => End::Cut(cut),
            Err(_) => end,
        }
    }
}
