//! What lives and for how long: denied connections are cut, renewed ones stay, unrenewed ones end; edges may be away.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use testbed::worlds::{CONVERGE, Cluster, Conversation, Failure, Plan, Refused, Workload, World, dial, link, until};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

const PAYMENTS: &str = "payments.billing.west.mesh.internal";
const LEDGER: &str = "ledger.books.west.mesh.internal";
const PORT: u16 = 8080;
/// Life of an SVID: the shortest that the program takes is 4 s.
const TTL: Duration = Duration::from_secs(5);
/// Time between two calls of each caller under load.
const PACE: Duration = Duration::from_millis(20);
/// Callers at the same time under load: half dial anew each time, half talk on one connection.
const CALLERS: usize = 4;

/// East and west, linked, with a caller in east and a service in west that it may call.
struct Two {
    east: Cluster,
    west: Cluster,
    web: Workload,
    _payments: Workload,
}

async fn two(world: &World) -> Result<Two> {
    let (east, west) = tokio::try_join!(
        Cluster::start(world, Plan::new("east").inbound().svid_ttl(TTL)),
        Cluster::start(world, Plan::new("west").inbound().svid_ttl(TTL)),
    )?;
    link(&[&east, &west], &[]).await?;
    let (web, payments) = tokio::try_join!(
        Workload::by_token(world, &east, "web.shop", None),
        Workload::by_token(world, &west, "payments.billing", Some(("payments.billing", PORT))),
    )?;
    export(&west, "payments.billing").await?;
    west.run(&["intention", "allow", "web.shop.east", "payments.billing"]).await?;
    web.until_call(PAYMENTS, PORT, CONVERGE).await?;
    Ok(Two { east, west, web, _payments: payments })
}

/// Exports a service as soon as its sidecar has registered it.
async fn export(cluster: &Cluster, service: &str) -> Result<()> {
    let what = format!("{service} is exported");
    until(&what, CONVERGE, async || cluster.run(&["service", "export", service]).await.map(|_| ())).await
}

/// Nothing if the next dials are refused by rule, at the latest when the rule has come to the sidecar.
async fn until_refused(web: &Workload, name: &str) -> Result<()> {
    until(&format!("{name} is refused"), CONVERGE, async || match dial(web.socks, name, PORT).await {
        Ok(_) => bail!("it is let through"),
        Err(error) => match error.downcast_ref::<Refused>() {
            Some(Refused(2)) => Ok(()),
            _ => Err(error),
        },
    })
    .await
}

/// A connection within west, on whose path there is no edge.
async fn local(world: &World, west: &Cluster) -> Result<(Workload, Workload, Conversation)> {
    let (ledger, clerk) = tokio::try_join!(
        Workload::by_token(world, west, "ledger.books", Some(("ledger.books", PORT))),
        Workload::by_token(world, west, "clerk.books", None),
    )?;
    west.run(&["intention", "allow", "clerk.books", "ledger.books"]).await?;
    let conversation = clerk.until_call(LEDGER, PORT, CONVERGE).await?;
    Ok((ledger, clerk, conversation))
}

#[tokio::test]
async fn a_deny_cuts_the_live_connection_and_the_next_one() -> Result<(), Failure> {
    World::tell(Duration::from_secs(90), async |world| {
        let Two { east, west, web, _payments } = two(world).await?;
        let mut by_rule = web.call(PAYMENTS, PORT).await?;
        let start = Instant::now();
        west.run(&["intention", "deny", "web.shop.east", "payments.billing"]).await?;
        by_rule.cut(CONVERGE).await.context("after the owner's deny")?;
        let owner = start.elapsed();
        until_refused(&web, PAYMENTS).await?;
        let (allowed, reason) = east.check("web.shop", "payments.billing.west").await?;
        ensure!(!allowed && reason == "rule", "check says allowed={allowed} {reason}");
        west.run(&["intention", "allow", "web.shop.east", "payments.billing"]).await?;

        // The same by the caller's own cluster.
        let mut by_source = web.until_call(PAYMENTS, PORT, CONVERGE).await?;
        let start = Instant::now();
        east.run(&["intention", "deny", "web.shop", "*.billing.west"]).await?;
        by_source.cut(CONVERGE).await.context("after the source's deny")?;
        until_refused(&web, PAYMENTS).await?;
        eprintln!("cut {owner:?} after the owner's deny, {:?} after the source's", start.elapsed());
        Ok(())
    })
    .await
}

/// What the callers saw.
#[derive(Default)]
struct Seen {
    good: AtomicUsize,
    bad: AtomicUsize,
    /// What went wrong, each kind once, with when it was first.
    kinds: Mutex<BTreeMap<String, Duration>>,
}

impl Seen {
    fn note(&self, what: &str, started: Instant, outcome: Result<()>) {
        let Err(error) = outcome else {
            self.good.fetch_add(1, Ordering::Relaxed);
            return;
        };
        self.bad.fetch_add(1, Ordering::Relaxed);
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.entry(format!("{what}: {error:#}")).or_insert_with(|| started.elapsed());
    }
}

/// Talks until `end`: on a connection of its own for each call, or on one for all.
async fn talk(web: SocketAddr, anew: bool, end: Instant, seen: &Seen) {
    let started = Instant::now();
    let mut lasting = None;
    while Instant::now() < end {
        let mut conversation = match lasting.take() {
            Some(conversation) => conversation,
            None => match dial(web, PAYMENTS, PORT).await {
                Ok(conversation) => conversation,
                Err(error) => {
                    seen.note("a dial", started, Err(error));
                    sleep(PACE).await;
                    continue;
                }
            },
        };
        let said = conversation.exchange().await;
        if !anew && said.is_ok() {
            lasting = Some(conversation);
        }
        seen.note(if anew { "a line on a new connection" } else { "a line on a lasting one" }, started, said);
        sleep(PACE).await;
    }
}

#[tokio::test]
async fn renewal_under_load_fails_no_request_and_keeps_a_connection_five_lifetimes_old() -> Result<(), Failure> {
    World::tell(Duration::from_secs(120), async |world| {
        let Two { east, west, web, _payments } = two(world).await?;
        let mut lasting = web.call(PAYMENTS, PORT).await?;
        let opened = Instant::now();
        let seen = Arc::new(Seen::default());
        let mut callers = JoinSet::new();
        for number in 0..CALLERS {
            let (seen, socks) = (seen.clone(), web.socks);
            callers.spawn(async move { talk(socks, number % 2 == 0, opened + TTL * 3, &seen).await });
        }
        while let Some(ended) = callers.join_next().await {
            ended?;
        }
        let (good, bad) = (seen.good.load(Ordering::Relaxed), seen.bad.load(Ordering::Relaxed));
        // The other one said nothing all the while.
        sleep_until(opened + TTL * 5).await;
        lasting.exchange().await.context("on the connection that is five lifetimes old")?;
        for (cluster, other) in [(&east, "west"), (&west, "east")] {
            let state = cluster.link_state(other).await?;
            ensure!(state == "up", "{}'s link with {other} is {state}", cluster.name);
        }
        let kinds = seen.kinds.lock().unwrap_or_else(PoisonError::into_inner).clone();
        ensure!(bad == 0, "{bad} of {} requests failed, first of each kind: {kinds:?}", good + bad);
        ensure!(good > 200, "{good} requests in {:?} are no load", TTL * 3);
        eprintln!("{good} requests over three lifetimes, 0 failed; then idle until five lifetimes old");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_sidecar_outlives_its_edge_and_expiry_cuts_when_the_issuer_is_gone() -> Result<(), Failure> {
    World::tell(Duration::from_secs(120), async |world| {
        let mut west = Cluster::start(world, Plan::new("west").svid_ttl(TTL)).await?;
        let (_ledger, clerk, mut old) = local(world, &west).await?;
        west.crash().await?;
        let dead = Instant::now();
        old.exchange().await.context("on a live connection after the edge's death")?;
        let mut calls = 0;
        // An SVID has at least half its life before it, less the jitter of its renewal.
        while dead.elapsed() < TTL / 5 {
            clerk
                .call(LEDGER, PORT)
                .await
                .with_context(|| format!("a new call {:?} after the edge's death", dead.elapsed()))?;
            calls += 1;
        }
        let mut young = clerk.call(LEDGER, PORT).await?;
        old.cut(TTL * 2).await.context("the old connection, whose SVIDs nobody renews")?;
        young.cut(TTL).await.context("the young connection, whose SVIDs nobody renews")?;
        let took = dead.elapsed();
        ensure!(took < TTL + Duration::from_secs(3), "cut {took:?} after the issuer's death, with SVIDs of {TTL:?}");
        ensure!(clerk.call(LEDGER, PORT).await.is_err(), "an expired SVID still opens connections");
        eprintln!("{calls} calls without an edge; both connections were cut {took:?} after its death");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn sidecars_recover_when_their_edge_returns_after_their_svids_ended() -> Result<(), Failure> {
    World::tell(Duration::from_secs(120), async |world| {
        let mut west = Cluster::start(world, Plan::new("west").svid_ttl(TTL)).await?;
        let (_ledger, clerk, mut old) = local(world, &west).await?;
        west.crash().await?;
        old.cut(TTL * 2).await?;
        west.restart().await?;
        clerk.until_call(LEDGER, PORT, Duration::from_secs(30)).await.context("after the edge came back")?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn sidecars_find_an_edge_that_came_back_on_other_ports() -> Result<(), Failure> {
    World::tell(Duration::from_secs(120), async |world| {
        let who = format!("[[workload]]\nuid = {}\naccount = \"ledger\"\nnamespace = \"books\"\n", uid()?);
        let mut west = Cluster::start(world, Plan::new("west").any_ports().with(&who)).await?;
        let _ledger = Workload::by_uid(world, &west, "ledger.books", Some(("ledger.books", PORT))).await?;
        let connected = async |cluster: &Cluster| {
            let workloads = cluster.list(&["workload", "list"], "workloads").await?;
            ensure!(workloads.iter().any(|workload| workload["connected"] == true), "connected are {workloads:?}");
            Ok(())
        };
        until("the sidecar is connected", CONVERGE, async || connected(&west).await).await?;
        west.crash().await?;
        west.restart().await?;
        until("the sidecar is connected again", Duration::from_secs(30), async || connected(&west).await).await
    })
    .await
}

/// Owner of this very process.
fn uid() -> Result<u32> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata("/proc/self")?.uid())
}
