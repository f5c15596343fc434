//! Partition and heal between real processes: rules written on both sides converge, and a conflict denies until resolved.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, ensure};
use testbed::worlds::{CONVERGE, Cluster, Failure, Plan, World, link, until};

const WEB: &str = "web.shop.east";
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

        // Two lawmakers, one key, each in good faith; and on each side a rule that nobody else speaks about.
        east.run(&["intention", "deny", WEB, PAYMENTS]).await?;
        east.run(&["intention", "deny", "batch.shop.east", PAYMENTS]).await?;
        onprem.run(&["intention", "allow", WEB, PAYMENTS]).await?;
        west.run(&["intention", "allow", "clerk.books.onprem", PAYMENTS]).await?;
        for cluster in [&west, &onprem] {
            cluster.until_check(WEB, PAYMENTS, true).await?;
            cluster.until_check("clerk.books.onprem", PAYMENTS, true).await?;
            let known = versions(cluster, "batch.shop.east", PAYMENTS).await?;
            ensure!(known.is_empty(), "{} knows what east wrote behind the cut: {known:?}", cluster.name);
        }
        ensure!(!east.check(WEB, PAYMENTS).await?.0, "east does not enforce its own deny");
        ensure!(versions(&east, WEB, PAYMENTS).await?.len() == 1, "east knows what was written behind the cut");

        world.network().heal();
        until_one_law([&east, &west, &onprem]).await?;
        let both = BTreeSet::from([("east".into(), "deny".into(), true), ("onprem".into(), "allow".into(), true)]);
        for cluster in [&east, &west, &onprem] {
            let name = &cluster.name;
            let shown = versions(cluster, WEB, PAYMENTS).await?;
            ensure!(shown == both, "{name} shows {shown:?} for the conflict");
            cluster.until_check(WEB, PAYMENTS, false).await?;
            cluster.until_check("clerk.books.onprem", PAYMENTS, true).await?;
            cluster.until_check("batch.shop.east", PAYMENTS, false).await?;
            let words = cluster.ask(&["intention", "list"]).await?.words;
            ensure!(words.contains("side by side") && words.contains("Write the intention again"), "{name}: {words:?}");
            let status = cluster.json(&["status"]).await?;
            ensure!(status["conflicts"].as_u64() > Some(0), "{name}'s status shows no conflict: {status}");
        }

        // Written over by one who saw both: one version is left, and it is in force.
        onprem.run(&["intention", "allow", WEB, PAYMENTS]).await?;
        let one = BTreeSet::from([("onprem".into(), "allow".into(), false)]);
        for cluster in [&east, &west, &onprem] {
            until(&format!("{} sees it resolved", cluster.name), CONVERGE, async || {
                let shown = versions(cluster, WEB, PAYMENTS).await?;
                ensure!(shown == one, "it shows {shown:?} in {:#?}", law(cluster).await?);
                Ok(())
            })
            .await?;
            cluster.until_check(WEB, PAYMENTS, true).await?;
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
