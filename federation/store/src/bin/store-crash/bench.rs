//! Latency and throughput of applies on the disk at hand.

use std::{sync::Arc, time::Duration};

use federation_store::{Change, Key, Kind, Store};
use tokio::time::Instant;

use crate::{Options, world::open};

/// About the size of a signed intention.
const VALUE_BYTES: usize = 400;
const ALONE: u32 = 3000;
const TOGETHER: u32 = 64;
const EACH: u32 = 300;
const COLD: u32 = 100_000;

pub(crate) async fn run(options: &Options) -> Result<(), String> {
    let path = options.directory.join("bench");
    let store = open(&path).await.map_err(|error| error.to_string())?;
    println!("{{\"one_writer\":{},", measure(&store, 1, ALONE).await?);
    println!(" \"{TOGETHER}_writers\":{},", measure(&store, TOGETHER, EACH).await?);

    let changes = (0..COLD).map(|number| put(u32::MAX, number)).collect();
    let begun = Instant::now();
    store.apply(changes).await.map_err(|error| error.to_string())?;
    println!(" \"one_apply_of_{COLD}_rows_ms\":{},", begun.elapsed().as_millis());
    drop(store);

    let begun = Instant::now();
    let store = open(&path).await.map_err(|error| error.to_string())?;
    let opened = begun.elapsed();
    let rows = store.list(Kind::Record, b"").await.map_err(|error| error.to_string())?;
    println!(
        " \"rows\":{},\"open_and_verify_ms\":{},\"list_ms\":{}}}",
        rows.len(),
        opened.as_millis(),
        (begun.elapsed() - opened).as_millis()
    );
    drop(store);
    std::fs::remove_dir_all(&options.directory).map_err(|error| format!("cleaning up: {error}"))
}

fn put(writer: u32, number: u32) -> Change {
    let name = [writer.to_be_bytes(), number.to_be_bytes()].concat().repeat(10);
    Change::put(Key::new(Kind::Record, name), vec![number as u8; VALUE_BYTES])
}

/// Applies of one row each by `writers` at once; the figures as JSON.
async fn measure(store: &Arc<dyn Store>, writers: u32, each: u32) -> Result<String, String> {
    let begun = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                let mut spans = Vec::new();
                for number in 0..each {
                    let begun = Instant::now();
                    store.apply(vec![put(writer, number)]).await.map_err(|error| error.to_string())?;
                    spans.push(begun.elapsed());
                }
                Ok::<_, String>(spans)
            })
        })
        .collect();
    let mut spans: Vec<Duration> = Vec::new();
    for task in tasks {
        spans.extend(task.await.map_err(|error| error.to_string())??);
    }
    let total = begun.elapsed();
    spans.sort();
    let at = |share: usize| spans.get((spans.len() * share / 1000).min(spans.len() - 1)).map_or(0, Duration::as_micros);
    Ok(format!(
        "{{\"applies\":{},\"p50_us\":{},\"p99_us\":{},\"max_us\":{},\"per_second\":{:.0}}}",
        spans.len(),
        at(500),
        at(990),
        at(1000),
        spans.len() as f64 / total.as_secs_f64()
    ))
}
