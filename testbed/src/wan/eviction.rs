//! How long an eviction takes from the lawmaker's command until every other member has shut the evicted one out.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    federation::{Federation, distance},
    figures::{milliseconds, spread},
    look::Looks,
    member::Operator,
};

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
        let mut looks = Looks::new(rtt / 2);
        for member in &all[1..staying] {
            let victim = victim.cluster.clone();
            looks.at(member, move |member| {
                let victim = victim.clone();
                async move { member.shuts_out(&victim).await }
            });
        }
        lawmaker.evict(&victim.cluster).await?;
        let written = looks.elapsed();
        let took = looks.all().await.with_context(|| format!("{} is not out everywhere", victim.cluster))?;
        everywhere.push(took.iter().copied().fold(written, Duration::max));
        members.extend(took);
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
