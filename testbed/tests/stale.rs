//! The staleness contract between real processes: who is silent is noticed, and each service does what its owner chose once
//! the lease is over.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use testbed::worlds::{CONVERGE, Cluster, Failure, Plan, Refused, Workload, World, dial, link, until};
use tokio::time::Instant;

/// The shortest lease that may be chosen.
const LEASE: Duration = Duration::from_secs(10);
/// How late a cut may come after the lease.
const LATE_MAX: Duration = Duration::from_secs(1);
/// Within this a member that says nothing is noticed.
const NOTICE_MAX: Duration = Duration::from_secs(3);
/// What the measuring itself may cost: a verb is a process on a busy machine.
const MEASURE: Duration = Duration::from_secs(1);
/// Ages may have begun to grow by so much before the silence: a member says something every second.
const SAID_BEFORE: Duration = Duration::from_millis(1_500);
const PORT: u16 = 8080;
const PAYMENTS: &str = "payments.billing.west.mesh.internal";
const LEDGER: &str = "ledger.books.west.mesh.internal";
const CATALOG: &str = "catalog.shop.west.mesh.internal";
const VAULT: &str = "vault.books.west.mesh.internal";

/// A process that does nothing until this is dropped. Its sockets stay open.
struct Frozen(Pid);

impl Frozen {
    fn part(cluster: &mut Cluster, verb: &str) -> Result<Self> {
        let pid = Pid::from_raw(cluster.gateway().part(verb)?.try_into()?);
        kill(pid, Signal::SIGSTOP)?;
        Ok(Self(pid))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // If it is gone, it is no longer frozen either.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

async fn serve(world: &World, cluster: &Cluster, service: &str, when: &str) -> Result<Workload> {
    let workload = Workload::by_token(world, cluster, service, Some((service, PORT))).await?;
    export(cluster, service, when).await?;
    Ok(workload)
}

async fn export(cluster: &Cluster, service: &str, when: &str) -> Result<()> {
    until(&format!("{service} is exported"), CONVERGE, async || {
        cluster.run(&["service", "export", service, "--when-stale", when, "--lease", "10s"]).await.map(|_| ())
    })
    .await
}

/// The code with which SOCKS5 refuses a dial (RFC 1928, 6).
async fn refusal(web: &Workload, name: &str) -> Result<u8> {
    match dial(web.socks, name, PORT).await {
        Ok(_) => bail!("{name} is let through"),
        Err(error) => match error.downcast_ref::<Refused>() {
            Some(Refused(code)) => Ok(*code),
            None => Err(error),
        },
    }
}

/// What `service list` says of a service: policy, freshness.
async fn freshness(cluster: &Cluster, service: &str) -> Result<String> {
    let services = cluster.list(&["service", "list"], "services").await?;
    let found = services.iter().find(|shown| shown["name"] == service).with_context(|| format!("no {service}"))?;
    Ok(found["freshness"].as_str().unwrap_or_default().to_owned())
}

async fn until_freshness(cluster: &Cluster, service: &str, wanted: &str, limit: Duration) -> Result<()> {
    until(&format!("{service} is {wanted} at {}", cluster.name), limit, async || {
        let is = freshness(cluster, service).await?;
        ensure!(is == wanted, "it is {is:?}");
        Ok(())
    })
    .await
}

/// East and west, linked, each planned so.
async fn pair(world: &World, how: fn(Plan) -> Plan) -> Result<(Cluster, Cluster)> {
    let start = |name| Cluster::start(world, how(Plan::new(name)));
    let (east, west) = tokio::try_join!(start("east"), start("west"))?;
    link(&[&east, &west], &[]).await?;
    Ok((east, west))
}

async fn until_up(cluster: &Cluster, other: &str, up: bool, limit: Duration) -> Result<()> {
    until(&format!("{}'s link with {other} is up: {up}", cluster.name), limit, async || {
        let state = cluster.link_state(other).await?;
        ensure!((state == "up") == up, "it is {state}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn each_service_does_what_its_owner_chose_once_the_owner_was_silent_for_the_lease() -> Result<(), Failure> {
    World::tell(Duration::from_secs(150), async |world| {
        let (east, mut west) = pair(world, Plan::inbound).await?;
        let web = Workload::by_token(world, &east, "web.shop", None).await?;
        let _payments = serve(world, &west, "payments.billing", "deny").await?;
        let _ledger = serve(world, &west, "ledger.books", "keep").await?;
        let mut far = serve(world, &west, "catalog.shop", "prefer-local").await?;
        let _near = Workload::by_token(world, &east, "catalog.shop", Some(("catalog.shop", PORT))).await?;
        west.run(&["service", "register", "vault.books", "--port", "8080"]).await?;
        export(&west, "vault.books", "keep").await?;
        for service in ["payments.billing", "ledger.books", "catalog.shop"] {
            west.run(&["intention", "allow", "web.shop.east", service]).await?;
        }
        east.run(&["intention", "allow", "web.shop", "catalog.shop"]).await?;
        let mut payments = web.until_call(PAYMENTS, PORT, CONVERGE).await?;
        let mut ledger = web.until_call(LEDGER, PORT, CONVERGE).await?;
        let mut catalog = web.until_call(CATALOG, PORT, CONVERGE).await?;
        web.until_call("catalog.shop.east.mesh.internal", PORT, CONVERGE).await?;
        ensure!(refusal(&web, VAULT).await? == 2, "vault was never allowed");
        until_freshness(&east, "payments.billing.west", "fresh", CONVERGE).await?;
        ensure!(freshness(&west, "payments.billing.west").await? == "own");

        // Without its signer west can say nothing more, while its sessions and tunnels go on as if nothing were.
        let frozen = Frozen::part(&mut west, "signer")?;
        let silent = Instant::now();
        until_up(&east, "west", false, NOTICE_MAX + MEASURE).await?;
        eprintln!("silence without a broken socket was noticed after {:?}", silent.elapsed());
        payments.cut(LEASE + LATE_MAX).await.context("payments denies when stale")?;
        let took = silent.elapsed();
        eprintln!("the live connection was cut {took:?} after the last word, lease {LEASE:?}");
        ensure!(took >= LEASE - SAID_BEFORE, "cut after {took:?}, before the lease was over");
        ensure!(took <= LEASE + LATE_MAX, "cut only after {took:?}");
        until_freshness(&east, "payments.billing.west", "stale (deny)", CONVERGE).await?;
        ensure!(freshness(&east, "ledger.books.west").await? == "stale (keep)");
        ensure!(freshness(&east, "catalog.shop.west").await? == "stale (prefer-local)");
        ensure!(refusal(&web, PAYMENTS).await? == 2, "a new call is refused by policy");
        let dns = east.ask(&["dns", PAYMENTS, "-o", "json"]).await?;
        ensure!(dns.json()?["rcode"] == "SERVFAIL" && dns.code == 1, "{}", dns.data);
        ensure!(dns.json()?["why"].as_str().is_some_and(|why| why.contains("hanse link status west")), "{}", dns.data);
        // Keep: what was allowed goes on, what was not stays refused.
        ledger.exchange().await.context("keep goes on")?;
        web.call(LEDGER, PORT).await.context("keep goes on for new calls")?;
        ensure!(east.resolves(LEDGER).await?);
        ensure!(refusal(&web, VAULT).await? == 2, "keep allowed what was denied before");
        // Prefer local: the live one goes on; a new one is served here, though the service there is gone.
        catalog.exchange().await.context("prefer-local leaves live connections alone")?;
        far.crash().await?;
        web.call(CATALOG, PORT).await.context("the local service stands in")?;

        drop(frozen);
        until_freshness(&east, "payments.billing.west", "fresh", CONVERGE).await?;
        until_up(&east, "west", true, CONVERGE).await?;
        web.until_call(PAYMENTS, PORT, CONVERGE).await.context("heard again, it is called again")?;
        until("the stand-in stands back", CONVERGE, async || {
            let code = refusal(&web, CATALOG).await;
            ensure!(code.is_ok(), "the local service still answers for west's");
            Ok(())
        })
        .await?;
        far.restart().await?;
        web.until_call(CATALOG, PORT, CONVERGE).await?;
        ledger.exchange().await.context("the oldest connection lives")
    })
    .await
}

#[tokio::test]
async fn a_member_that_is_killed_or_frozen_is_noticed_within_three_seconds() -> Result<(), Failure> {
    World::tell(Duration::from_secs(120), async |world| {
        let (east, mut west) = pair(world, Plan::inbound).await?;
        for harm in ["kill -9 of the gateway", "its edge frozen", "its signer frozen"] {
            until_up(&east, "west", true, CONVERGE).await?;
            let mut frozen = None;
            match harm {
                "its edge frozen" => frozen = Some(Frozen::part(&mut west, "edge")?),
                "its signer frozen" => frozen = Some(Frozen::part(&mut west, "signer")?),
                _ => west.crash().await?,
            }
            let since = Instant::now();
            until_up(&east, "west", false, NOTICE_MAX + MEASURE).await.context(harm)?;
            let took = since.elapsed();
            eprintln!("{harm}: noticed after {took:?}");
            ensure!(took <= NOTICE_MAX + MEASURE, "{harm}: noticed after {took:?}");
            if frozen.is_none() {
                west.restart().await?;
            }
        }
        until_up(&east, "west", true, CONVERGE).await
    })
    .await
}

#[tokio::test]
async fn a_sidecar_that_lost_its_edge_lets_the_leases_run_out_by_itself() -> Result<(), Failure> {
    World::tell(Duration::from_secs(120), async |world| {
        let (mut east, west) = pair(world, Plan::inbound).await?;
        let web = Workload::by_token(world, &east, "web.shop", None).await?;
        let _payments = serve(world, &west, "payments.billing", "deny").await?;
        let _ledger = serve(world, &west, "ledger.books", "keep").await?;
        for service in ["payments.billing", "ledger.books"] {
            west.run(&["intention", "allow", "web.shop.east", service]).await?;
        }
        web.until_call(PAYMENTS, PORT, CONVERGE).await?;
        web.until_call(LEDGER, PORT, CONVERGE).await?;
        east.crash().await?;
        let alone = Instant::now();
        // Whoever dials meanwhile waits for the edge to come back, and is told what holds at the end of that.
        until("payments is refused by policy", LEASE + LATE_MAX, async || {
            let code = refusal(&web, PAYMENTS).await?;
            ensure!(code == 2, "SOCKS5 answered {code}");
            Ok(())
        })
        .await?;
        let took = alone.elapsed();
        ensure!(took >= LEASE - SAID_BEFORE - SAID_BEFORE, "refused after {took:?}, before the lease was over");
        ensure!(refusal(&web, LEDGER).await? != 2, "keep never refuses by policy");
        east.restart().await?;
        web.until_call(PAYMENTS, PORT, CONVERGE).await?;
        web.until_call(LEDGER, PORT, CONVERGE).await.map(|_| ())
    })
    .await
}

#[tokio::test]
async fn behind_a_cut_a_service_that_denies_is_refused_past_its_lease_and_back_once_it_heals() -> Result<(), Failure> {
    World::tell(Duration::from_secs(120), async |world| {
        let (east, west) = pair(world, Plan::relayed).await?;
        let web = Workload::by_token(world, &east, "web.shop", None).await?;
        let _payments = serve(world, &west, "payments.billing", "deny").await?;
        west.run(&["intention", "allow", "web.shop.east", "payments.billing"]).await?;
        let mut live = web.until_call(PAYMENTS, PORT, CONVERGE).await?;
        world.network().cut("east", "west");
        let cut = Instant::now();
        until_up(&east, "west", false, NOTICE_MAX + MEASURE).await?;
        live.cut(LEASE + LATE_MAX).await.context("nothing outlives lease + 1 s")?;
        until_freshness(&east, "payments.billing.west", "stale (deny)", LEASE + LATE_MAX + MEASURE).await?;
        ensure!(cut.elapsed() >= LEASE - SAID_BEFORE, "stale after {:?}", cut.elapsed());
        ensure!(refusal(&web, PAYMENTS).await? == 2, "a new call is refused by policy");
        world.network().heal();
        until_freshness(&east, "payments.billing.west", "fresh", CONVERGE).await?;
        web.until_call(PAYMENTS, PORT, CONVERGE).await.map(|_| ())
    })
    .await
}

#[tokio::test]
async fn without_its_lawmaker_a_member_makes_rules_for_its_own_services_and_lets_others_join() -> Result<(), Failure> {
    World::tell(Duration::from_secs(120), async |world| {
        let (east, west, north) = tokio::try_join!(
            Cluster::start(world, Plan::new("east").relayed()),
            Cluster::start(world, Plan::new("west").relayed()),
            Cluster::start(world, Plan::new("north").relayed()),
        )?;
        // The founder alone makes law.
        link(&[&east, &west], &[]).await?;
        world.network().cut("east", "west");
        world.network().cut("east", "north");
        until_up(&west, "east", false, NOTICE_MAX + MEASURE).await?;
        west.run(&["service", "register", "payments.billing", "--port", "8080"]).await?;
        west.run(&["service", "export", "payments.billing"]).await?;
        let token = west.token("north", &[]).await?;
        north.join(&token, &[]).await?.done().context("north joins by west")?;
        north.until_sees("payments.billing.west", true).await?;
        west.run(&["intention", "allow", "web.shop.north", "payments.billing"]).await?;
        north.until_check("web.shop.north", "payments.billing.west", true).await?;
        west.run(&["intention", "deny", "web.shop.north", "payments.billing"]).await?;
        north.until_check("web.shop.north", "payments.billing.west", false).await?;
        ensure!(west.link_state("east").await? != "up", "the cut did not last");
        world.network().heal();
        until_up(&east, "north", true, CONVERGE).await?;
        east.until_check("web.shop.north", "payments.billing.west", false).await
    })
    .await
}
