//! Who is in and who is out, between real processes: an eviction cuts what lives, everywhere; what an approval and a block
//! change, they change for one cluster; nobody comes back from a final eviction without a new token.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testbed::worlds::{CONVERGE, Cluster, Conversation, Failure, Plan, Refused, Workload, World, link, until};
use tokio::time::Instant;

const PAYMENTS: &str = "payments.billing.west";
const PAYMENTS_DNS: &str = "payments.billing.west.mesh.internal";
const LEDGER_DNS: &str = "ledger.books.onprem.mesh.internal";
/// Within which a live connection must be cut on loopback, on a machine that is busy with other things. The figure itself
/// is the bench's.
const CUT: Duration = Duration::from_secs(3);

async fn until_state(cluster: &Cluster, other: &str, wanted: &str) -> Result<()> {
    until(&format!("{other} is {wanted} at {}", cluster.name), CONVERGE, async || {
        let members = cluster.list(&["cluster", "list"], "clusters").await?;
        let found = members.iter().filter(|member| member["name"] == other).map(|member| member["state"].to_string());
        let states: Vec<String> = found.collect();
        ensure!(states == [format!("{wanted:?}")], "it is {states:?}");
        Ok(())
    })
    .await
}

/// Shows a service to all, once its sidecar registered it.
async fn export(cluster: &Cluster, service: &str) -> Result<()> {
    until(&format!("{service} is registered"), CONVERGE, async || {
        cluster.run(&["service", "export", service]).await.map(drop)
    })
    .await
}

/// East and west make law, onprem is a member; all linked.
async fn three(world: &World, west: Plan) -> Result<[Cluster; 3]> {
    let (east, west, onprem) = tokio::try_join!(
        Cluster::start(world, Plan::new("east").inbound()),
        Cluster::start(world, west.inbound()),
        Cluster::start(world, Plan::new("onprem").inbound()),
    )?;
    link(&[&east, &west], &["--lawmaker"]).await?;
    let token = east.token("onprem", &[]).await?;
    onprem.join(&token, &["--wait"]).await?.done()?;
    for cluster in [&east, &west] {
        until_state(cluster, "onprem", "up").await?;
    }
    Ok([east, west, onprem])
}

/// Onprem's clerk calls west's payments, east's web calls onprem's ledger: both ways over the border of one that will go.
struct Traffic {
    payments: Workload,
    clerk: Workload,
    _ledger: Workload,
    web: Workload,
}

impl Traffic {
    async fn start(world: &World, [east, west, onprem]: [&Cluster; 3]) -> Result<Self> {
        let traffic = Self {
            payments: Workload::by_token(world, west, "payments.billing", Some(("payments.billing", 8080))).await?,
            clerk: Workload::by_token(world, onprem, "clerk.books", None).await?,
            _ledger: Workload::by_token(world, onprem, "ledger.books", Some(("ledger.books", 9090))).await?,
            web: Workload::by_token(world, east, "web.shop", None).await?,
        };
        export(west, "payments.billing").await?;
        export(onprem, "ledger.books").await?;
        onprem.until_sees(PAYMENTS, true).await?;
        east.until_sees("ledger.books.onprem", true).await?;
        west.run(&["intention", "allow", "clerk.books.onprem", "payments.billing"]).await?;
        west.run(&["intention", "allow", "web.shop.east", "payments.billing"]).await?;
        onprem.run(&["intention", "allow", "web.shop.east", "ledger.books"]).await?;
        Ok(traffic)
    }

    async fn talk(&self) -> Result<[Conversation; 3]> {
        Ok([
            self.clerk.until_call(PAYMENTS_DNS, 8080, CONVERGE).await?,
            self.web.until_call(LEDGER_DNS, 9090, CONVERGE).await?,
            self.web.until_call(PAYMENTS_DNS, 8080, CONVERGE).await?,
        ])
    }
}

/// A call that is not let through. A sidecar whose own snapshot already says no answers 0x02; behind that, it is cut.
async fn refused(workload: &Workload, name: &str, port: u16) -> Result<()> {
    let Err(error) = workload.call(name, port).await else { anyhow::bail!("{name} was reached") };
    if let Some(Refused(code)) = error.downcast_ref::<Refused>() {
        // By the law, by a name that is not there, or by a host that is not to be reached (RFC 1928, 6).
        ensure!([0x02, 0x03, 0x04, 0x05].contains(code), "{error:#}");
    }
    Ok(())
}

#[tokio::test]
async fn an_eviction_cuts_what_lives_and_lets_nothing_new_in() -> Result<(), Failure> {
    World::tell(Duration::from_secs(180), async |world| {
        let [east, west, onprem] = three(world, Plan::new("west")).await?;
        let traffic = Traffic::start(world, [&east, &west, &onprem]).await?;
        // A deny by which onprem protects its own.
        onprem.run(&["intention", "deny", "batch.shop.east", "ledger.books"]).await?;
        east.until_check("batch.shop.east", "ledger.books.onprem", false).await?;
        let [mut to_west, mut from_east, mut bystander] = traffic.talk().await?;

        // A member that makes no law is told who may.
        let denied = onprem.ask(&["cluster", "evict", "west", "--yes"]).await?;
        denied.refused(4, &["onprem makes no law", "one of east, west may", "hanse cluster block west"])?;

        let began = Instant::now();
        let evicted = east.ask(&["cluster", "evict", "onprem", "--yes", "-o", "json"]).await?;
        let reply = evicted.json()?;
        ensure!(reply["state"] == "suspended" && reply["needs"] == serde_json::json!(["west"]), "{reply}");
        to_west.cut(CUT).await.context("from the evicted to west, which only heard of it")?;
        from_east.cut(CUT).await.context("from east to the evicted")?;
        let took = began.elapsed();
        eprintln!("both connections were cut {took:?} after the verb was started");
        bystander.exchange().await.context("what does not touch the evicted lives on")?;

        for cluster in [&east, &west] {
            until_state(cluster, "onprem", "suspended").await?;
            ensure!(!cluster.sees("ledger.books.onprem").await?, "{} still sees its service", cluster.name);
            ensure!(!cluster.resolves(LEDGER_DNS).await?, "{} still answers its name", cluster.name);
            let rules = cluster.list(&["intention", "list"], "intentions").await?;
            let of_onprem: Vec<_> = rules.iter().filter(|rule| rule["writer"] == "onprem").collect();
            let counts = |action: &str| of_onprem.iter().any(|rule| rule["action"] == action && rule["counts"] == true);
            ensure!(!counts("allow"), "its allow is not void at {}: {of_onprem:?}", cluster.name);
            ensure!(counts("deny"), "its deny does not stay at {}: {of_onprem:?}", cluster.name);
            let words = cluster.run(&["status"]).await?;
            ensure!(words.contains("onprem is suspended: evicted by east"), "{words}");
        }
        until("onprem knows who put it out", CONVERGE, async || {
            let words = onprem.run(&["status"]).await?;
            ensure!(words.contains("east evicted this cluster"), "{words}");
            Ok(())
        })
        .await?;
        refused(&traffic.clerk, PAYMENTS_DNS, 8080).await?;
        refused(&traffic.web, LEDGER_DNS, 9090).await?;

        // West lets it in again for itself: its clerk reaches west, and east keeps it out.
        let approved = west.ask(&["cluster", "approve", "onprem"]).await?;
        ensure!(approved.code == 0 && approved.words.contains("although east evicted it"), "{}", approved.words);
        until_state(&west, "onprem", "up").await?;
        let mut again = traffic.clerk.until_call(PAYMENTS_DNS, 8080, CONVERGE).await?;
        until_state(&east, "onprem", "suspended").await?;
        refused(&traffic.web, LEDGER_DNS, 9090).await?;

        // A second lawmaker makes it final, and that cuts again.
        let reply = west.json(&["cluster", "evict", "onprem", "--yes"]).await?;
        ensure!(reply["state"] == "evicted" && reply["for_good"] == true, "{reply}");
        again.cut(CUT).await.context("after the second signature")?;
        for cluster in [&east, &west] {
            until_state(cluster, "onprem", "evicted").await?;
        }
        let members = east.list(&["cluster", "list"], "clusters").await?;
        let row = members.iter().find(|member| member["name"] == "onprem").context("onprem is shown still")?;
        ensure!(row["evicted_by"] == serde_json::json!(["east", "west"]), "{row}");
        for verb in ["approve", "evict", "block"] {
            let more: &[&str] = if verb == "evict" { &["--yes"] } else { &[] };
            let answer = west.ask(&[&["cluster", verb, "onprem"], more].concat()).await?;
            answer.refused(5, &["evicted for good", "hanse link token onprem"])?;
        }
        bystander.exchange().await.context("what does not touch the evicted lives on")?;
        drop(traffic.payments);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_restart_does_not_bring_an_evicted_member_back_and_a_new_cluster_may_take_its_name() -> Result<(), Failure> {
    World::tell(Duration::from_secs(120), async |world| {
        let [mut east, west, mut onprem] = three(world, Plan::new("west")).await?;
        east.run(&["cluster", "evict", "onprem", "--yes"]).await?;
        until_state(&west, "onprem", "suspended").await?;
        west.run(&["cluster", "evict", "onprem", "--yes"]).await?;
        until_state(&east, "onprem", "evicted").await?;
        for cluster in [&mut east, &mut onprem] {
            cluster.crash().await?;
            cluster.restart().await?;
        }
        until_state(&east, "west", "up").await?;
        until_state(&east, "onprem", "evicted").await?;
        let id = |members: &[serde_json::Value]| members.iter().find(|m| m["own"] == true).map(|m| m["id"].clone());
        let old = id(&onprem.list(&["cluster", "list"], "clusters").await?).context("its own row")?;

        // The same cluster with a new token: its id is out for good.
        let token = east.token("onprem", &[]).await?;
        onprem.ask(&["cluster", "leave", "--yes"]).await?.done()?;
        let answer = onprem.join(&token, &[]).await?;
        ensure!(answer.code == 5 && answer.words.contains("evicted"), "exit {}: {}", answer.code, answer.words);

        // Another one under the free name.
        let fresh = Cluster::start(world, Plan::new("onprem").under("onprem-anew").inbound()).await?;
        fresh.join(&token, &["--wait"]).await?.done()?;
        until_state(&west, "onprem", "up").await?;
        let members = west.list(&["cluster", "list"], "clusters").await?;
        let short: String = old.as_str().context("an id")?.chars().take(12).collect();
        let gone = format!("onprem@{short}");
        ensure!(members.iter().any(|m| m["name"] == *gone && m["state"] == "evicted"), "{members:?}");
        west.ask(&["cluster", "approve", &gone]).await?.refused(5, &["evicted for good"])?;
        west.ask(&["cluster", "approve", "onprem@00000000"]).await?.refused(5, &["no onprem has an id", &gone])
    })
    .await
}

#[tokio::test]
async fn a_block_is_one_clusters_own_and_cuts_at_once() -> Result<(), Failure> {
    World::tell(Duration::from_secs(120), async |world| {
        let [east, west, onprem] = three(world, Plan::new("west")).await?;
        let traffic = Traffic::start(world, [&east, &west, &onprem]).await?;
        let [mut to_west, mut from_east, _bystander] = traffic.talk().await?;
        let answer = west.ask(&["link", "remove", "onprem"]).await?;
        ensure!(answer.code == 0 && answer.words.contains("until `hanse cluster approve onprem`"), "{}", answer.words);
        to_west.cut(CUT).await?;
        until_state(&west, "onprem", "blocked").await?;
        from_east.exchange().await.context("east did not block it")?;
        until_state(&east, "onprem", "up").await?;
        refused(&traffic.clerk, PAYMENTS_DNS, 8080).await?;
        ensure!(!west.sees("ledger.books.onprem").await?, "west still sees its service");
        west.run(&["cluster", "approve", "onprem"]).await?;
        until_state(&west, "onprem", "up").await?;
        traffic.clerk.until_call(PAYMENTS_DNS, 8080, CONVERGE).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn who_approves_by_hand_has_no_traffic_with_a_newcomer_before() -> Result<(), Failure> {
    World::tell(Duration::from_secs(120), async |world| {
        let plan = Plan::new("west").inbound().federation("approval = \"manual\"");
        let (east, west, onprem) = tokio::try_join!(
            Cluster::start(world, Plan::new("east").inbound()),
            Cluster::start(world, plan),
            Cluster::start(world, Plan::new("onprem").inbound()),
        )?;
        // West knows east, which admitted it; onprem it does not.
        link(&[&east, &west], &[]).await?;
        onprem.join(&east.token("onprem", &[]).await?, &[]).await?.done()?;
        until_state(&east, "onprem", "up").await?;
        until_state(&west, "onprem", "held").await?;
        let words = west.run(&["status"]).await?;
        ensure!(words.contains("waiting for approval: onprem; `hanse cluster approve onprem`"), "{words}");
        let payments = Workload::by_token(world, &west, "payments.billing", Some(("payments.billing", 8080))).await?;
        let clerk = Workload::by_token(world, &onprem, "clerk.books", None).await?;
        export(&west, "payments.billing").await?;
        west.run(&["intention", "allow", "clerk.books.onprem", "payments.billing"]).await?;
        // The law comes over east; traffic does not.
        onprem.until_check("clerk.books.onprem", PAYMENTS, true).await?;
        refused(&clerk, PAYMENTS_DNS, 8080).await?;
        west.run(&["cluster", "approve", "onprem"]).await?;
        until_state(&west, "onprem", "up").await?;
        clerk.until_call(PAYMENTS_DNS, 8080, CONVERGE).await?;
        drop(payments);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_cluster_that_left_goes_on_alone_and_comes_back_with_a_token() -> Result<(), Failure> {
    World::tell(Duration::from_secs(120), async |world| {
        let [east, west, onprem] = three(world, Plan::new("west")).await?;
        let traffic = Traffic::start(world, [&east, &west, &onprem]).await?;
        let [mut to_west, mut from_east, _bystander] = traffic.talk().await?;
        let left = onprem.json(&["cluster", "leave", "--yes"]).await?;
        ensure!(left["untold"] == serde_json::json!([]), "{left}");
        to_west.cut(CUT).await?;
        from_east.cut(CUT).await?;
        for cluster in [&east, &west] {
            until_state(cluster, "onprem", "left").await?;
        }
        ensure!(onprem.list(&["cluster", "list"], "clusters").await?.len() == 1, "it is not alone");
        ensure!(onprem.sees("ledger.books.onprem").await?, "it lost its own service");
        let answer = west.ask(&["cluster", "approve", "onprem"]).await?;
        answer.refused(5, &["onprem@", "left", "hanse link token onprem"])?;
        onprem.join(&west.token("onprem", &[]).await?, &["--wait"]).await?.done()?;
        until_state(&east, "onprem", "up").await?;
        traffic.clerk.until_call(PAYMENTS_DNS, 8080, CONVERGE).await?;
        Ok(())
    })
    .await
}
