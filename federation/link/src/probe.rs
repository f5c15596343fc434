//! Whether anything at an address answers as a federation edge would: for the demo's and an operator's doubts.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use federation_identity::{LiveSvid, Verifier, tls};
use federation_model::TrustDomain;
use rustls::pki_types::ServerName;

use crate::{Limits, endpoint, wire::printable};

/// What an address said to a QUIC handshake with ALPN `hanse-fed/1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing came back within the limit.
    Silent,
    /// Something speaks QUIC there, but no handshake completed.
    Answered(String),
    /// A handshake completed.
    Completed,
}

/// Dials `address` as a stranger would, who believes nobody and shows nothing.
///
/// # Errors
/// No socket, or no configuration, could be made.
pub async fn quic(address: SocketAddr, limit: Duration) -> Result<Answer, crate::LinkError> {
    let failed = |error: String| crate::LinkError::Tls(error);
    let tls = stranger()?;
    let config = endpoint::client_config(tls, endpoint::transport(&Limits::default())).map_err(failed)?;
    let socket = endpoint::dialling()?;
    let connecting = socket.connect_with(config, address, endpoint::SERVER_NAME);
    let connecting = connecting.map_err(|error| failed(error.to_string()))?;
    Ok(match tokio::time::timeout(limit, connecting).await {
        Ok(Ok(_)) => Answer::Completed,
        Ok(Err(quinn::ConnectionError::TimedOut)) | Err(_) => Answer::Silent,
        Ok(Err(error)) => Answer::Answered(printable(&error.to_string())),
    })
}

/// The same over TCP: a TLS handshake with ALPN `hanse-fed/1`.
///
/// # Errors
/// No configuration could be made.
pub async fn tls(address: SocketAddr, limit: Duration) -> Result<Answer, crate::LinkError> {
    let config = stranger()?;
    // A few blocking reads of a probe do not deserve another TLS crate in this room.
    let dialled = tokio::task::spawn_blocking(move || {
        let Ok(mut stream) = TcpStream::connect_timeout(&address, limit) else { return Answer::Silent };
        let name = ServerName::try_from(endpoint::SERVER_NAME).map_err(|error| error.to_string());
        let begin = |name| rustls::ClientConnection::new(config, name).map_err(|error| error.to_string());
        let mut connection =
            match stream.set_read_timeout(Some(limit)).map_err(|e| e.to_string()).and(name).and_then(begin) {
                Ok(connection) => connection,
                Err(error) => return Answer::Answered(error),
            };
        while connection.is_handshaking() {
            match connection.complete_io(&mut stream) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Answer::Silent,
                Err(error) => return Answer::Answered(printable(&error.to_string())),
            }
        }
        Answer::Completed
    });
    dialled.await.map_err(|error| crate::LinkError::Tls(error.to_string()))
}

/// What somebody offers whom nobody knows.
fn stranger() -> Result<Arc<rustls::ClientConfig>, crate::LinkError> {
    let failed = |error: String| crate::LinkError::Tls(error);
    let nobody: TrustDomain = "nobody.invalid".parse().map_err(|error| failed(format!("{error}")))?;
    tls::session_client(&LiveSvid::new(), &Verifier::new(), nobody).map_err(|error| failed(error.to_string()))
}
