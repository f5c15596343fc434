//! How long a new intention takes from the writer's command until it decides at every other member.

use std::time::Duration;

use anyhow::{Context, Result};
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
/// Pause between two intentions.
const PAUSE: Duration = Duration::from_millis(100);
/// How long one may take at all.
const LIMIT: Duration = Duration::from_secs(60);
/// Allowed beyond one round trip when nothing is lost.
const BAR_BEYOND: Duration = Duration::from_millis(50);
/// Allowed in all when 1 % is lost.
const BAR_WITH_LOSS: Duration = Duration::from_secs(2);

/// Writes `rules` intentions one after the other and says how long each took to be in force everywhere.
pub(crate) async fn tell(
    federation: &Federation,
    rtt: Duration,
    loss: f64,
    rules: usize,
    series: usize,
) -> Result<(bool, Value)> {
    let mut change = distance(rtt);
    change.loss = Some(loss);
    federation.wan.change(&change)?;
    // A session's estimate of the round trip has to meet the new one before anything is measured.
    sleep(5 * rtt.max(Duration::from_millis(200))).await;
    let writer = federation.operators().next().context("no member")?;
    let before = federation.wan.figures();
    let (mut written, mut everywhere, mut members) = (Vec::new(), Vec::new(), Vec::new());
    for rule in 0..rules {
        let source = format!("app{series}-{rule}.shop.{}", writer.cluster);
        let allow = rule % 2 == 0;
        let started = Instant::now();
        let mut looking = JoinSet::new();
        for member in federation.operators().skip(1) {
            let look = in_force(member.clone(), source.clone(), federation.service.clone(), allow, started, rtt / 2);
            looking.spawn(async move { timeout(LIMIT, look).await });
        }
        let action = if allow { "allow" } else { "deny" };
        writer.write(&source, &federation.service, action).await?;
        written.push(started.elapsed());
        let mut last = Duration::ZERO;
        while let Some(seen) = looking.join_next().await {
            let took = seen?.with_context(|| format!("{source} is not in force everywhere within {LIMIT:?}"))??;
            members.push(took);
            last = last.max(took);
        }
        everywhere.push(last);
        sleep(PAUSE).await;
    }
    let bar = if loss > 0.0 { BAR_WITH_LOSS } else { rtt + BAR_BEYOND };
    let (everywhere, after) = (spread(&mut everywhere), federation.wan.figures());
    let held = everywhere.p99 <= bar;
    let told = json!({
        "story": "propagation",
        "members": federation.members.len(),
        "rtt_ms": milliseconds(rtt),
        "loss": loss,
        "rules": rules,
        "everywhere_ms": everywhere.json(),
        "per_member_ms": spread(&mut members).json(),
        "written_ms": spread(&mut written).json(),
        "bar_ms": milliseconds(bar),
        "held": held,
        "packets": after.counts.packets - before.counts.packets,
        "packets_lost": after.counts.lost - before.counts.lost,
        "packets_late": after.late - before.late,
    });
    Ok((held, told))
}

/// Looks at one member until an intention decides the call, and says how long after `started` that was. It cannot be before
/// `soonest` has passed: until then nobody bothers the gateway.
async fn in_force(
    member: Operator,
    source: String,
    service: String,
    allow: bool,
    started: Instant,
    soonest: Duration,
) -> Result<Duration> {
    sleep(soonest).await;
    loop {
        let (rule, allowed) = member.decision(&source, &service).await?;
        if !rule.is_empty() && allowed == allow {
            return Ok(started.elapsed());
        }
        sleep(LOOK).await;
    }
}
