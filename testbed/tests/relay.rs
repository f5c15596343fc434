//! Two clusters that can only dial, and a third between them that relays: real processes, end to end.

use std::time::Duration;

use anyhow::{Result, ensure};
use testbed::worlds::{CONVERGE, Cluster, Failure, Plan, Workload, World, until};

const PORT: u16 = 8080;
const WEB: &str = "web.shop.east";
const PAYMENTS: &str = "payments.billing.west";
const NAME: &str = "payments.billing.west.mesh.internal";
/// So short that a test sees several.
const SVID: Duration = Duration::from_secs(6);

/// East and west accept nothing inbound; both are linked with the hub alone.
async fn apart(world: &World, hub: Plan) -> Result<[Cluster; 3]> {
    let (east, hub, west) = tokio::try_join!(
        Cluster::start(world, Plan::new("east").svid_ttl(SVID)),
        Cluster::start(world, hub.inbound().svid_ttl(SVID)),
        Cluster::start(world, Plan::new("west").svid_ttl(SVID)),
    )?;
    for joiner in [&east, &west] {
        let token = hub.token(&joiner.name, &[]).await?;
        joiner.join(&token, &[]).await?.done()?;
    }
    for (one, other) in [(&east, "hub"), (&west, "hub")] {
        until(&format!("{} is linked with {other}", one.name), CONVERGE, async || {
            let state = one.link_state(other).await?;
            ensure!(state == "up", "it is {state}");
            Ok(())
        })
        .await?;
    }
    Ok([east, hub, west])
}

async fn workloads(world: &World, east: &Cluster, west: &Cluster) -> Result<(Workload, Workload)> {
    let payments = Workload::by_token(world, west, "payments.billing", Some(("payments.billing", PORT)));
    let (web, payments) = tokio::try_join!(Workload::by_token(world, east, "web.shop", None), payments)?;
    until("the sidecar has registered its service", CONVERGE, async || {
        west.run(&["service", "export", "payments.billing"]).await.map(drop)
    })
    .await?;
    west.run(&["intention", "allow", WEB, PAYMENTS]).await?;
    east.until_check(WEB, PAYMENTS, true).await?;
    Ok((web, payments))
}

#[tokio::test]
async fn a_relay_carries_what_two_clusters_that_only_dial_say_to_each_other() -> Result<(), Failure> {
    World::tell(Duration::from_secs(150), async |world| {
        let [east, hub, west] = apart(world, Plan::new("hub").relay()).await?;
        let (web, _payments) = workloads(world, &east, &west).await?;
        ensure!(east.link_state("west").await? != "up", "they have a session after all: nothing is relayed");
        let mut live = web.until_call(NAME, PORT, CONVERGE).await?;
        live.exchange().await?;

        // The path and its cost are shown.
        until("east shows the way to west", CONVERGE, async || {
            let links = east.list(&["link", "status", "west"], "links").await?;
            let link = links.first().cloned().unwrap_or_default();
            ensure!(link["relay"] == "hub" && link["relay_rtt_us"].as_u64() > Some(0), "it shows {link}");
            Ok(())
        })
        .await?;

        // Its credentials end and are renewed over the relay, twice over.
        let until_then = tokio::time::Instant::now() + 2 * SVID + Duration::from_secs(1);
        while tokio::time::Instant::now() < until_then {
            live.exchange().await?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }

        // What the hub is told to forbid it does not carry, though neither end is its own: a lawmaker's rule.
        hub.run(&["intention", "deny", WEB, PAYMENTS]).await?;
        live.cut(CONVERGE).await?;
        east.until_check(WEB, PAYMENTS, false).await
    })
    .await
}

#[tokio::test]
async fn who_does_not_relay_carries_nothing_between_others() -> Result<(), Failure> {
    World::tell(Duration::from_secs(90), async |world| {
        let [east, _hub, west] = apart(world, Plan::new("hub")).await?;
        let (web, _payments) = workloads(world, &east, &west).await?;
        let refused = until("the call is refused for want of a way", CONVERGE, async || {
            ensure!(web.call(NAME, PORT).await.is_err(), "it went through");
            ensure!(east.output().contains("no tunnel"), "east's edge has not tried yet");
            Ok(())
        });
        refused.await?;
        let links = east.list(&["link", "status", "west"], "links").await?;
        ensure!(links.iter().all(|link| link["relay"] == ""), "a way is shown: {links:?}");
        Ok(())
    })
    .await
}
