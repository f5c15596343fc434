//! Fifty times kill -9 of an edge while rules are written to it: what was acknowledged is there, here and elsewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use testbed::worlds::{Answer, CONVERGE, Cluster, Failure, Plan, World, link, until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

const KILLS: usize = 50;
/// Writers at the same time: one reply may be on its way while the next record is being written.
const WRITERS: usize = 2;
/// Destinations that the rules name, in turn.
const SERVICES: usize = 40;
/// How long the edge may take to take writes again after a kill.
const BACK_LIMIT: Duration = Duration::from_secs(20);
/// An empty SETTINGS frame: the least that an HTTP/2 server says first (RFC 9113, 3.4).
const H2_SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
/// Pause of a writer that found no gateway.
const RETRY: Duration = Duration::from_millis(10);

/// What was acknowledged: the records for which the verb ended with 0.
#[derive(Default)]
struct Acknowledged {
    count: AtomicUsize,
    /// Verbs that did not end with 0, by the code and the words they ended with.
    refused: Mutex<BTreeMap<String, usize>>,
    rules: Mutex<BTreeSet<String>>,
}

impl Acknowledged {
    fn note(&self, how: String) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(how).or_default() += 1;
    }
}

/// Writes one rule after the other until told to stop. Each names a source of its own, so that none replaces another.
async fn write(socket: &Path, writer: usize, seen: &Acknowledged, stop: &AtomicBool) -> Result<()> {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let source = format!("w{writer}n{number}.load.east");
        let destination = format!("s{}.load.east", number % SERVICES);
        let answer = Answer::of(socket, &["intention", "allow", &source, &destination, "-o", "json"]).await?;
        match answer.code {
            0 => {
                let id = answer.json()?["intention"]["id"].as_str().context("an id")?.to_owned();
                seen.rules.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
                seen.count.fetch_add(1, Ordering::Relaxed);
            }
            // Not there, gone in the middle, or not ready: nothing was promised.
            3 | 5 => {
                let words = answer.words.replace(&*socket.to_string_lossy(), "SOCKET");
                seen.note(format!("{} {}", answer.code, words.trim_end()));
                sleep(RETRY).await;
            }
            other => bail!("exit code {other}: {}", answer.words),
        }
    }
    Ok(())
}

/// Waits for `more` further acknowledgements.
async fn until_acknowledged(seen: &Acknowledged, more: usize) -> Result<()> {
    let wanted = seen.count.load(Ordering::Relaxed) + more;
    let enough = async {
        while seen.count.load(Ordering::Relaxed) < wanted {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(BACK_LIMIT, enough).await.with_context(|| format!("no write was acknowledged within {BACK_LIMIT:?}"))
}

async fn ids(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let rules = cluster.list(&["intention", "list"], "intentions").await?;
    Ok(rules.iter().filter_map(|rule| rule["id"].as_str().map(str::to_owned)).collect())
}

#[tokio::test]
async fn fifty_kills_of_an_edge_during_writes_lose_nothing_that_was_acknowledged() -> Result<(), Failure> {
    World::tell(Duration::from_secs(150), async |world| {
        let (mut east, west) = tokio::try_join!(
            Cluster::start(world, Plan::new("east").relayed()),
            Cluster::start(world, Plan::new("west").relayed()),
        )?;
        link(&[&east, &west], &[]).await?;
        let seen = Arc::new(Acknowledged::default());
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let (socket, seen, stop) = (east.socket().to_owned(), seen.clone(), stop.clone());
            writers.spawn(async move { write(&socket, writer, &seen, &stop).await });
        }

        let seed = rand::random();
        let mut random = StdRng::seed_from_u64(seed);
        let start = Instant::now();
        for kill in 0..KILLS {
            // Some die while they start, most with a write under way.
            if kill % 5 == 4 {
                sleep(Duration::from_millis(random.random_range(0..50))).await;
            } else {
                until_acknowledged(&seen, random.random_range(1..5)).await?;
                sleep(Duration::from_micros(random.random_range(0..20_000))).await;
            }
            east.crash().await.with_context(|| format!("kill {kill}, seed {seed}"))?;
            east.start_again()?;
        }
        let took = start.elapsed();
        until_acknowledged(&seen, 1).await?;
        stop.store(true, Ordering::Relaxed);
        while let Some(written) = writers.join_next().await {
            written??;
        }
        east.ready().await?;

        let acknowledged = seen.rules.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let kept = ids(&east).await?;
        let lost: Vec<_> = acknowledged.difference(&kept).collect();
        ensure!(lost.is_empty(), "{} acknowledged rules are lost, seed {seed}: {lost:?}", lost.len());
        ensure!(acknowledged.len() >= KILLS, "only {} writes were acknowledged", acknowledged.len());
        until("west has all that east has", CONVERGE, async || {
            let there = ids(&west).await?;
            let missing = kept.difference(&there).count();
            ensure!(missing == 0, "{missing} of {} rules are missing", kept.len());
            ensure!(there == kept, "west has {} rules that east has not", there.difference(&kept).count());
            Ok(())
        })
        .await?;
        // What a crash in the middle of a write must never leave behind: a log with two records at one place.
        let problems = east.json(&["status"]).await?["problems"].clone();
        ensure!(problems.as_array().is_some_and(Vec::is_empty), "problems after the kills: {problems}");
        eprintln!(
            "{KILLS} kills in {:.1} s: {} writes acknowledged, {} rules kept (seed {seed}); the others ended with {:#?}",
            took.as_secs_f64(),
            acknowledged.len(),
            kept.len(),
            seen.refused.lock().unwrap_or_else(PoisonError::into_inner)
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_verb_whose_gateway_dies_before_it_answers_says_so_and_ends_with_three() -> Result<(), Failure> {
    World::tell(Duration::from_secs(30), async |world| {
        let socket = world.folder("dying")?.join("hanse.sock");
        let listener = UnixListener::bind(&socket)?;
        // What a gateway leaves behind that is killed with a request in its hands.
        let dying = async {
            let (mut stream, _) = listener.accept().await?;
            stream.write_all(&H2_SETTINGS).await?;
            let mut heard = Vec::new();
            while !heard.windows(7).any(|bytes| bytes == b"src.dst") {
                ensure!(stream.read_buf(&mut heard).await? > 0, "the verb left");
            }
            drop((stream, listener));
            Ok(())
        };
        let asking = Answer::of(&socket, &["workload", "token", "src.dst"]);
        let (answer, died) = tokio::join!(asking, dying);
        died?;
        answer?.refused(3, &["outcome is unknown"])
    })
    .await
}
