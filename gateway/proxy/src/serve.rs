//! In to an application: sni → handshake → authorize → route → dial → splice. mTLS ends here, and so does doubt: the
//! identity is TLS's, and the permit is the destination's own.

use std::sync::Arc;

use federation_identity::now;
use federation_model::{DenialReason, Service};
use tokio::{io::AsyncWriteExt, sync::OwnedSemaphorePermit, time::timeout};
use tokio_rustls::server::TlsStream;

use crate::{
    Core, accept,
    authorize::{Law, Refusal},
    connections::{Direction, Registered, Registration},
    dial::{self, Leave},
    events::AuditId,
    frame::{self, Answer, Opening, VERSION},
    handshake::{self, ServerSide},
    pass, renewal,
    report::{Asked, End},
    route::{Next, Route},
    splice::splice,
    stream::{BoxStream, Rewound, Stream, farewell},
};

type Tls = TlsStream<Rewound<BoxStream>>;

/// What an admitted stream is for.
enum Admitted {
    /// Bytes: the application was dialled and the permit sent.
    Live(Registered, Box<Tls>, BoxStream),
    /// It renewed others, and is over.
    Renewal,
}

/// A refusal, with the stream in which it can be told if TLS was up.
type Turned = (Refusal, Option<Box<Tls>>);

pub(crate) async fn serve(core: &Arc<Core>, mut stream: BoxStream) {
    let Some(place) = accept::place(core) else {
        stream.reset();
        return;
    };
    let mut asked = Asked::new(Direction::Inbound, None);
    match admit(core, stream, place, &mut asked).await {
        Ok(Admitted::Renewal) => {}
        Ok(Admitted::Live(connection, mut client, mut application)) => {
            let end = tokio::select! {
                biased;
                cut = connection.ended() => End::Cut(cut),
                carried = splice(&mut client, &mut application, &connection, &core.inputs.limits) => End::from(carried),
            };
            if !matches!(end, End::Closed) {
                client.reset();
                application.reset();
            }
            core.report_ended(&connection, &end);
        }
        Err((refusal, tls)) => {
            let audit = core.report_denied(&asked, &refusal);
            if let Some(tls) = tls {
                refuse(*tls, &refusal, audit).await;
            }
        }
    }
}

async fn admit(
    core: &Arc<Core>,
    mut stream: BoxStream,
    place: OwnedSemaphorePermit,
    asked: &mut Asked,
) -> Result<Admitted, Turned> {
    let untold = |refusal: Refusal| (refusal, None);
    let greeting = match pass::greet(core, &mut stream).await {
        Ok(greeting) => greeting,
        Err(refusal) => {
            stream.reset();
            return Err(untold(refusal));
        }
    };
    let (name, id, instance) = (greeting.service.clone(), greeting.header.connection, greeting.header.instance);
    asked.connection = Some(id);
    let checked = pass::prove(core, &greeting).and_then(|signed| {
        pass::fresh(core, Direction::Inbound, &greeting, signed.id())?;
        Ok(signed)
    });
    let signed = match checked {
        Ok(signed) => signed,
        Err(refusal) => {
            stream.reset();
            return Err(untold(refusal));
        }
    };
    asked.credential = Some(signed.leaf());
    let mut side = handshake::server(core, greeting, stream, &signed)
        .await
        .map_err(|(refusal, tls)| (refusal, tls.map(Box::new)))?;
    drop(place);

    let judged = judge(core, &mut side, &name, asked).await;
    let ServerSide { tls, client, exporter, deadline } = side;
    let mut tls = Box::new(tls);
    let (opening, law, service) = match judged {
        Ok(judged) => judged,
        Err(refusal) => return Err((refusal, Some(tls))),
    };
    let (source, own) = (client.id().clone(), core.inputs.instance);
    if instance.is_some_and(|wanted| wanted != own) {
        let refusal = Refusal::new(DenialReason::NoInstance, Some(&source), &name);
        return Err((refusal.because("other_instance", "another process of this service was asked for"), Some(tls)));
    }
    let now = now();
    let permit = match law.permit(&client, &service, now) {
        Ok(permit) => permit,
        Err(denial) => return Err((denial.into(), Some(tls))),
    };
    let permitted = |renewed| Answer::Permit { version: VERSION, instance: own, features: 0, renewed }.encode();
    if !opening.renews.is_empty() {
        let renewed = renewal::moved(core, &client, deadline, &service, &opening.renews);
        farewell(*tls, &permitted(renewed)).await;
        return Ok(Admitted::Renewal);
    }
    let registered = core.register(Registration {
        id,
        direction: Direction::Inbound,
        service: service.clone(),
        from: None,
        peer: client,
        session: None,
        rule: *permit.rule(),
        policy: law.revision(),
        lease: law.lease(&service),
        deadline: deadline.min(permit.deadline()),
        now,
        heading: None,
    });
    let connection = match registered {
        Ok(connection) => connection,
        Err(refusal) => return Err((refusal, Some(tls))),
    };
    let route = Route { service, next: Next::Application, instance: None, connection: id };
    let dialled = tokio::select! {
        biased;
        cut = connection.ended() => Err(cut.refusal(&source, &name)),
        dialled = dial::dial(core, Leave::Permit(&permit), &route) => dialled,
    };
    let application = match dialled {
        Ok(application) => application,
        Err(refusal) => return Err((refusal, Some(tls))),
    };
    core.connections.export(&connection, exporter);
    let sent = timeout(core.inputs.limits.handshake_timeout, async {
        tls.write_all(&permitted(0)).await?;
        tls.flush().await
    });
    if let Ok(Err(_)) | Err(_) = sent.await {
        let refusal = Refusal::new(DenialReason::Unreachable, Some(&source), &name);
        return Err(untold(refusal.because("stream_broke", "the caller went away before it was answered")));
    }
    connection.live();
    core.report_permitted(&connection);
    Ok(Admitted::Live(connection, tls, application))
}

/// Reads the client's frame, and finds what it is about.
async fn judge(
    core: &Core,
    side: &mut ServerSide,
    name: &federation_model::ServiceRef,
    asked: &Asked,
) -> Result<(Opening, Law, Service), Refusal> {
    let source = Some(side.client.id());
    let malformed = |word, detail: &dyn std::fmt::Display| {
        Refusal::new(DenialReason::Malformed, source, name).because(word, detail)
    };
    let limit = core.inputs.limits.handshake_timeout;
    let body = match timeout(limit, frame::read_body(&mut side.tls)).await {
        Ok(body) => body.map_err(|error| malformed("frame", &error))?,
        Err(_) => return Err(malformed("frame_timeout", &format!("no frame came within {limit:?}"))),
    };
    let opening = Opening::decode(&body).map_err(|error| malformed(error.reason(), &error))?;
    let (lowest, highest) = opening.versions;
    if !(lowest..=highest).contains(&VERSION) {
        let detail = format!("caller speaks versions {lowest} to {highest}, this side {VERSION}");
        return Err(malformed("frame_version", &detail));
    }
    if opening.service != *name {
        return Err(malformed("frame_service", &format!("frame is for {}, header for {name}", opening.service)));
    }
    if Some(opening.connection) != asked.connection {
        return Err(malformed("frame_connection", &"frame and header carry different connection ids"));
    }
    core.enforced(source, name)?;
    let law = Law::in_force(&core.inputs, source, name)?;
    let service = law.service(name, source)?;
    if service.id.cluster != law.snapshot.own {
        return Err(Refusal::new(DenialReason::UnknownService, source, name)
            .because("foreign_service", "the service is another cluster's"));
    }
    Ok((opening, law, service))
}

/// Tells a caller why, in the stream that it opened.
async fn refuse(tls: Tls, refusal: &Refusal, audit: AuditId) {
    let reason = refusal.denial.reason.as_str().to_owned();
    farewell(tls, &Answer::Denial { reason, detail: refusal.detail.clone(), audit }.encode()).await;
}
