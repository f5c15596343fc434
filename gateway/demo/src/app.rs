//! The application of the demo: a small HTTP service that says its name, and a clock that ticks for ever.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use axum::{Router, body::Body, response::Response, routing::get};
use tokio::net::TcpListener;
use tokio_stream::{StreamExt, wrappers::IntervalStream};

/// Time between two ticks of `/clock`.
pub(crate) const TICK: Duration = Duration::from_millis(50);

/// Serves `/` (one line with the name) and `/clock` (a line each [`TICK`]) until the process is ended.
pub(crate) async fn serve(name: String, listen: SocketAddr) -> Result<()> {
    let hello = name.clone();
    let router = Router::new()
        .route("/", get(move || async move { format!("hello from {hello}\n") }))
        .route("/clock", get(clock));
    let listener = TcpListener::bind(listen).await?;
    println!("{name} listens on {}", listener.local_addr()?);
    axum::serve(listener, router).with_graceful_shutdown(terminated()).await?;
    Ok(())
}

async fn clock() -> Response<Body> {
    let mut number = 0_u64;
    let ticks = IntervalStream::new(tokio::time::interval(TICK)).map(move |_| {
        number += 1;
        Ok::<_, std::convert::Infallible>(format!("tick {number}\n"))
    });
    Response::new(Body::from_stream(ticks))
}

async fn terminated() {
    if let Ok(mut signal) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        signal.recv().await;
    }
}
