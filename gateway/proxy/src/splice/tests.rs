//! Splicing two pairs of in-memory streams.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::JoinHandle,
};

use super::*;
use crate::{connections::Connections, tests::world};

/// The two outer ends of a spliced pair, and what became of it.
fn spliced(limits: Limits, room: usize) -> (DuplexStream, DuplexStream, JoinHandle<Result<(), Broken>>) {
    let (client, mut inner_client) = duplex(room);
    let (server, mut inner_server) = duplex(room);
    let registry = std::sync::Arc::new(Connections::new(1));
    let connection = world::registered(&registry);
    let task = tokio::spawn(async move { splice(&mut inner_client, &mut inner_server, &connection, &limits).await });
    (client, server, task)
}

#[tokio::test]
async fn bytes_go_both_ways_and_an_end_is_passed_on() {
    let (mut client, mut server, task) = spliced(Limits::default(), 64);
    client.write_all(b"ask").await.unwrap();
    client.shutdown().await.unwrap();
    let mut asked = Vec::new();
    server.read_to_end(&mut asked).await.unwrap();
    assert_eq!(asked, b"ask");
    // The other direction goes on after the first has ended.
    let answer = vec![7; 100_000];
    let sent = answer.clone();
    let writer = tokio::spawn(async move {
        server.write_all(&sent).await.unwrap();
        server.shutdown().await.unwrap();
    });
    let mut got = Vec::new();
    client.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, answer);
    writer.await.unwrap();
    assert!(task.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_direction_whose_reader_pauses_does_not_hold_up_the_other() {
    let (client, server, _task) = spliced(Limits::default(), 64);
    let (mut client_read, mut client_write) = tokio::io::split(client);
    let (mut server_read, mut server_write) = tokio::io::split(server);
    // Nobody reads at the server: this direction fills up.
    let flood = tokio::spawn(async move { client_write.write_all(&[1; 1_000_000]).await });
    for _ in 0..100 {
        server_write.write_all(b"tick").await.unwrap();
        let mut tick = [0; 4];
        client_read.read_exact(&mut tick).await.unwrap();
    }
    assert!(!flood.is_finished());
    let mut all = vec![0; 1_000_000];
    server_read.read_exact(&mut all).await.unwrap();
    flood.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_takes_nothing_for_too_long_ends_it() {
    let (mut client, _server, task) = spliced(Limits::default(), 64);
    client.write_all(&[0; 100]).await.unwrap();
    assert!(matches!(task.await.unwrap(), Err(Broken::Stalled)));
}

#[tokio::test(start_paused = true)]
async fn silence_after_one_direction_ended_ends_it_but_bytes_prolong_it() {
    let limits = Limits { half_close: Duration::from_secs(60), ..Limits::default() };
    let (mut client, mut server, task) = spliced(limits, 64);
    client.shutdown().await.unwrap();
    let started = tokio::time::Instant::now();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(50)).await;
        server.write_all(b"x").await.unwrap();
        let mut one = [0];
        client.read_exact(&mut one).await.unwrap();
    }
    assert!(matches!(task.await.unwrap(), Err(Broken::HalfClosed)));
    assert!(started.elapsed() >= Duration::from_secs(310));
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_left_alone_and_holds_no_buffer() {
    let (mut client, mut server, task) = spliced(Limits::default(), 64);
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    assert!(!task.is_finished());
    client.write_all(b"still").await.unwrap();
    let mut got = [0; 5];
    server.read_exact(&mut got).await.unwrap();
}

#[test]
fn a_direction_keeps_only_what_was_not_taken() {
    let (count, answered) = (AtomicU64::new(0), AtomicBool::new(true));
    let mut half = Half::new(&count, Toward::Server, &answered);
    let waker = std::task::Waker::noop();
    let mut cx = Context::from_waker(waker);
    let (mut writer, _held) = duplex(10);
    assert!(half.write(&[1; 25], &mut writer, &mut cx).is_pending());
    assert_eq!((half.left.len(), count.load(Ordering::Relaxed)), (15, 10));
    assert!(!answered.load(Ordering::Relaxed));
    let empty = Half::new(&count, Toward::Client, &answered);
    assert_eq!(empty.left.capacity(), 0);
}
