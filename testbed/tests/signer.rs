//! A gateway is three processes. Each may be killed at any time: what is left goes on, what died comes back, and nothing
//! outlives the whole. The signer has no network, and nobody else has its keys.

use std::{
    collections::BTreeSet,
    fs::File,
    net::{SocketAddr, TcpListener},
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use federation_identity::seal::Kek;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use testbed::worlds::{Answer, CONVERGE, Cluster, Failure, Plan, Workload, World, runs, until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

const LIMIT: Duration = Duration::from_secs(90);
const KILLS: usize = 10;
const LEDGER: &str = "ledger.books.west.mesh.internal";
const PORT: u16 = 8080;
/// Exit code of a verb that found nobody who could do it.
const UNREACHABLE: i32 = 3;

fn send(pid: u32, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(pid.try_into()?), signal).with_context(|| format!("{signal} to {pid}"))
}

/// The part `verb` of the cluster, once it is another process than `before`.
async fn successor(cluster: &mut Cluster, verb: &str, before: u32) -> Result<u32> {
    until(&format!("another {verb} runs"), CONVERGE, async || {
        let pid = cluster.gateway().part(verb)?;
        ensure!(pid != before, "{verb} is still process {pid}");
        Ok(pid)
    })
    .await
}

/// What `/readyz` says.
async fn readiness(admin: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect(admin).await?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
    let mut reply = String::new();
    timeout(CONVERGE, stream.read_to_string(&mut reply)).await??;
    Ok(reply)
}

async fn until_readiness(admin: SocketAddr, wanted: &str) -> Result<()> {
    until(&format!("/readyz says {wanted:?}"), CONVERGE, async || {
        let reply = readiness(admin).await?;
        ensure!(reply.contains(wanted), "it says {reply:?}");
        Ok(())
    })
    .await
}

fn admin() -> Result<(SocketAddr, String)> {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    Ok((address, format!("[admin]\nlisten = \"{address}\"")))
}

/// Writes rules until told to stop; the ids of those that were acknowledged.
async fn write(socket: &Path, stop: &AtomicBool) -> Result<BTreeSet<String>> {
    let mut acknowledged = BTreeSet::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let source = format!("w{number}.load");
        let answer = Answer::of(socket, &["intention", "allow", &source, "s.load", "-o", "json"]).await?;
        if answer.code == 0 {
            acknowledged.insert(answer.json()?["intention"]["id"].as_str().context("an id")?.to_owned());
        } else {
            sleep(Duration::from_millis(10)).await;
        }
    }
    Ok(acknowledged)
}

async fn ids(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let rules = cluster.list(&["intention", "list"], "intentions").await?;
    Ok(rules.iter().filter_map(|rule| rule["id"].as_str().map(str::to_owned)).collect())
}

#[tokio::test]
async fn an_edge_that_is_killed_comes_back_beside_the_same_signer_and_loses_nothing() -> Result<(), Failure> {
    World::tell(LIMIT, async |world| {
        let mut west = Cluster::start(world, Plan::new("west").inbound()).await?;
        let (gateway, signer) = (west.gateway().pid()?, west.gateway().part("signer")?);
        let id = west.json(&["status"]).await?["cluster_id"].clone();
        let stop = Arc::new(AtomicBool::new(false));
        let writer = tokio::spawn({
            let (socket, stop) = (west.socket().to_owned(), Arc::clone(&stop));
            async move { write(&socket, &stop).await }
        });
        let mut edge = west.gateway().part("edge")?;
        for _ in 0..KILLS {
            let before = ids(&west).await?.len();
            until("another write was acknowledged", CONVERGE, async || {
                ensure!(ids(&west).await?.len() > before);
                Ok(())
            })
            .await?;
            send(edge, Signal::SIGKILL)?;
            edge = successor(&mut west, "edge", edge).await?;
            west.ready().await?;
        }
        stop.store(true, Ordering::Relaxed);
        let acknowledged = writer.await??;
        ensure!(acknowledged.len() >= KILLS, "only {} writes were acknowledged", acknowledged.len());
        let kept = ids(&west).await?;
        let lost: Vec<_> = acknowledged.difference(&kept).collect();
        ensure!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        ensure!(west.gateway().pid()? == gateway && west.gateway().part("signer")? == signer);
        ensure!(west.json(&["status"]).await?["cluster_id"] == id, "another cluster came back");
        let problems = west.json(&["status"]).await?["problems"].clone();
        ensure!(problems.as_array().is_some_and(Vec::is_empty), "problems: {problems}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn without_its_signer_an_edge_serves_what_was_issued_and_says_that_it_is_not_ready() -> Result<(), Failure> {
    World::tell(LIMIT, async |world| {
        let (admin, config) = admin()?;
        let mut west = Cluster::start(world, Plan::new("west").with(&config)).await?;
        let clerk = Workload::by_token(world, &west, "clerk.books", None).await?;
        let _ledger = Workload::by_token(world, &west, "ledger.books", Some(("ledger.books", PORT))).await?;
        west.run(&["intention", "allow", "clerk.books", "ledger.books"]).await?;
        let mut talk = clerk.until_call(LEDGER, PORT, CONVERGE).await?;
        until_readiness(admin, "ready").await?;
        let edge = west.gateway().part("edge")?;

        // One that hangs.
        let signer = west.gateway().part("signer")?;
        send(signer, Signal::SIGSTOP)?;
        until_readiness(admin, "waits for signer").await?;
        talk.exchange().await.context("on a connection from before")?;
        clerk.call(LEDGER, PORT).await.context("on a new connection")?.exchange().await?;
        west.ask(&["intention", "allow", "a.b", "c.d"]).await?.refused(UNREACHABLE, &["the signer does not answer"])?;
        west.run(&["intention", "list"]).await?;
        send(signer, Signal::SIGCONT)?;
        until_readiness(admin, "200 OK").await?;
        west.run(&["intention", "allow", "a.b", "c.d"]).await?;

        // One that dies, again and again: another has the same keys, and a write waits for it.
        let mut signer = signer;
        for kill in 0..3 {
            send(signer, Signal::SIGKILL)?;
            let rule = format!("a{kill}.b");
            until("a rule is written", CONVERGE, async || west.run(&["intention", "allow", &rule, "c.d"]).await)
                .await?;
            signer = successor(&mut west, "signer", signer).await?;
            talk.exchange().await?;
        }
        until_readiness(admin, "200 OK").await?;
        ensure!(west.gateway().part("edge")? == edge, "the edge was started again for nothing");
        let late =
            Workload::by_token(world, &west, "clerk.late", None).await.context("with an SVID by the new signer")?;
        drop(late);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn no_part_of_a_gateway_outlives_it_however_it_ends() -> Result<(), Failure> {
    World::tell(LIMIT, async |world| {
        let mut west = Cluster::start(world, Plan::new("west")).await?;
        let parts = |west: &mut Cluster| -> Result<[u32; 2]> {
            Ok([west.gateway().part("edge")?, west.gateway().part("signer")?])
        };
        // As a service manager ends it.
        let first = parts(&mut west)?;
        send(west.gateway().pid()?, Signal::SIGTERM)?;
        let status = timeout(CONVERGE, west.gateway().ended()).await.context("it does not end")??;
        ensure!(status.success(), "it ended with {status}");
        ensure!(!first.into_iter().any(runs), "a part is left after SIGTERM");

        // Killed itself: `crash` fails if anything is left. At once the next one, on the same ports and store.
        west.restart().await?;
        parts(&mut west)?;
        west.crash().await?;
        west.restart().await?;

        // Killed itself while its signer hangs.
        let [_, signer] = parts(&mut west)?;
        send(signer, Signal::SIGSTOP)?;
        west.crash().await?;
        west.restart().await?;

        // An edge that is told to end by name is replaced: that is what a gateway is for.
        let [edge, signer] = parts(&mut west)?;
        send(edge, Signal::SIGTERM)?;
        successor(&mut west, "edge", edge).await?;
        west.ready().await?;
        ensure!(west.gateway().part("signer")? == signer);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_gateway_whose_edge_dies_at_each_start_ends_with_an_error_for_its_service_manager() -> Result<(), Failure> {
    World::tell(LIMIT, async |world| {
        let mut west = Cluster::start(world, Plan::new("west")).await?;
        let signer = west.gateway().part("signer")?;
        let ending = timeout(LIMIT / 2, async {
            while west.gateway().alive().is_ok() {
                if let Ok(edge) = west.gateway().part("edge") {
                    // It may be gone by now.
                    let _ = send(edge, Signal::SIGKILL);
                }
                sleep(Duration::from_millis(5)).await;
            }
        });
        ending.await.context("the gateway goes on and on")?;
        let status = west.gateway().ended().await?;
        ensure!(status.code() == Some(5), "it ended with {status}");
        ensure!(!runs(signer), "the signer is left");
        ensure!(west.output().contains("the edge dies at each start"), "it does not say why");
        west.restart().await
    })
    .await
}

/// A line of `/proc/PID/status`.
fn status(pid: u32, field: &str) -> Result<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    Ok(line.with_context(|| format!("no {field} for {pid}"))?.trim().to_owned())
}

/// Whether the memory of a process holds `wanted`.
fn remembers(pid: u32, wanted: &[u8]) -> Result<bool> {
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|mode| mode.starts_with("rw"))) {
        let range = line.split(' ').next().and_then(|range| range.split_once('-')).context("a range")?;
        let (from, to) = (u64::from_str_radix(range.0, 16)?, u64::from_str_radix(range.1, 16)?);
        let mut bytes = vec![0; usize::try_from(to - from)?];
        // Some mappings are none of memory.
        if memory.read_exact_at(&mut bytes, from).is_ok() && bytes.windows(wanted.len()).any(|window| window == wanted)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

#[tokio::test]
async fn the_signer_is_confined_and_its_keys_are_in_no_other_process() -> Result<(), Failure> {
    World::tell(LIMIT, async |world| {
        let mut west = Cluster::start(world, Plan::new("west")).await?;
        let gateway = west.gateway().pid()?;
        let [edge, signer] = [west.gateway().part("edge")?, west.gateway().part("signer")?];
        for pid in [edge, signer] {
            ensure!(status(pid, "Seccomp")? == "2", "{pid} has no filter");
            ensure!(status(pid, "NoNewPrivs")? == "1", "{pid} may gain privileges");
            let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
            let core = limits.lines().find(|line| line.starts_with("Max core file size")).context("a limit")?;
            ensure!(core.split_whitespace().nth(4) == Some("0"), "{core}");
        }
        ensure!(status(signer, "Threads")? == "1");
        // The key file opens the sealed keys. The edge has what is derived from it, which shows that the search finds.
        let file: [u8; 32] = std::fs::read(west.folder().join("kek"))?.as_slice().try_into()?;
        let derived = Kek::from_bytes(file).derive("hanse-store-mac-v1");
        ensure!(remembers(edge, derived.as_slice())?, "the search finds nothing");
        ensure!(!remembers(edge, &file)?, "the edge holds the key file's key");
        ensure!(!remembers(gateway, &file)?, "the gateway holds the key file's key");
        // Its memory is closed to everybody of its user; root may look, and finds it there.
        match remembers(signer, &file) {
            Ok(found) => ensure!(found && nix::unistd::geteuid().is_root(), "the signer's memory is open"),
            Err(error) => ensure!(!nix::unistd::geteuid().is_root(), "root cannot look: {error:#}"),
        }
        Ok(())
    })
    .await
}
