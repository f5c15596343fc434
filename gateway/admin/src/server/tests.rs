//! Probes, pages and everything that is no request.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinHandle,
    time::Instant,
};

use super::*;
use crate::{Status, Table};

struct Page;

impl StatusPage for Page {
    fn status(&self) -> Status {
        let rows = vec![vec!["<west>".to_owned(), "up & well".to_owned()]];
        let table = Table { heading: "Links".into(), columns: vec!["member".into(), "state".into()], rows };
        Status { title: "Hanse gateway east".into(), facts: vec![("members".into(), "3".into())], tables: vec![table] }
    }
}

struct Running {
    address: SocketAddr,
    readiness: Readiness,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

async fn start_with(change: impl FnOnce(&mut Inputs)) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("tcp");
    let address = listener.local_addr().expect("bound");
    let readiness = Readiness::new();
    let exporter = crate::metrics::exporter_for_test();
    let status: Option<Arc<dyn StatusPage>> = Some(Arc::new(Page));
    let mut inputs =
        Inputs { readiness: readiness.clone(), exporter: Some(exporter), status, hosts: vec!["edge.example".into()] };
    change(&mut inputs);
    let stop = CancellationToken::new();
    let task = tokio::spawn(serve(vec![listener], inputs, stop.clone()));
    Running { address, readiness, stop, task }
}

async fn start() -> Running {
    start_with(|_| {}).await
}

/// Longer than any answer takes, and only waited for when a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// Sends bytes and reads until the server closes.
async fn exchange(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    stream.write_all(request).await.expect("sent");
    let mut answer = Vec::new();
    // A reset after the answer is a close as well.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("closed in time");
    String::from_utf8(answer).expect("UTF-8")
}

async fn get(address: SocketAddr, path: &str) -> String {
    exchange(address, format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).await
}

fn code(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or_default()
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

#[tokio::test]
async fn livez_is_ok_even_when_blocked_and_readyz_names_what_blocks_it() {
    let running = start().await;
    let identity = running.readiness.block("identity");
    let snapshot = running.readiness.block("first snapshot");
    assert_eq!(body(&get(running.address, "/livez").await), "ok\n");
    let blocked = get(running.address, "/readyz").await;
    assert_eq!((code(&blocked), body(&blocked)), (503, "waits for identity\nwaits for first snapshot\n"));
    identity.done();
    assert_eq!(body(&get(running.address, "/readyz").await), "waits for first snapshot\n");
    snapshot.done();
    let ready = get(running.address, "/readyz?verbose").await;
    assert_eq!((code(&ready), body(&ready)), (200, "ready\n"));
}

#[tokio::test]
async fn metrics_are_text_0_0_4() {
    let running = start().await;
    let answer = get(running.address, "/metrics").await;
    assert_eq!(code(&answer), 200);
    assert!(answer.to_lowercase().contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"));
    assert!(body(&answer).contains("test_series_total 1\n"), "{answer}");
}

#[tokio::test]
async fn the_status_page_is_escaped_and_allows_no_script() {
    let running = start().await;
    let answer = get(running.address, "/").await;
    assert_eq!(code(&answer), 200);
    assert!(body(&answer).contains("&lt;west&gt;") && body(&answer).contains("up &amp; well"));
    let head = answer.to_lowercase();
    for header in [
        "content-security-policy: default-src 'none'; style-src 'self'",
        "x-content-type-options: nosniff",
        "x-frame-options: deny",
        "cache-control: no-store",
    ] {
        assert!(head.contains(header), "{header}");
    }
    let style = get(running.address, "/style.css").await;
    assert!(code(&style) == 200 && style.contains("text/css"));
}

#[tokio::test]
async fn head_has_the_headers_and_no_body() {
    let running = start().await;
    let request = format!("HEAD /livez HTTP/1.1\r\nHost: {}\r\n\r\n", running.address);
    let answer = exchange(running.address, request.as_bytes()).await;
    assert!(code(&answer) == 200 && answer.to_lowercase().contains("content-length: 3") && body(&answer).is_empty());
}

#[tokio::test]
async fn other_methods_are_405_and_other_paths_404() {
    let running = start().await;
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"] {
        let request = format!("{method} /readyz HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\n\r\n", running.address);
        let answer = exchange(running.address, request.as_bytes()).await;
        assert_eq!(code(&answer), 405, "{method}");
        assert!(answer.to_lowercase().contains("allow: get, head\r\n"));
    }
    for path in ["/nothing", "/metrics/", "//", "/..", "/%2e%2e/etc/passwd", "/readyz/x", "/style.css.map"] {
        assert_eq!(code(&get(running.address, path).await), 404, "{path}");
    }
    let request = format!("POST /nothing HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\n\r\n", running.address);
    assert_eq!(code(&exchange(running.address, request.as_bytes()).await), 404);
}

#[tokio::test]
async fn what_is_not_given_is_404() {
    let running = start_with(|inputs| (inputs.exporter, inputs.status) = (None, None)).await;
    for path in ["/metrics", "/"] {
        assert_eq!(code(&get(running.address, path).await), 404, "{path}");
    }
    assert_eq!(code(&get(running.address, "/livez").await), 200);
}

#[tokio::test]
async fn answers_to_addresses_localhost_and_configured_names_only() {
    let running = start().await;
    let ask = |lines: String| {
        let address = running.address;
        async move { code(&exchange(address, format!("GET /metrics HTTP/1.1\r\n{lines}\r\n").as_bytes()).await) }
    };
    for host in [
        "127.0.0.1:9090",
        "10.1.2.3",
        "[::1]:9090",
        "[2001:db8::1]",
        "localhost:9090",
        "LocalHost",
        "EDGE.example:9090",
    ] {
        assert_eq!(ask(format!("Host: {host}\r\n")).await, 200, "{host}");
    }
    for host in [
        "evil.example",
        "127.0.0.1.evil.example",
        "edge.example.evil",
        "localhost.evil.example",
        "user@127.0.0.1",
        "127.0.0.1@evil.example",
        "a b",
        "",
        "127.0.0.1:port",
        "[::1",
        "edge.example.",
    ] {
        assert_eq!(ask(format!("Host: {host}\r\n")).await, 404, "{host}");
    }
    assert_eq!(ask("Host: 127.0.0.1\r\nHost: evil.example\r\n".into()).await, 404);
    // No browser leaves it out; simple probes do.
    assert_eq!(code(&exchange(running.address, b"GET /metrics HTTP/1.0\r\n\r\n").await), 200);
}

#[tokio::test]
async fn an_absolute_target_outranks_the_host_header() {
    let running = start().await;
    let request = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    let address = running.address;
    assert_eq!(code(&exchange(address, request("http://evil.example/metrics").as_bytes()).await), 404);
    assert_eq!(code(&exchange(address, request("http://127.0.0.1/metrics").as_bytes()).await), 200);
}

#[tokio::test]
async fn rubbish_gets_no_200() {
    let running = start().await;
    let header = format!("X: {}\r\n", "y".repeat(1000));
    for request in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"GET  /livez\r\n\r\n".to_vec(),
        b"\r\n\r\n\r\n\r\n\0\0\0\0".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        format!("GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n{}\r\n", header.repeat(40)).into_bytes(),
        format!("GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n{}\r\n", "A: b\r\n".repeat(200)).into_bytes(),
        format!("GET /{} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "a".repeat(100_000)).into_bytes(),
    ] {
        let mut stream = TcpStream::connect(running.address).await.expect("connects");
        // The server may close before all is sent.
        let _ = stream.write_all(&request).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("closed in time");
        let code = code(&String::from_utf8_lossy(&answer));
        assert!(code == 0 || (400..500).contains(&code), "{code}");
    }
    assert_eq!(code(&get(running.address, "/livez").await), 200);
}

#[tokio::test]
async fn a_connection_carries_one_request() {
    let running = start().await;
    let one = format!("GET /livez HTTP/1.1\r\nHost: {}\r\n\r\n", running.address);
    let answer = exchange(running.address, one.repeat(2).as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 1);
    assert!(answer.to_lowercase().contains("connection: close"));
}

#[tokio::test]
async fn the_65th_connection_is_closed() {
    let running = start().await;
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        held.push(TcpStream::connect(running.address).await.expect("connects"));
    }
    // Accepted in order, so by now all places are taken.
    let mut surplus = TcpStream::connect(running.address).await.expect("connects");
    let mut byte = [0];
    let read = timeout(HEADER_TIMEOUT / 2, surplus.read(&mut byte)).await.expect("closed at once, not after a timeout");
    assert!(matches!(read, Ok(0) | Err(_)));
}

#[tokio::test(start_paused = true)]
async fn a_slow_head_is_cut_off() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("tcp");
    let mut client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connects");
    let (stream, _) = listener.accept().await.expect("accepted");
    client.write_all(b"GET /livez HTTP/1.1\r\nHo").await.expect("sent");
    let inputs = Inputs { readiness: Readiness::new(), exporter: None, status: None, hosts: Vec::new() };
    let place = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("a place");
    let begun = Instant::now();
    serve_connection(stream, Arc::new(inputs), place).await;
    assert_eq!(begun.elapsed().as_secs(), HEADER_TIMEOUT.as_secs());
}

#[tokio::test]
async fn stops_when_told_and_frees_its_port() {
    let running = start().await;
    let _open = TcpStream::connect(running.address).await.expect("connects");
    assert_eq!(code(&get(running.address, "/livez").await), 200);
    running.stop.cancel();
    timeout(PATIENCE, running.task).await.expect("in time").expect("no panic");
    assert!(TcpStream::connect(running.address).await.is_err());
}
