//! How long an eviction takes from the lawmaker's command until every other member has shut the evicted one out.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    federation::{Federation, distance},
    figures::{milliseconds, spread},
    member::Operator,
};

/// Pause between two looks at one member. What is measured is up to this much too long.
const LOOK: Duration = Duration::from_millis(5);
/// How long one may take at all.
const LIMIT: Duration = Duration::from_secs(60);
/// Allowed beyond one round trip.
const BAR_BEYOND: Duration = Duration::from_secs(1);

/// Puts out `evictions` members, the last ones first, and says how long each took to be in force everywhere. `before` so
/// many series of as many went.
pub(crate) async fn tell(
    federation: &Federation,
    rtt: Duration,
    evictions: usize,
    before: usize,
) -> Result<(bool, Value)> {
    federation.wan.change(&distance(rtt))?;
    sleep(5 * rtt.max(Duration::from_millis(200))).await;
    let all: Vec<Operator> = federation.operators().cloned().collect();
    let (mut everywhere, mut members) = (Vec::new(), Vec::new());
    for number in before * evictions..(before + 1) * evictions {
        let staying = all.len().checked_sub(number + 1).filter(|left| *left >= 2);
        let staying = staying.context("too few members are left: fewer evictions, or more members")?;
        let (lawmaker, victim) = (&all[0], &all[staying]);
        ensure!(!lawmaker.shuts_out(&victim.cluster).await?, "{} is out already", victim.cluster);
        let started = Instant::now();
        let mut looking = JoinSet::new();
        for member in &all[1..staying] {
            let look = shut_out(member.clone(), victim.cluster.clone(), started, rtt / 2);
            looking.spawn(async move { timeout(LIMIT, look).await });
        }
        lawmaker.evict(&victim.cluster).await?;
        let mut last = started.elapsed();
        while let Some(seen) = looking.join_next().await {
            let took =
                seen?.with_context(|| format!("{} is not out everywhere within {LIMIT:?}", victim.cluster))??;
            members.push(took);
            last = last.max(took);
        }
        everywhere.push(last);
    }
    let (bar, everywhere) = (rtt + BAR_BEYOND, spread(&mut everywhere));
    let held = everywhere.p99 <= bar;
    let told = json!({
        "story": "eviction",
        "members": federation.members.len(),
        "rtt_ms": milliseconds(rtt),
        "evictions": evictions,
        "everywhere_ms": everywhere.json(),
        "per_member_ms": spread(&mut members).json(),
        "bar_ms": milliseconds(bar),
        "held": held,
    });
    Ok((held, told))
}

/// Looks at one member until it has shut `victim` out, and says how long after `started` that was. It cannot be before
/// `soonest` has passed: until then nobody bothers the gateway.
async fn shut_out(member: Operator, victim: String, started: Instant, soonest: Duration) -> Result<Duration> {
    sleep(soonest).await;
    loop {
        if member.shuts_out(&victim).await? {
            return Ok(started.elapsed());
        }
        sleep(LOOK).await;
    }
}
