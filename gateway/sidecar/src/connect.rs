//! gRPC channels to the edge: over its Unix socket, or over TLS whose verification is identity's.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// How long connecting and the handshake may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// HTTP/2 pings on an idle feed: a dead edge is noticed within twice this.
const KEEPALIVE: Duration = Duration::from_secs(2);

/// A channel over the edge's Unix socket at `path`.
pub(crate) async fn unix(path: &Path) -> Result<Channel> {
    let path: PathBuf = path.to_owned();
    let shown = path.display().to_string();
    let connector = service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://localhost").connect_timeout(CONNECT_LIMIT);
    endpoint
        .connect_with_connector(connector)
        .await
        .with_context(|| format!("the edge's socket {shown}: is `hanse gateway` running, and may this user open it?"))
}

/// A channel over TLS to `address` (`host:port`, resolved anew at each call); `tls` decides whom it trusts.
pub(crate) async fn tls(address: &str, tls: Arc<rustls::ClientConfig>) -> Result<Channel> {
    let target = address.to_owned();
    let connector = service_fn(move |_: Uri| {
        let (target, tls) = (target.clone(), Arc::clone(&tls));
        async move {
            let dial = async {
                let stream = TcpStream::connect(&target).await?;
                stream.set_nodelay(true)?;
                // Identity's verifier looks at the SPIFFE ID, never at this name.
                let name = rustls::pki_types::ServerName::try_from("edge.hanse").map_err(io::Error::other)?;
                TlsConnector::from(tls).connect(name, stream).await
            };
            timeout(CONNECT_LIMIT, dial)
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no handshake within 5 s"))?
                .map(TokioIo::new)
        }
    });
    let endpoint = Endpoint::from_static("http://edge.hanse")
        .connect_timeout(CONNECT_LIMIT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true);
    endpoint.connect_with_connector(connector).await.with_context(|| format!("the edge at {address}"))
}
