//! The admin listener: `/livez`, `/readyz`, `/metrics`, `/` and its style sheet.
//!
//! In: plain HTTP from probes, scrapers and browsers. Out: what the program says of itself. Never: changes anything,
//! reads a body, keeps a connection for a second request, or answers for a host name that nobody configured (a page that
//! a browser loads could otherwise point its own name here and read the answers).

use std::{convert::Infallible, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderName, HeaderValue},
    http::uri::Authority,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Readiness, StatusPage,
    metrics::{Exporter, READY},
    page,
};

/// Most connections at a time, over all listeners. One more is closed at once.
pub const CONNECTIONS_MAX: usize = 64;
/// How long a client may take for the head of its request.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may live: head, answer and all.
pub const CONNECTION_LIFETIME: Duration = Duration::from_secs(30);
/// How often observations are folded into buckets.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// Rest after a failed accept, so that a process out of descriptors does not spin.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// What the admin server shows.
#[derive(Clone)]
pub struct Inputs {
    pub readiness: Readiness,
    /// `None` answers 404 on `/metrics`.
    pub exporter: Option<Exporter>,
    /// `None` answers 404 on `/`.
    pub status: Option<Arc<dyn StatusPage>>,
    /// Host names under which clients reach this listener, besides `localhost` and every IP address.
    pub hosts: Vec<String>,
}

/// Serves on all `listeners` until `stop` is cancelled; open connections end with it.
pub async fn serve(listeners: Vec<TcpListener>, inputs: Inputs, stop: CancellationToken) {
    let inputs = Arc::new(inputs);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut tasks = JoinSet::new();
    for listener in listeners {
        tasks.spawn(accept(listener, Arc::clone(&inputs), Arc::clone(&places)));
    }
    if let Some(exporter) = inputs.exporter.clone() {
        tasks.spawn(async move {
            loop {
                sleep(UPKEEP_EVERY).await;
                exporter.upkeep();
            }
        });
    }
    stop.cancelled().await;
    tasks.shutdown().await;
}

async fn accept(listener: TcpListener, inputs: Arc<Inputs>, places: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    // Without a place the stream is dropped, which closes it.
                    if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
                        connections.spawn(serve_connection(stream, Arc::clone(&inputs), place));
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "admin connection could not be accepted");
                    sleep(ERROR_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve_connection(stream: TcpStream, inputs: Arc<Inputs>, _place: OwnedSemaphorePermit) {
    let service = service_fn(|request| {
        let response = inputs.respond(&request);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(16 * 1024)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = timeout(CONNECTION_LIFETIME, connection).await {
        tracing::debug!(%error, "admin connection ended");
    }
}

impl Inputs {
    fn respond(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !self.host_is_ours(request) {
            return plain(
                StatusCode::NOT_FOUND,
                "unknown host: use an IP address or localhost, or name the host in the configuration\n",
            );
        }
        let path = request.uri().path();
        let known = match path {
            "/livez" | "/readyz" | "/style.css" => true,
            "/metrics" => self.exporter.is_some(),
            "/" => self.status.is_some(),
            _ => false,
        };
        if !known {
            return plain(StatusCode::NOT_FOUND, "not found\n");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are allowed\n");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        self.page(path)
    }

    fn page(&self, path: &str) -> Response<Full<Bytes>> {
        let blocked_by = self.readiness.blocked_by();
        match (path, &self.exporter, &self.status) {
            ("/livez", ..) => plain(StatusCode::OK, "ok\n"),
            ("/readyz", ..) if blocked_by.is_empty() => {
                let notes: String = self.readiness.notes().iter().map(|line| format!("{line}\n")).collect();
                plain(StatusCode::OK, format!("ready\n{notes}"))
            }
            ("/readyz", ..) => {
                let lines: String = blocked_by.iter().map(|name| format!("waits for {name}\n")).collect();
                plain(StatusCode::SERVICE_UNAVAILABLE, lines)
            }
            ("/style.css", ..) => response(StatusCode::OK, "text/css; charset=utf-8", page::STYLE),
            ("/metrics", Some(exporter), _) => {
                ::metrics::gauge!(READY).set(if blocked_by.is_empty() { 1.0 } else { 0.0 });
                response(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", exporter.render())
            }
            ("/", _, Some(status)) => {
                response(StatusCode::OK, "text/html; charset=utf-8", page::render(&status.status(), &blocked_by))
            }
            _ => plain(StatusCode::NOT_FOUND, "not found\n"),
        }
    }

    /// Whether the request is for us by address, by `localhost`, or by a configured name. A client that names no host at
    /// all is no browser.
    fn host_is_ours(&self, request: &Request<Incoming>) -> bool {
        let mut named = request.headers().get_all(header::HOST).iter();
        let host = match (request.uri().authority(), named.next()) {
            // An absolute target outranks the header (RFC 9112, 3.2.2).
            (Some(authority), _) => Some(authority.clone()),
            (None, Some(value)) => match Authority::try_from(value.as_bytes()) {
                Ok(authority) => Some(authority),
                Err(_) => return false,
            },
            (None, None) => None,
        };
        if named.next().is_some() {
            return false;
        }
        let Some(authority) = host else { return true };
        let host = authority.host();
        let port = match authority.as_str().strip_prefix(host) {
            Some("") => "0",
            // Also what has a user name before the host.
            other => other.and_then(|rest| rest.strip_prefix(':')).unwrap_or("none"),
        };
        if port.parse::<u16>().is_err() {
            return false;
        }
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        bare.parse::<IpAddr>().is_ok()
            || host.eq_ignore_ascii_case("localhost")
            || self.hosts.iter().any(|name| name.eq_ignore_ascii_case(host))
    }
}

fn plain(code: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    response(code, "text/plain; charset=utf-8", text)
}

fn response(code: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    const HEADERS: [(HeaderName, &str); 5] = [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ];
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests;
