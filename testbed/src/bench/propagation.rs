//! How long a new intention takes from the writer's command until every other member decides by it, over round trips.

use std::time::Duration;

use anyhow::Result;
use federation_model::Snapshot;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::Instant};

use crate::member::Member;

const ROUND_TRIPS_MS: [u64; 3] = [1, 50, 100];
const MEMBERS: usize = 16;
/// Intentions that are measured over each round trip.
const RULES: u32 = 200;
/// Pause between two of them.
const PAUSE: Duration = Duration::from_millis(20);

/// Median and 99th percentile in milliseconds, by round trip; what one round trip and 50 ms would be stands beside it.
pub(crate) async fn measure() -> Result<Value> {
    let mut figures = json!({ "members": MEMBERS, "rules": RULES });
    for rtt in ROUND_TRIPS_MS {
        let mut took = over(Duration::from_millis(rtt)).await?;
        took.sort_unstable();
        let at = |share: usize| took.get(took.len() * share / 100).map_or(0.0, |took| took.as_secs_f64() * 1e3);
        let round = |figure: f64| (figure * 10.0).round() / 10.0;
        figures[format!("rtt_{rtt}_ms")] = json!({ "p50": round(at(50)), "p99": round(at(99)), "bar": rtt + 50 });
    }
    Ok(figures)
}

async fn over(rtt: Duration) -> Result<Vec<Duration>> {
    let mut members = Vec::new();
    for number in 0..MEMBERS {
        members.push(Member::open(&format!("m{number:02}"), rtt / 2).await?);
    }
    if let Some((issuer, joiners)) = members.split_first() {
        for joiner in joiners {
            joiner.join(issuer).await?;
        }
    }
    for member in &members {
        member.until_linked(&members).await?;
        member.until("every member", |held| held.members.len() == MEMBERS).await?;
    }
    let mut took = Vec::new();
    if let Some((writer, others)) = members.split_first() {
        for number in 0..RULES {
            let (wanted, started) = (number as usize + 1, Instant::now());
            let mut waiting = JoinSet::new();
            for other in others {
                let mut snapshots = other.link.snapshot();
                waiting.spawn(async move {
                    let enough = |held: &Snapshot| held.authorizer.len() >= wanted;
                    snapshots.wait_for(|held| held.as_ref().is_some_and(|held| enough(held))).await.map(drop)
                });
            }
            writer.legislate(number, 1).await?;
            while let Some(seen) = waiting.join_next().await {
                seen??;
            }
            took.push(started.elapsed());
            tokio::time::sleep(PAUSE).await;
        }
    }
    for member in &members {
        member.link.shutdown().await;
    }
    Ok(took)
}
