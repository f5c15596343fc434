//! What two versions do together.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use testbed::worlds::{Answer, CONVERGE, Cluster, HttpApp, Load, Plan, Workload, World, hanse, link, until};

const PORT: u16 = 8080;
const READING: [&[&str]; 5] =
    [&["status"], &["link", "list"], &["cluster", "list"], &["intention", "list"], &["cert", "status"]];
/// A service of west, and its name for east's workloads.
const SERVICES: [(&str, &str); 2] =
    [("payments.billing", "payments.billing.west.mesh.internal"), ("ledger.books", "ledger.books.west.mesh.internal")];

/// West issues, east joins; services and rules replicate, calls pass through sidecars of either version, commands of either
/// version are understood, and east is evicted.
pub(crate) async fn story(world: &World, issuer: &Path, joiner: &Path) -> Result<()> {
    let shown =
        if issuer == hanse() { "this issues, the one before joins" } else { "the one before issues, this joins" };
    let plan = |name, executable| Plan::new(name).inbound().executable(executable);
    let (west, east) =
        tokio::try_join!(Cluster::start(world, plan("west", issuer)), Cluster::start(world, plan("east", joiner)))?;
    link(&[&west, &east], &[]).await?;
    println!("{shown}: joined, links up both ways");

    for (cluster, other) in [(&west, &east), (&east, &west)] {
        for verb in READING {
            let arguments = [verb, &["-o", "json"]].concat();
            let answer = Answer::by(other.executable(), cluster.socket(), &arguments).await?;
            answer.done().with_context(|| format!("{}: {verb:?} by the other version", cluster.name))?;
        }
        if cluster.executable() == hanse() {
            let links = cluster.list(&["link", "list"], "links").await?;
            let build = links.first().and_then(|link| link["build"].as_str()).unwrap_or_default();
            ensure!(build.starts_with("hanse/"), "the build of the other's edge is shown as {build:?}");
        }
    }
    println!("{shown}: each understands the other's commands");

    // Sidecars of the version that their edge is not, then of the one that it is.
    for ((service, name), (serving, calling)) in SERVICES.into_iter().zip([(joiner, issuer), (issuer, joiner)]) {
        let app = HttpApp::start().await?;
        let _serving = Workload::before(world, &west, service, Some(((service, PORT), app.address)), serving).await?;
        let caller = service.replace('.', "-caller.");
        let web = Workload::before(world, &east, &caller, None, calling).await?;
        let what = format!("{service} is exported");
        until(&what, CONVERGE, async || west.run(&["service", "export", service]).await.map(|_| ())).await?;
        let source = format!("{caller}.east");
        west.run(&["intention", "allow", &source, service]).await?;
        east.until_check(&source, &format!("{service}.west"), true).await?;
        until("calls pass", CONVERGE, async || {
            let load = Load::start(web.socks, name, PORT, 1, 1, Duration::from_millis(50));
            until("two outcomes", CONVERGE, async || {
                let (answered, failed) = load.counts();
                ensure!(answered + failed > 1, "none yet");
                Ok(())
            })
            .await?;
            let seen = load.end().await?;
            ensure!(seen.failed.is_empty(), "{:?}", seen.failed.first());
            Ok(())
        })
        .await?;
        // East restricts what west allowed: its word counts there, too.
        east.run(&["intention", "deny", &source, &format!("{service}.west")]).await?;
        west.until_check(&source, service, false).await?;
    }
    println!("{shown}: calls pass through sidecars of either version, rules of both count at both");

    until("both say that the rules are in force", CONVERGE, async || {
        let rules = west.list(&["intention", "list"], "intentions").await?;
        ensure!(rules.len() > 1 && rules.iter().all(|rule| rule["enforced"] == 2), "{rules:?}");
        Ok(())
    })
    .await?;
    println!("{shown}: receipts of both count");

    west.run(&["cluster", "evict", "east", "--yes"]).await?;
    until("the link is gone", CONVERGE, async || {
        let links = west.list(&["link", "list"], "links").await?;
        let state = links.iter().find(|link| link["cluster"] == "east").map(|link| link["state"].clone());
        ensure!(state.as_ref().is_none_or(|state| state != "up" && state != "connecting"), "it is {state:?}");
        Ok(())
    })
    .await?;
    println!("{shown}: an eviction is in force");
    Ok(())
}

/// A store goes up a version and down again.
pub(crate) async fn store(world: &World, previous: &Path, this: &Path) -> Result<()> {
    let plan = |name| Plan::new(name).inbound().executable(previous);
    let (mut west, east) = tokio::try_join!(Cluster::start(world, plan("west")), Cluster::start(world, plan("east")))?;
    link(&[&west, &east], &[]).await?;
    west.run(&["intention", "deny", "web.shop.east", "payments.billing"]).await?;
    let id = west.json(&["status"]).await?["cluster_id"].clone();
    for (executable, shown) in [(this, "up"), (previous, "down")] {
        west.replace(executable).await?;
        ensure!(west.json(&["status"]).await?["cluster_id"] == id, "it became another cluster");
        ensure!(west.list(&["intention", "list"], "intentions").await?.len() == 1, "the rule is gone");
        until("the link is up again", CONVERGE, async || {
            let state = west.link_state("east").await?;
            ensure!(state == "up", "it is {state}");
            Ok(())
        })
        .await?;
        println!("a store goes {shown} a version");
    }
    Ok(())
}
