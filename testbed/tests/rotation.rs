//! A cluster replaces its root while requests run: published, acknowledged, signing, the old one gone; and neither a
//! member that is away nor a kill at any point stops it or harms anybody.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use testbed::worlds::{CONVERGE, Cluster, Failure, Plan, Workload, World, dial, link, until};
use tokio::{task::JoinSet, time::sleep};

const LIMIT: Duration = Duration::from_secs(180);
/// Life of an SVID, and so of the old root once the new one signs.
const TTL: Duration = Duration::from_secs(6);
const PAYMENTS: &str = "payments.billing.west.mesh.internal";
const LEDGER: &str = "ledger.books.east.mesh.internal";
const PORT: u16 = 8080;
/// Time between two calls of each caller.
const PACE: Duration = Duration::from_millis(20);
/// Exit code of a verb that was refused.
const REFUSED: i32 = 5;

fn send(pid: u32, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(pid.try_into()?), signal).with_context(|| format!("{signal} to {pid}"))
}

/// The edge of a cluster, stopped; goes on when this is dropped.
struct Stopped(u32);

impl Stopped {
    fn edge(cluster: &mut Cluster) -> Result<Self> {
        let pid = cluster.gateway().part("edge")?;
        send(pid, Signal::SIGSTOP)?;
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = send(self.0, Signal::SIGCONT);
    }
}

/// Kills the edge and waits until its successor answers.
async fn kill_edge(cluster: &mut Cluster) -> Result<()> {
    let before = cluster.gateway().part("edge")?;
    send(before, Signal::SIGKILL)?;
    until("another edge runs", CONVERGE, async || {
        ensure!(cluster.gateway().part("edge")? != before);
        Ok(())
    })
    .await?;
    cluster.ready().await
}

/// Where a cluster's rotation is.
async fn rotation(cluster: &Cluster) -> Result<Value> {
    Ok(cluster.json(&["cert", "status"]).await?["rotation"].clone())
}

async fn until_phase(cluster: &Cluster, phase: &str) -> Result<Value> {
    until(&format!("the rotation is {phase}"), CONVERGE + TTL * 2, async || {
        let rotation = rotation(cluster).await?;
        ensure!(rotation["phase"] == phase, "it is {rotation}");
        Ok(rotation)
    })
    .await
}

/// Names of those who are waited for or were left out.
fn behind(rotation: &Value) -> Vec<&str> {
    let list = rotation["behind"].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(|laggard| laggard["cluster"].as_str()).collect()
}

/// Sequence and roots of west's bundle, as a cluster has it in force.
async fn bundle(cluster: &Cluster) -> Result<(u64, Vec<String>)> {
    let bundles = cluster.list(&["cert", "status"], "bundles").await?;
    let west = bundles.iter().find(|bundle| bundle["cluster"] == "west").context("no bundle of west")?;
    let roots = west["sha256"].as_array().context("roots")?;
    let roots = roots.iter().filter_map(|root| root.as_str().map(str::to_owned)).collect();
    Ok((west["sequence"].as_u64().context("sequence")?, roots))
}

async fn until_up(cluster: &Cluster, other: &str) -> Result<()> {
    until(&format!("{}'s link with {other} is up", cluster.name), CONVERGE * 2, async || {
        let state = cluster.link_state(other).await?;
        ensure!(state == "up", "it is {state}");
        Ok(())
    })
    .await
}

/// Callers that do not stop before they are told, and what they saw.
struct Load {
    stop: Arc<AtomicBool>,
    good: Arc<AtomicUsize>,
    bad: Arc<Mutex<Vec<String>>>,
    callers: JoinSet<()>,
}

impl Load {
    /// For each way one that dials anew each time, and one that talks on one connection.
    fn start(ways: &[(SocketAddr, &'static str)]) -> Self {
        let mut load =
            Self { stop: Arc::default(), good: Arc::default(), bad: Arc::default(), callers: JoinSet::new() };
        for ((socks, name), anew) in ways.iter().flat_map(|way| [(*way, true), (*way, false)]) {
            let (stop, good, bad) = (Arc::clone(&load.stop), Arc::clone(&load.good), Arc::clone(&load.bad));
            load.callers.spawn(async move {
                let mut lasting = None;
                while !stop.load(Ordering::Relaxed) {
                    let said = async {
                        let mut conversation = match lasting.take() {
                            Some(conversation) => conversation,
                            None => dial(socks, name, PORT).await.context("a dial")?,
                        };
                        conversation.exchange().await.context("a line")?;
                        anyhow::Ok(conversation)
                    };
                    match said.await {
                        Ok(conversation) => {
                            good.fetch_add(1, Ordering::Relaxed);
                            lasting = Some(conversation).filter(|_| !anew);
                        }
                        Err(error) => bad
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(format!("{name}, a new connection each time {anew}: {error:#}")),
                    }
                    sleep(PACE).await;
                }
            });
        }
        load
    }

    /// How many requests were answered; an error if any was not.
    async fn end(mut self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.callers.join_next().await {
            ended?;
        }
        let (good, bad) = (self.good.load(Ordering::Relaxed), self.bad.lock().unwrap_or_else(PoisonError::into_inner));
        ensure!(bad.is_empty(), "{} of {} requests failed, first: {:?}", bad.len(), good + bad.len(), bad.first());
        Ok(good)
    }
}

async fn export(cluster: &Cluster, service: &str) -> Result<()> {
    let what = format!("{service} is exported");
    until(&what, CONVERGE, async || cluster.run(&["service", "export", service]).await.map(|_| ())).await
}

#[tokio::test]
async fn a_root_is_rotated_under_load_with_a_member_away_and_no_request_fails() -> Result<(), Failure> {
    World::tell(LIMIT, async |world| {
        let plan = |name| Plan::new(name).inbound().svid_ttl(TTL);
        let (west, east, mut north) = tokio::try_join!(
            Cluster::start(world, plan("west")),
            Cluster::start(world, plan("east")),
            Cluster::start(world, plan("north")),
        )?;
        link(&[&west, &east, &north], &[]).await?;
        let (web, _payments, clerk, _ledger) = tokio::try_join!(
            Workload::by_token(world, &east, "web.shop", None),
            Workload::by_token(world, &west, "payments.billing", Some(("payments.billing", PORT))),
            Workload::by_token(world, &west, "clerk.books", None),
            Workload::by_token(world, &east, "ledger.books", Some(("ledger.books", PORT))),
        )?;
        export(&west, "payments.billing").await?;
        export(&east, "ledger.books").await?;
        west.run(&["intention", "allow", "web.shop.east", "payments.billing"]).await?;
        east.run(&["intention", "allow", "clerk.books.west", "ledger.books"]).await?;
        web.until_call(PAYMENTS, PORT, CONVERGE).await?;
        clerk.until_call(LEDGER, PORT, CONVERGE).await?;
        let id = west.json(&["status"]).await?["cluster_id"].clone();
        let (sequence, old) = bundle(&east).await?;
        ensure!(old.len() == 1, "west has roots {old:?}");
        let old_token = west.token("south", &[]).await?;
        let load = Load::start(&[(web.socks, PAYMENTS), (clerk.socks, LEDGER)]);

        // With one member away the new root is known to the others, and does not sign.
        let away = Stopped::edge(&mut north)?;
        west.run(&["cert", "rotate-root"]).await?;
        until("east has acknowledged the new root, north has not", CONVERGE, async || {
            let rotation = rotation(&west).await?;
            ensure!(rotation["phase"] == "published" && behind(&rotation) == ["north"], "{rotation}");
            Ok(())
        })
        .await?;
        let (published, both) = bundle(&east).await?;
        ensure!(published == sequence + 1 && both.len() == 2 && both[0] == old[0], "{published} {both:?}");
        west.ask(&["cert", "rotate-root", "--without", "nowhere"]).await?.refused(REFUSED, &["nowhere"])?;
        sleep(TTL / 2).await;
        ensure!(rotation(&west).await?["phase"] == "published", "it did not wait for north");

        // The operator goes on without it; it is served until the old root goes, and may come back.
        let told = west.run(&["cert", "rotate-root", "--without", "north"]).await?;
        ensure!(told.contains("north") && told.contains("left out"), "{told}");
        let signing = until_phase(&west, "signing").await?;
        ensure!(signing["without"] == serde_json::json!(["north"]), "{signing}");
        drop(away);
        until_up(&north, "west").await?;
        until("north has the new root", CONVERGE, async || {
            ensure!(bundle(&north).await?.1.contains(&both[1]));
            Ok(())
        })
        .await?;
        west.ask(&["cert", "rotate-root", "--abort"]).await?.refused(REFUSED, &["signs already"])?;

        // The old root goes by itself.
        until_phase(&west, "retired").await?;
        for cluster in [&west, &east, &north] {
            until(&format!("{} knows the new root alone", cluster.name), CONVERGE, async || {
                let (sequence, roots) = bundle(cluster).await?;
                ensure!(sequence == published + 1 && roots == both[1..], "{sequence} {roots:?}");
                Ok(())
            })
            .await?;
        }
        // Every connection and session is renewed at least once more, on the new root alone.
        sleep(TTL).await;
        let good = load.end().await?;
        ensure!(good > 500, "{good} requests are no load");
        for (cluster, other) in [(&west, "east"), (&west, "north"), (&east, "west"), (&north, "west")] {
            until_up(cluster, other).await?;
        }
        ensure!(west.json(&["status"]).await?["cluster_id"] == id, "it became another cluster");

        // Tokens pin the root that signs: one from before is void, a new one works, and so does a workload's.
        let south = Cluster::start(world, plan("south")).await?;
        let refused = south.join(&old_token, &[]).await?;
        ensure!(refused.code != 0, "a token that pins the old root still works");
        south.join(&west.token("south", &["--ttl", "5m"]).await?, &[]).await?.done()?;
        for (cluster, other) in [(&south, "west"), (&south, "east"), (&east, "south")] {
            until_up(cluster, other).await?;
        }
        Workload::by_token(world, &west, "late.books", None).await.context("a workload enrols")?;
        eprintln!("{good} requests during the rotation, 0 failed");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_rotation_resumes_after_a_kill_in_every_phase_and_can_be_given_up_before_it_signs() -> Result<(), Failure> {
    World::tell(LIMIT, async |world| {
        let plan = |name| Plan::new(name).inbound().svid_ttl(TTL);
        let (mut west, mut east) =
            tokio::try_join!(Cluster::start(world, plan("west")), Cluster::start(world, plan("east")))?;
        link(&[&west, &east], &[]).await?;
        let (sequence, old) = bundle(&west).await?;
        west.ask(&["cert", "rotate-root", "--abort"]).await?.refused(REFUSED, &["no rotation is under way"])?;

        // Given up: the bundle goes forward, to the old root alone.
        let away = Stopped::edge(&mut east)?;
        west.run(&["cert", "rotate-root"]).await?;
        until_phase(&west, "published").await?;
        kill_edge(&mut west).await?;
        let resumed = until_phase(&west, "published").await?;
        ensure!(behind(&resumed) == ["east"], "{resumed}");
        ensure!(bundle(&west).await?.0 == sequence + 1, "it published again");
        west.run(&["cert", "rotate-root", "--abort"]).await?;
        let (aborted, roots) = bundle(&west).await?;
        ensure!(aborted == sequence + 2 && roots == old, "{aborted} {roots:?}");
        kill_edge(&mut west).await?;
        ensure!(rotation(&west).await?["phase"] == "aborted");
        ensure!(bundle(&west).await? == (aborted, roots), "a kill brought something back");

        // Once more, killed whole while it waits, and its edge while it signs.
        west.run(&["cert", "rotate-root"]).await?;
        until_phase(&west, "published").await?;
        west.crash().await?;
        west.restart().await?;
        until_phase(&west, "published").await?;
        drop(away);
        until_phase(&west, "signing").await?;
        let (_, both) = bundle(&west).await?;
        kill_edge(&mut west).await?;
        let signing = rotation(&west).await?;
        ensure!(signing["phase"] == "signing" || signing["phase"] == "retired", "{signing}");
        until_up(&west, "east").await?;
        until_phase(&west, "retired").await?;
        kill_edge(&mut west).await?;
        until("east knows the new root alone", CONVERGE, async || {
            let (sequence, roots) = bundle(&east).await?;
            ensure!(sequence == aborted + 2 && roots == both[1..], "{sequence} {roots:?}");
            Ok(())
        })
        .await?;
        until_up(&east, "west").await?;
        until_up(&west, "east").await
    })
    .await
}

#[tokio::test]
async fn a_cluster_alone_rotates_at_once_and_then_joins_nobody_else() -> Result<(), Failure> {
    World::tell(LIMIT, async |world| {
        let (west, solo) = tokio::try_join!(
            Cluster::start(world, Plan::new("west").inbound()),
            Cluster::start(world, Plan::new("solo").svid_ttl(Duration::from_secs(4))),
        )?;
        let told = solo.run(&["cert", "rotate-root", "--wait"]).await?;
        ensure!(told.contains("retired"), "{told}");
        let refused = solo.join(&west.token("solo", &[]).await?, &[]).await?;
        refused.refused(REFUSED, &["rotated its root", "new data_dir"])?;
        Ok(())
    })
    .await
}
