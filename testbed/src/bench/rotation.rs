//! Every key that can be rotated, rotated under load: roots and intermediates of both ends of a call.
//!
//! In: requests a second. Out: how many were answered and how many failed, and how long they took while each rotation went
//! on. Real gateways, sidecars and an application on loopback, all on this machine.

use std::{cell::RefCell, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testbed::worlds::{Answered, CONVERGE, Cluster, HttpApp, Load, Plan, Workload, World, hanse, link, until};
use tokio::time::Instant;

const PAYMENTS: &str = "payments.billing.west.mesh.internal";
const PORT: u16 = 8080;
/// Life of an SVID, and so of an old root once the new one signs.
const SVID_TTL: Duration = Duration::from_secs(20);
/// Time between two requests of each client.
const PACE: Duration = Duration::from_millis(100);
/// One in so many clients opens a connection for each request: that costs each of four processes a handshake.
const ANEW: u32 = 20;
/// Requests that are answered before the first rotation, between two and after the last.
const QUIET: usize = 2_000;
const LIMIT: Duration = Duration::from_secs(900);

/// Rotates everything in both clusters while web in east calls payments in west so often.
pub(crate) async fn measure(rate: u32) -> Result<Value> {
    let figures = RefCell::default();
    let told = World::tell(LIMIT, async |world| {
        *figures.borrow_mut() = tell(world, rate).await?;
        Ok(())
    });
    told.await.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
    Ok(figures.into_inner())
}

async fn tell(world: &World, rate: u32) -> Result<Value> {
    let plan = |name| Plan::new(name).inbound().svid_ttl(SVID_TTL);
    let (west, east) = tokio::try_join!(Cluster::start(world, plan("west")), Cluster::start(world, plan("east")))?;
    link(&[&west, &east], &[]).await?;
    let app = HttpApp::start().await?;
    let serves = Some((("payments.billing", PORT), app.address));
    let _payments = Workload::before(world, &west, "payments.billing", serves, hanse()).await?;
    let web = Workload::by_token(world, &east, "web.shop", None).await?;
    until("payments is exported", CONVERGE, async || {
        west.run(&["service", "export", "payments.billing"]).await.map(|_| ())
    })
    .await?;
    west.run(&["intention", "allow", "web.shop.east", "payments.billing"]).await?;
    until("web reaches payments", CONVERGE, async || {
        let first = Load::start(web.socks, PAYMENTS, PORT, 1, 0, PACE);
        until("an answer", CONVERGE, async || {
            ensure!(first.counts() != (0, 0), "none yet");
            Ok(())
        })
        .await?;
        ensure!(first.end().await?.failed.is_empty(), "refused");
        Ok(())
    })
    .await?;

    let clients = (u64::from(rate) * PACE.as_millis() as u64).div_ceil(1_000) as u32;
    let anew = (clients / ANEW).max(1);
    let (load, began) =
        (Load::start(web.socks, PAYMENTS, PORT, clients.saturating_sub(anew), anew, PACE), Instant::now());
    quiet(&load).await?;
    let mut spans = Vec::new();
    for cluster in [&west, &east] {
        for rotate in [&["cert", "rotate-root", "--wait"][..], &["cert", "rotate-intermediate"]] {
            let from = Instant::now();
            cluster.run(rotate).await.with_context(|| format!("{} in {}", rotate[1], cluster.name))?;
            spans.push((format!("{} {}", cluster.name, rotate[1]), from, Instant::now()));
            quiet(&load).await?;
        }
    }
    let (seen, lasted) = (load.end().await?, began.elapsed());
    let during = |(what, from, to): &(String, Instant, Instant)| {
        let within = |at: Instant| (*from..*to).contains(&at);
        json!({
            "what": what,
            "took_s": (*to - *from).as_secs_f64(),
            "answered": seen.answered.iter().filter(|answered| within(answered.at)).count(),
            "failed": seen.failed.iter().filter(|(at, _)| within(*at)).count(),
            "p99_ms": p99(seen.answered.iter().filter(|answered| within(answered.at))),
        })
    };
    Ok(json!({
        "asked_per_s": rate,
        "answered_per_s": seen.answered.len() as f64 / lasted.as_secs_f64(),
        "answered": seen.answered.len(),
        "failed": seen.failed.len(),
        "first_failures": seen.failed.iter().take(5).map(|(_, why)| why).collect::<Vec<_>>(),
        "sent_again": seen.answered.iter().filter(|answered| answered.again).count(),
        "reopened": seen.reopened,
        "p99_ms": p99(seen.answered.iter()),
        "rotations": spans.iter().map(during).collect::<Vec<_>>(),
    }))
}

/// Waits until so many more requests were answered.
async fn quiet(load: &Load) -> Result<()> {
    let (before, _) = load.counts();
    until("requests are answered", CONVERGE, async || {
        ensure!(load.counts().0 >= before + QUIET, "too few");
        Ok(())
    })
    .await
}

/// Milliseconds that 99 of 100 requests did not exceed.
fn p99<'a>(answered: impl Iterator<Item = &'a Answered>) -> f64 {
    let mut took: Vec<Duration> = answered.map(|answered| answered.took).collect();
    took.sort_unstable();
    took.get(took.len() * 99 / 100).or(took.last()).map_or(0.0, |took| took.as_secs_f64() * 1_000.0)
}
