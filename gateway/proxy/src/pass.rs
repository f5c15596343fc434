//! Sealed bytes on their way: sni → authorize → route → dial → splice. Neither key nor plaintext is here.

use std::sync::Arc;

use federation_identity::{now, passthrough};
use federation_model::{ClusterId, DenialReason, SpiffeId, VerifiedPeer};
use tokio::{io::AsyncWriteExt, sync::OwnedSemaphorePermit, time::timeout};

use crate::{
    Core, accept,
    authorize::{Law, Refusal},
    connections::{Direction, Heading, Registered, Registration},
    dial::{self, Leave},
    events::Told,
    report::{Asked, End},
    route::{Next, Route},
    sni::{self, Greeting, GreetingError},
    splice::{Broken, splice},
    stream::{BoxStream, Stream},
};

pub(crate) async fn pass(core: &Arc<Core>, mut client: BoxStream, from: Option<(ClusterId, VerifiedPeer)>) {
    let member = from.as_ref().map(|(member, _)| *member);
    let Some(place) = accept::place(core) else {
        client.reset();
        return;
    };
    let mut asked = Asked::new(Direction::Passage, member);
    match admit(core, &mut client, from, place, &mut asked).await {
        Ok((connection, mut server)) => {
            connection.live();
            core.report_permitted(&connection);
            let end = tokio::select! {
                biased;
                cut = connection.ended() => End::Cut(cut),
                carried = splice(&mut client, &mut server, &connection, &core.inputs.limits) => End::from(carried),
            };
            if !matches!(end, End::Closed) {
                client.reset();
                server.reset();
            }
            drop((client, server));
            // A later hop that refused has broken the stream; why, it says on another channel.
            let end = core.why(&connection, end).await;
            if let End::Cut(cut) = &end {
                tell(core, &asked, Some(connection.state().peer.id()), cut.denial_reason(), cut.detail());
            }
            core.report_ended(&connection, &end);
        }
        Err(refusal) => {
            client.reset();
            core.report_denied(&asked, &refusal);
            let denial = &refusal.denial;
            tell(core, &asked, denial.source.as_ref(), denial.reason, refusal.detail);
        }
    }
}

/// Everything up to the dialled next hop, which has the bytes read so far.
async fn admit(
    core: &Arc<Core>,
    client: &mut BoxStream,
    from: Option<(ClusterId, VerifiedPeer)>,
    place: OwnedSemaphorePermit,
    asked: &mut Asked,
) -> Result<(Registered, BoxStream), Refusal> {
    let greeting = greet(core, client).await?;
    let (header, service) = (&greeting.header, &greeting.service);
    asked.connection = Some(header.connection);
    let now = now();
    let signed = prove(core, &greeting)?;
    asked.credential = Some(signed.leaf());
    core.enforced(Some(signed.id()), service)?;
    let law = Law::in_force(&core.inputs, Some(signed.id()), service)?;
    let service = law.service(service, Some(signed.id()))?;
    let (member, session) = from.unzip();
    let passage = law.passage(&signed, session.as_ref(), &service, now)?;
    fresh(core, Direction::Passage, &greeting, signed.id())?;
    drop(place);

    let connection = core.register(Registration {
        id: header.connection,
        direction: Direction::Passage,
        service: service.clone(),
        from: member,
        peer: signed,
        session,
        rule: *passage.rule(),
        policy: law.revision(),
        lease: law.lease(&service),
        deadline: passage.deadline(),
        now,
        heading: Some(Heading { destination: header.destination.clone(), hello: header.hello_digest, at: header.at }),
    })?;
    let route = Route { service, next: Next::Mesh, instance: header.instance, connection: header.connection };
    let mut server = tokio::select! {
        biased;
        cut = connection.ended() => return Err(cut.refusal(passage.source(), &route.service.name)),
        dialled = dial::dial(core, Leave::Passage(&passage), &route) => dialled?,
    };
    let broke = |error: &dyn std::fmt::Display| {
        Refusal::new(DenialReason::Unreachable, Some(passage.source()), &route.service.name)
            .because("stream_broke", error)
    };
    match timeout(core.inputs.limits.dial_timeout, server.write_all(greeting.raw())).await {
        Ok(written) => written.map_err(|e| broke(&e))?,
        Err(late) => return Err(broke(&late)),
    }
    Ok((connection, server))
}

/// Reads header and hello within their time.
pub(crate) async fn greet(core: &Core, client: &mut BoxStream) -> Result<Greeting, Refusal> {
    let malformed =
        |word, detail: &dyn std::fmt::Display| Refusal::new(DenialReason::Malformed, None, "").because(word, detail);
    match timeout(core.inputs.limits.hello_timeout, sni::read(client)).await {
        Ok(Ok(greeting)) => Ok(greeting),
        Ok(Err(error)) => {
            let destination = match &error {
                GreetingError::Mismatch { sni, .. } => sni.to_string(),
                GreetingError::ForeignSni(name) => name.clone(),
                _ => String::new(),
            };
            let mut refusal = malformed(error.reason(), &error);
            if matches!(error, GreetingError::ForeignSni(_)) {
                refusal.denial.reason = DenialReason::UnknownService;
            }
            refusal.denial.destination = destination;
            Err(refusal)
        }
        Err(_) => {
            let limit = core.inputs.limits.hello_timeout;
            Err(malformed("hello_timeout", &format!("no ClientHello came within {limit:?}")))
        }
    }
}

/// Proves who signed the header, for this very hello.
pub(crate) fn prove(core: &Core, greeting: &Greeting) -> Result<VerifiedPeer, Refusal> {
    passthrough::verify(&greeting.header, greeting.hello(), &core.inputs.verifier, now()).map_err(|error| {
        use federation_identity::SvidError;
        use passthrough::HeaderError;
        let reason = match &error {
            HeaderError::Svid(SvidError::Expired { .. }) => DenialReason::Expired,
            HeaderError::Svid(SvidError::Revoked(_)) => DenialReason::Revoked,
            HeaderError::Svid(SvidError::UnknownTrustDomain(_) | SvidError::NoRoots(_)) => DenialReason::UnknownSource,
            HeaderError::Svid(_) | HeaderError::Signature | HeaderError::Hello | HeaderError::Clock { .. } => {
                DenialReason::WrongProof
            }
            _ => DenialReason::Malformed,
        };
        Refusal::new(reason, None, &greeting.service).because(error.reason(), &error)
    })
}

/// Refuses a greeting that was presented here before.
pub(crate) fn fresh(core: &Core, direction: Direction, greeting: &Greeting, source: &SpiffeId) -> Result<(), Refusal> {
    if core.seen.first(greeting.header.connection, direction, now()) {
        return Ok(());
    }
    Err(Refusal::new(DenialReason::WrongProof, Some(source), &greeting.service)
        .because("replayed", "this header was presented here before"))
}

/// Sends a refusal back to the source, if the connection could be read.
fn tell(core: &Core, asked: &Asked, source: Option<&SpiffeId>, reason: DenialReason, detail: String) {
    let Some(connection) = asked.connection else { return };
    let told = Told { connection, to: asked.from, source: source.cloned(), reason, detail };
    core.inputs.control.denied(told);
}

impl From<Result<(), Broken>> for End {
    fn from(carried: Result<(), Broken>) -> Self {
        match carried {
            Ok(()) => Self::Closed,
            Err(broken) => Self::Broken(broken),
        }
    }
}
