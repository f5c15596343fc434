//! Strangers who do to HTTP/2 what its readers were broken with, on the port that anybody may reach: each is stopped or
//! held within a bound, and somebody else gets an answer meanwhile.

use std::{sync::Arc, time::Duration};

use federation_identity::{SvidKey, tls};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, split},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::support::{World, with_token};

/// Bytes that one connection may send in vain before it is ended, or not read any more.
const SENT_MAX: usize = 64 * 1024 * 1024;
/// How much memory one such connection may cost.
const MEMORY_MAX: usize = 48 * 1024 * 1024;
/// A write that takes so long is not read any more.
const STALLED: Duration = Duration::from_secs(2);
/// How long somebody else may wait for an answer meanwhile.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Headers of a call (RFC 7541: indexed, and literals that are not indexed).
fn call(extra: &[(&str, &str)]) -> Vec<u8> {
    let path = "/hanse.workload.WorkloadIdentity/Enrol";
    let mut block = vec![0x83, 0x87, 0x04, path.len() as u8];
    block.extend(path.as_bytes());
    let more = [("te", "trailers"), ("content-type", "application/grpc")];
    for (name, value) in more.iter().chain(extra) {
        block.push(0);
        for text in [name, value] {
            // A length of seven bits, or what is above in groups of seven.
            match text.len().checked_sub(127) {
                None => block.push(text.len() as u8),
                Some(mut rest) => {
                    block.push(127);
                    while rest >= 128 {
                        block.push(rest as u8 | 128);
                        rest >>= 7;
                    }
                    block.push(rest as u8);
                }
            }
            block.extend(text.as_bytes());
        }
    }
    block
}

async fn stranger(world: &World) -> TlsStream<TcpStream> {
    let own = world.links.federation().own.signer.clone();
    let config: Arc<_> = tls::enrol_client(own.root_pin(), own.candidate().trust_domain).expect("configuration");
    let stream = TcpStream::connect(world.discovery).await.expect("connect");
    let name = ServerName::try_from("edge.hanse").expect("name");
    let mut stream = TlsConnector::from(config).connect(name, stream).await.expect("handshake");
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("preface");
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.expect("settings");
    stream
}

/// How a connection ended that sent without end.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// The server closed it.
    Closed,
    /// The server reads no more of it.
    Stalled,
    /// It read everything.
    ReadAll,
}

/// Sends what `next` gives until the server has had enough; `reads` says whether its answers are read.
async fn flood(world: &World, reads: bool, mut next: impl FnMut(u32) -> Vec<u8>) -> Ended {
    let (mut receive, mut send) = split(stranger(world).await);
    let reading = tokio::spawn(async move {
        let mut sink = [0; 16 * 1024];
        while reads && matches!(receive.read(&mut sink).await, Ok(read) if read > 0) {}
        if !reads {
            // Held open, and never read.
            std::future::pending::<()>().await;
        }
    });
    let (mut sent, mut number) = (0, 0);
    let ended = loop {
        let mut batch = Vec::new();
        while batch.len() < 16 * 1024 {
            batch.extend(next(number));
            number += 1;
        }
        sent += batch.len();
        match timeout(STALLED, async { send.write_all(&batch).await.and(send.flush().await) }).await {
            Err(_) => break Ended::Stalled,
            Ok(Err(_)) => break Ended::Closed,
            Ok(Ok(())) if sent > SENT_MAX => break Ended::ReadAll,
            Ok(Ok(())) => {}
        }
    };
    reading.abort();
    ended
}

fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("statm");
    text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("pages") * 4096
}

/// Floods while somebody else enrols again and again.
async fn beside(reads: bool, next: impl FnMut(u32) -> Vec<u8>) -> (Ended, usize) {
    let world = World::new().await;
    let token = world.token("web.shop").await;
    let before = resident();
    let others = async {
        loop {
            let asked = world.enrol(with_token(&token, &SvidKey::generate()));
            // The token works once; what counts is that there is an answer.
            let _ = timeout(ANSWER_LIMIT, asked).await.expect("an answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let ended = tokio::select! {
        ended = flood(&world, reads, next) => ended,
        () = others => unreachable!(),
    };
    let grown = resident().saturating_sub(before);
    let asked = world.enrol(with_token(&token, &SvidKey::generate()));
    let _ = timeout(ANSWER_LIMIT, asked).await.expect("an answer afterwards");
    (ended, grown)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_opened_and_reset_without_end_end_the_connection() {
    let block = call(&[]);
    let (ended, grown) = beside(true, |number| {
        let stream = number * 2 + 1;
        let mut bytes = frame(HEADERS, END_HEADERS, stream, &block);
        bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        bytes
    })
    .await;
    assert_eq!(ended, Ended::Closed);
    assert!(grown < MEMORY_MAX, "{grown} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_go_on_without_end_end_the_connection() {
    let block = call(&[]);
    let (ended, grown) = beside(true, |number| match number {
        0 => frame(HEADERS, 0, 1, &block),
        _ => frame(CONTINUATION, 0, 1, &call(&[("x", &"a".repeat(8_000))])[block.len()..]),
    })
    .await;
    assert_eq!(ended, Ended::Closed);
    assert!(grown < MEMORY_MAX, "{grown} bytes");
    // Empty ones never reach a bound of bytes.
    let (ended, grown) = beside(true, |number| match number {
        0 => frame(HEADERS, 0, 1, &block),
        _ => frame(CONTINUATION, 0, 1, &[]),
    })
    .await;
    assert!(grown < MEMORY_MAX, "{ended:?}, {grown} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_whose_answers_nobody_reads_are_not_kept_without_end() {
    let ping: fn(u32) -> Vec<u8> = |number| frame(PING, 0, 0, &u64::from(number).to_be_bytes());
    let settings: fn(u32) -> Vec<u8> = |_| frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]);
    for next in [ping, settings] {
        let (ended, grown) = beside(false, next).await;
        assert_ne!(ended, Ended::ReadAll);
        assert!(grown < MEMORY_MAX, "{ended:?}, {grown} bytes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn padding_and_empty_data_cost_no_memory() {
    let block = call(&[]);
    for (flags, payload) in [(PADDED, vec![255; 1].into_iter().chain([0; 255]).collect::<Vec<u8>>()), (0, Vec::new())] {
        let (ended, grown) = beside(true, |number| match number {
            0 => frame(HEADERS, END_HEADERS, 1, &block),
            _ => frame(DATA, flags, 1, &payload),
        })
        .await;
        assert!(grown < MEMORY_MAX, "{ended:?}, {grown} bytes");
    }
}
