//! How long a new intention takes from the writer's command until it decides at every other member.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    federation::{Federation, distance},
    figures::{milliseconds, spread},
    look::Looks,
};

/// Pause between two intentions.
const PAUSE: Duration = Duration::from_millis(100);
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
        let mut looks = Looks::new(rtt / 2);
        for member in federation.operators().skip(1) {
            let (source, service) = (source.clone(), federation.service.clone());
            looks.at(member, move |member| {
                let (source, service) = (source.clone(), service.clone());
                async move {
                    let (rule, allowed) = member.decision(&source, &service).await?;
                    Ok(!rule.is_empty() && allowed == allow)
                }
            });
        }
        let action = if allow { "allow" } else { "deny" };
        writer.write(&source, &federation.service, action).await?;
        written.push(looks.elapsed());
        let took = looks.all().await.with_context(|| format!("{source} is not in force everywhere"))?;
        everywhere.extend(took.iter().max());
        members.extend(took);
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
