//! Partition and heal between real processes: rules written on both sides converge, and a conflict denies until resolved.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, ensure};
use testbed::worlds::{CONVERGE, Cluster, Failure, Plan, World, link, until};

const WEB: &str = "web.shop.east";
const CLERK: &str = "clerk.books.onprem";
const BATCH: &str = "batch.shop.east";
const PAYMENTS: &str = "payments.billing.west";

/// Every rule as a cluster lists it, whatever only that cluster may say about it left out.
async fn law(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let rules = cluster.list(&["intention", "list"], "intentions").await?;
    let line = |rule: &serde_json::Value| {
        ["id", "action", "source", "destination", "layer", "writer", "conflict"].map(|f| rule[f].to_string()).join(" ")
    };
    Ok(rules.iter().map(line).collect())
}

/// The actions that stand under one pair, by writer, and whether each is shown as a conflict.
async fn versions(cluster: &Cluster, source: &str, destination: &str) -> Result<BTreeSet<(String, String, bool)>> {
    let rules = cluster.list(&["intention", "list"], "intentions").await?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let of_pair = rules.iter().filter(|rule| rule["source"] == source && rule["destination"] == destination);
    Ok(of_pair.map(|rule| (text(&rule["writer"]), text(&rule["action"]), rule["conflict"] == true)).collect())
}

async fn until_state(cluster: &Cluster, other: &str, up: bool) -> Result<()> {
    let word = if up { "up" } else { "down" };
    until(&format!("{}'s link with {other} is {word}", cluster.name), CONVERGE, async || {
        let state = cluster.link_state(other).await?;
        ensure!((state == "up") == up, "it is {state}");
        Ok(())
    })
    .await
}

/// Everywhere these versions stand under the pair, and the call is decided so.
async fn until_versions(
    clusters: [&Cluster; 3],
    source: &str,
    wanted: &BTreeSet<(String, String, bool)>,
    allowed: bool,
) -> Result<()> {
    for cluster in clusters {
        until(&format!("{source}'s rules at {} are as written last", cluster.name), CONVERGE, async || {
            let shown = versions(cluster, source, PAYMENTS).await?;
            ensure!(shown == *wanted, "it shows {shown:?} in {:#?}", law(cluster).await?);
            Ok(())
        })
        .await?;
        cluster.until_check(source, PAYMENTS, allowed).await?;
    }
    Ok(())
}

/// All three list the very same records.
async fn until_one_law(clusters: [&Cluster; 3]) -> Result<()> {
    until("all three list the same law", CONVERGE, async || {
        let [a, b, c] = clusters;
        let (a, b, c) = (law(a).await?, law(b).await?, law(c).await?);
        ensure!(a == b && b == c, "they differ: {a:#?}\n{b:#?}\n{c:#?}");
        Ok(())
    })
    .await
}

async fn three(world: &World) -> Result<[Cluster; 3]> {
    let (east, west, onprem) = tokio::try_join!(
        Cluster::start(world, Plan::new("east").relayed()),
        Cluster::start(world, Plan::new("west").relayed()),
        Cluster::start(world, Plan::new("onprem").relayed()),
    )?;
    link(&[&east, &west, &onprem], &["--lawmaker"]).await?;
    west.run(&["service", "register", "payments.billing", "--port", "8080"]).await?;
    west.run(&["service", "export", "payments.billing"]).await?;
    for cluster in [&east, &west, &onprem] {
        until(&format!("{} sees the service", cluster.name), CONVERGE, async || {
            let (allowed, reason) = cluster.check(WEB, PAYMENTS).await?;
            ensure!(!allowed && reason == "default_deny", "it says allowed={allowed} {reason}");
            Ok(())
        })
        .await?;
    }
    Ok([east, west, onprem])
}

#[tokio::test]
async fn rules_written_on_both_sides_of_a_cut_converge_and_the_conflict_denies_until_it_is_resolved()
-> Result<(), Failure> {
    World::tell(Duration::from_secs(120), async |world| {
        let [east, west, onprem] = three(world).await?;
        world.network().cut("east", "west");
        world.network().cut("east", "onprem");
        for other in [&west, &onprem] {
            until_state(&east, &other.name, false).await?;
            until_state(other, "east", false).await?;
        }
        until_state(&west, "onprem", true).await?;

        // Two lawmakers, one key, each in good faith, twice: about a caller of the third, and about a caller of east's own.
        // And on each side a rule that nobody else speaks about.
        for caller in [CLERK, WEB] {
            east.run(&["intention", "deny", caller, PAYMENTS]).await?;
            onprem.run(&["intention", "allow", caller, PAYMENTS]).await?;
        }
        east.run(&["intention", "deny", BATCH, PAYMENTS]).await?;
        west.run(&["intention", "allow", "auditor.books.onprem", PAYMENTS]).await?;
        for cluster in [&west, &onprem] {
            for caller in [CLERK, WEB, "auditor.books.onprem"] {
                cluster.until_check(caller, PAYMENTS, true).await?;
            }
            let known = versions(cluster, BATCH, PAYMENTS).await?;
            ensure!(known.is_empty(), "{} knows what east wrote behind the cut: {known:?}", cluster.name);
        }
        for caller in [CLERK, WEB] {
            ensure!(!east.check(caller, PAYMENTS).await?.0, "east does not enforce its own deny");
            let known = versions(&east, caller, PAYMENTS).await?;
            ensure!(known.len() == 1, "east knows what was written behind the cut: {known:?}");
        }

        world.network().heal();
        until_one_law([&east, &west, &onprem]).await?;
        let both = BTreeSet::from([("east".into(), "deny".into(), true), ("onprem".into(), "allow".into(), true)]);
        for cluster in [&east, &west, &onprem] {
            let name = &cluster.name;
            for caller in [CLERK, WEB] {
                let shown = versions(cluster, caller, PAYMENTS).await?;
                ensure!(shown == both, "{name} shows {shown:?} for the conflict about {caller}");
                cluster.until_check(caller, PAYMENTS, false).await?;
            }
            cluster.until_check("auditor.books.onprem", PAYMENTS, true).await?;
            cluster.until_check(BATCH, PAYMENTS, false).await?;
            let words = cluster.ask(&["intention", "list"]).await?.words;
            ensure!(
                words.contains("side by side") && words.contains("by writing the intention again"),
                "{name}: {words:?}"
            );
            let status = cluster.json(&["status"]).await?;
            ensure!(status["conflicts"] == 2, "{name}'s status does not show two conflicts: {status}");
        }

        // Written over by a lawmaker who saw both: one version is left, and it is in force.
        let one = BTreeSet::from([("onprem".into(), "allow".into(), false)]);
        onprem.run(&["intention", "allow", CLERK, PAYMENTS]).await?;
        until_versions([&east, &west, &onprem], CLERK, &one, true).await?;
        // What east restricts for its own accounts nobody lifts but east.
        onprem.run(&["intention", "allow", WEB, PAYMENTS]).await?;
        until_one_law([&east, &west, &onprem]).await?;
        until_versions([&east, &west, &onprem], WEB, &both, false).await?;
        east.run(&["intention", "allow", WEB, PAYMENTS]).await?;
        let one = BTreeSet::from([("east".into(), "allow".into(), false)]);
        until_versions([&east, &west, &onprem], WEB, &one, true).await?;
        for cluster in [&east, &west, &onprem] {
            let status = cluster.json(&["status"]).await?;
            ensure!(status["conflicts"] == 0, "{}'s status still shows a conflict: {status}", cluster.name);
        }
        until_one_law([&east, &west, &onprem]).await
    })
    .await
}

#[tokio::test]
async fn two_that_cannot_reach_each_other_keep_one_law_through_a_common_neighbour() -> Result<(), Failure> {
    World::tell(Duration::from_secs(120), async |world| {
        let [east, west, onprem] = three(world).await?;
        world.network().cut("east", "west");
        until_state(&east, "west", false).await?;
        until_state(&west, "east", false).await?;
        east.run(&["intention", "allow", WEB, PAYMENTS]).await?;
        west.until_check(WEB, PAYMENTS, true).await?;
        west.run(&["intention", "deny", WEB, PAYMENTS, "--guardrail"]).await?;
        east.until_check(WEB, PAYMENTS, false).await?;
        ensure!(east.link_state("west").await? != "up", "the cut did not last");
        until_one_law([&east, &west, &onprem]).await
    })
    .await
}

#[tokio::test]
async fn an_edge_killed_behind_the_cut_brings_its_rules_along_when_it_heals() -> Result<(), Failure> {
    World::tell(Duration::from_secs(120), async |world| {
        let [mut east, west, onprem] = three(world).await?;
        world.network().cut("east", "west");
        world.network().cut("east", "onprem");
        until_state(&west, "east", false).await?;
        east.run(&["intention", "deny", WEB, PAYMENTS]).await?;
        west.run(&["intention", "allow", WEB, PAYMENTS]).await?;
        east.crash().await?;
        east.restart().await?;
        ensure!(!east.check(WEB, PAYMENTS).await?.0, "the deny is gone after the restart");
        world.network().heal();
        until_one_law([&east, &west, &onprem]).await?;
        for cluster in [&east, &west, &onprem] {
            let shown = versions(cluster, WEB, PAYMENTS).await?;
            ensure!(shown.len() == 2 && shown.iter().all(|(_, _, conflict)| *conflict), "{shown:?}");
            cluster.until_check(WEB, PAYMENTS, false).await?;
        }
        Ok(())
    })
    .await
}
