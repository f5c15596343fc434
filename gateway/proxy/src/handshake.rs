//! Stage 3: mTLS end to end, and one frame each way behind it.
//!
//! In: a stream and who is expected, or a greeting and a stream. Out: a TLS stream, the peer that it proved, and the
//! value that names this connection in renewals. Never: another version than TLS 1.3, another protocol than
//! `hanse-mesh/1`, or a client whose TLS identity is not the one that signed its header.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use federation_identity::{now, passthrough, sha256, tls};
use federation_model::{ConnectionId, DenialReason, InstanceId, ServiceRef, SpiffeId, Timestamp, VerifiedPeer};
use rustls::{AlertDescription, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    sync::oneshot,
    time::{Instant, timeout_at},
};
use tokio_rustls::{TlsConnector, client, server};

use crate::{
    Core,
    authorize::Refusal,
    connections::Heading,
    frame::{Answer, Exporter, body_length},
    sni::Greeting,
    stream::{BoxStream, Rewound, Stream},
};

/// The source's end of a finished handshake.
pub(crate) struct ClientSide {
    pub(crate) tls: client::TlsStream<BoxStream>,
    /// Who serves, as proved.
    pub(crate) server: VerifiedPeer,
    pub(crate) exporter: Exporter,
    pub(crate) heading: Heading,
    /// When the first of the two credentials ends.
    pub(crate) deadline: Timestamp,
}

/// The destination's end of a finished handshake.
pub(crate) struct ServerSide {
    pub(crate) tls: server::TlsStream<Rewound<BoxStream>>,
    /// Who calls, as TLS proved.
    pub(crate) client: VerifiedPeer,
    pub(crate) exporter: Exporter,
    pub(crate) deadline: Timestamp,
}

/// Sends header and ClientHello, and finishes the handshake with one of the service's own identities.
pub(crate) async fn client(
    core: &Core,
    stream: BoxStream,
    own: &VerifiedPeer,
    service: &ServiceRef,
    expected: Vec<SpiffeId>,
    connection: ConnectionId,
    instance: Option<InstanceId>,
) -> Result<ClientSide, Refusal> {
    let refuse = |reason| Refusal::new(reason, Some(own.id()), service);
    let inputs = &core.inputs;
    let svid = inputs.svid.get().ok_or_else(|| refuse(DenialReason::WrongProof).because("no_svid", "no SVID yet"))?;
    let internal = |error: &dyn std::fmt::Display| refuse(DenialReason::Malformed).because("tls_config", error);
    let config = tls::mesh_client(&inputs.svid, &inputs.verifier, expected).map_err(|e| internal(&e))?;
    let destination = service.dns();
    let name = ServerName::try_from(destination.clone()).map_err(|e| internal(&e))?;

    // The header signs the hash of the ClientHello, so that is taken out of rustls before the stream sees a byte.
    let mut hello = Vec::new();
    let mut written = Ok(());
    let mut connecting = TlsConnector::from(config).connect_with(name, stream, |tls| {
        while written.is_ok() && tls.wants_write() {
            written = tls.write_tls(&mut hello).map(|_| ());
        }
    });
    written.map_err(|e| internal(&e))?;
    let at = now();
    let header = passthrough::sign(&svid, &destination, connection, instance, &hello, at).map_err(|e| internal(&e))?;
    let heading = Heading { destination, hello: sha256(&hello), at };
    let mut greeting = header;
    greeting.extend_from_slice(&hello);

    // An edge on the way may hold the stream until its next hop is back.
    let limit = inputs.limits.handshake_timeout + inputs.limits.hold;
    let until = Instant::now() + limit;
    let broke = |error: io::Error| {
        let (reason, word) = tls_fault(&error);
        refuse(reason).because(word, &error)
    };
    let finished = timeout_at(until, async {
        let stream = connecting.get_mut().ok_or(io::ErrorKind::NotConnected)?;
        stream.write_all(&greeting).await?;
        stream.flush().await?;
        connecting.await
    });
    let tls = match finished.await {
        Ok(finished) => finished.map_err(broke)?,
        Err(_) => {
            let detail = format!("TLS did not finish within {limit:?}");
            return Err(refuse(DenialReason::Unreachable).because("handshake_timeout", detail));
        }
    };
    let session = tls.get_ref().1;
    tls::check_alpn(session.alpn_protocol(), tls::ALPN_MESH)
        .map_err(|e| refuse(DenialReason::IdentityMismatch).because("alpn", &e))?;
    let server = inputs
        .verifier
        .tls_peer(session.peer_certificates().unwrap_or_default(), now())
        .map_err(|e| refuse(DenialReason::IdentityMismatch).because(e.reason(), &e))?;
    let exporter = session.export_keying_material([0; 32], tls::EXPORTER_MESH, None).map_err(|e| internal(&e))?;
    let deadline = own.not_after().min(server.not_after());
    Ok(ClientSide { tls, server, exporter, heading, deadline })
}

/// Goes on with the handshake that a greeting began, and requires in TLS the identity that signed the header.
///
/// On a mismatch the stream comes back with the refusal, so that it can be told.
pub(crate) async fn server(
    core: &Core,
    greeting: Greeting,
    stream: BoxStream,
    signed: &VerifiedPeer,
) -> Result<ServerSide, (Refusal, Option<server::TlsStream<Rewound<BoxStream>>>)> {
    let inputs = &core.inputs;
    let service = greeting.service.clone();
    let refuse = |reason| Refusal::new(reason, Some(signed.id()), &service);
    let internal = |error: &dyn std::fmt::Display| refuse(DenialReason::Malformed).because("tls_config", error);
    // Read before the handshake: what TLS then shows is this one or a newer one, which ends later.
    let svid = inputs.svid.get();
    let own_end = svid.ok_or_else(|| (refuse(DenialReason::WrongProof).because("no_svid", "no SVID yet"), None))?;
    let config = tls::mesh_server(&inputs.svid, &inputs.verifier).map_err(|e| (internal(&e), None))?;
    let (accepted, rest) = greeting.into_handshake();
    let start = tokio_rustls::StartHandshake::from_parts(accepted, Rewound::new(stream, rest));
    let until = Instant::now() + inputs.limits.handshake_timeout;
    let tls = match timeout_at(until, start.into_stream(config)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            let (reason, word) = tls_fault(&error);
            return Err((refuse(reason).because(word, &error), None));
        }
        Err(_) => {
            let detail = format!("TLS did not finish within {:?}", inputs.limits.handshake_timeout);
            return Err((refuse(DenialReason::Unreachable).because("handshake_timeout", detail), None));
        }
    };
    let session = tls.get_ref().1;
    let proved = inputs.verifier.tls_peer(session.peer_certificates().unwrap_or_default(), now());
    let exported = session.export_keying_material([0; 32], tls::EXPORTER_MESH, None);
    let client = match proved {
        Ok(client) if client.id() == signed.id() => client,
        Ok(client) => {
            let detail = format!("{} signed the header, TLS proved {}", signed.id(), client.id());
            let refusal = Refusal::new(DenialReason::IdentityMismatch, Some(client.id()), &service);
            return Err((refusal.because("header_identity", detail), Some(tls)));
        }
        Err(error) => return Err((refuse(DenialReason::WrongProof).because(error.reason(), &error), Some(tls))),
    };
    let exporter = exported.map_err(|e| (internal(&e), None))?;
    let deadline = client.not_after().min(own_end.not_after());
    Ok(ServerSide { tls, client, exporter, deadline })
}

/// What a failed handshake says of the one at the far end.
fn tls_fault(error: &io::Error) -> (DenialReason, &'static str) {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(error @ rustls::Error::InvalidCertificate(_)) => match tls::svid_error(error) {
            Some(federation_identity::SvidError::Expired { .. }) => (DenialReason::Expired, "expired"),
            Some(federation_identity::SvidError::Revoked(_)) => (DenialReason::Revoked, "revoked"),
            Some(cause) => (DenialReason::IdentityMismatch, cause.reason()),
            None => (DenialReason::IdentityMismatch, "tls_certificate"),
        },
        Some(rustls::Error::AlertReceived(AlertDescription::CertificateExpired)) => {
            (DenialReason::Expired, "tls_alert")
        }
        Some(rustls::Error::AlertReceived(_)) => (DenialReason::WrongProof, "tls_alert"),
        Some(rustls::Error::NoCertificatesPresented) => (DenialReason::WrongProof, "tls_no_certificate"),
        Some(_) => (DenialReason::Malformed, "tls"),
        None => (DenialReason::Unreachable, "stream_broke"),
    }
}

/// What the server said in its frame.
pub(crate) type Said = Result<Answer, Refused>;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) reason: DenialReason,
    pub(crate) word: &'static str,
    pub(crate) detail: String,
}

/// A TLS stream whose first bytes from the server are its frame: taken off on the way, and told. A denial ends the
/// stream with an error, so that nothing that looks like an answer reaches the application.
pub(crate) struct Answered<S> {
    stream: S,
    /// `None` once the frame was read.
    waiting: Option<Waiting>,
}

struct Waiting {
    frame: Vec<u8>,
    tell: oneshot::Sender<Said>,
}

impl<S> Answered<S> {
    pub(crate) fn new(stream: S) -> (Self, oneshot::Receiver<Said>) {
        let (tell, told) = oneshot::channel();
        (Self { stream, waiting: Some(Waiting { frame: Vec::new(), tell }) }, told)
    }
}

impl<S: AsyncRead + Unpin> Answered<S> {
    /// Reads until the frame is whole, and not one byte more.
    fn poll_frame(stream: &mut S, frame: &mut Vec<u8>, cx: &mut Context<'_>) -> Poll<io::Result<Answer>> {
        loop {
            let whole = match frame.first_chunk::<2>() {
                Some(length) => 2 + body_length(*length)?,
                None => 2,
            };
            if whole > 2 && frame.len() == whole {
                return Poll::Ready(Ok(Answer::decode(frame.get(2..).unwrap_or_default())?));
            }
            let mut space = [0; 1024];
            let wanted = (whole - frame.len()).min(space.len());
            let mut buffer = ReadBuf::new(space.get_mut(..wanted).unwrap_or_default());
            ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            frame.extend_from_slice(buffer.filled());
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Answered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(waiting) = &mut this.waiting {
            let answer = ready!(Self::poll_frame(&mut this.stream, &mut waiting.frame, cx));
            let refused = |error: &io::Error| {
                let (reason, word) = match error.get_ref().and_then(|e| e.downcast_ref::<crate::frame::FrameError>()) {
                    Some(error) => (DenialReason::Malformed, error.reason()),
                    None => tls_fault(error),
                };
                Refused { reason, word, detail: error.to_string() }
            };
            let go_on = matches!(answer, Ok(Answer::Permit { .. }));
            if let Some(Waiting { tell, .. }) = this.waiting.take() {
                // Nobody listening any more means that the connection is being torn down.
                let _ = tell.send(answer.map_err(|error| refused(&error)));
            }
            if !go_on {
                return Poll::Ready(Err(io::ErrorKind::PermissionDenied.into()));
            }
        }
        Pin::new(&mut this.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Answered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: Stream> Stream for Answered<S> {
    fn reset(&mut self) {
        self.stream.reset();
    }
}
