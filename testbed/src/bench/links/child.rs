//! The children: a hub, which is a whole link with its store on disk, and a crowd of its members.
//!
//! In: lines of one word. Out: a line of JSON for each. Never: outlives its parent: the end of its input ends it.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use federation_link::{
    Link, LinkState,
    crowd::{Cast, Crowd},
};
use federation_model::{
    Action, Audience, Body, DestinationPattern, Intention, IntentionKey, Label, Layer, RecordId, RuleState,
    SourcePattern, Timestamp,
};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

/// `CAST STORE ADDRESS`.
pub(crate) async fn hub(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let mut argument = || arguments.next().context("an argument is missing");
    let (cast, folder) = (Cast::read(argument()?.as_ref())?, PathBuf::from(argument()?));
    let address = argument()?.parse().context("the address")?;
    let fresh = !folder.exists();
    let store = federation_store::open_sled(&folder, [7; 32]).await?;
    if fresh {
        cast.fill(store.as_ref()).await?;
    }
    let options = cast.options(store, address)?;
    drop(cast);
    let (link, mut incoming) = Link::open(options).await?;
    tokio::spawn(async move { while incoming.events.recv().await.is_some() {} });
    let (mut rules, mut last) = (0, None);
    serve(async |word| {
        Ok(match word {
            "links" => {
                let links = link.statuses();
                let up = links.iter().filter(|link| link.state == LinkState::Up).count();
                let sessions: usize = links.iter().map(|link| link.sessions).sum();
                json!({ "up": up, "sessions": sessions })
            }
            "write" => {
                rules += 1;
                let at = now().as_millis();
                last = Some(write(&link, rules).await?);
                json!({ "at": at })
            }
            "enforced" => {
                let record = last.as_ref().context("nothing was written")?;
                json!({ "by": link.enforcement(record).by.len() })
            }
            other => bail!("{other:?} is not known"),
        })
    })
    .await
}

fn now() -> Timestamp {
    federation_identity::now()
}

async fn write(link: &Link, number: u32) -> Result<RecordId> {
    let key = IntentionKey {
        source: SourcePattern::Account {
            account: Label::Is(format!("account-{number}-{}", now().as_millis()).parse().map_err(anyhow::Error::msg)?),
            namespace: Label::Is("default".parse().map_err(anyhow::Error::msg)?),
            cluster: Label::Any,
        },
        destination: DestinationPattern { service: Label::Any, namespace: Label::Any, cluster: Label::Any },
        layer: Layer::Rule,
    };
    let body = Body::Intention(Intention { key, state: RuleState::Is(Action::Allow) });
    Ok(link.write(Audience::Law, body, "bench".into()).await?)
}

/// `CAST ADDRESS`.
pub(crate) async fn crowd(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let mut argument = || arguments.next().context("an argument is missing");
    let cast = Cast::read(argument()?.as_ref())?;
    let address = argument()?.parse().context("the address")?;
    let mut crowd: Option<Crowd> = None;
    serve(async |word| {
        Ok(match word {
            "dial" => {
                crowd = Some(Crowd::start(&cast, address)?);
                json!({})
            }
            "seen" => crowd.as_ref().map_or(json!({ "up": 0 }), figures),
            other => bail!("{other:?} is not known"),
        })
    })
    .await
}

fn figures(crowd: &Crowd) -> Value {
    let mut seen = crowd.seen();
    seen.round_trips.sort_unstable();
    let at = |per_mille: usize| {
        let trips = &seen.round_trips;
        trips.get(trips.len() * per_mille / 1_000).map(|trip| (trip.as_secs_f64() * 1e5).round() / 100.0)
    };
    json!({
        "up": seen.up, "sessions": seen.sessions, "failures": seen.failures, "receipts": seen.receipts,
        "heartbeats": seen.round_trips.len(), "arrivals": seen.arrivals,
        "heartbeat_ms": { "p50": at(500), "p99": at(990), "worst": seen.round_trips.last().map(|_| at(999)) },
    })
}

/// Says that it is ready, then answers each line.
async fn serve(mut answer: impl AsyncFnMut(&str) -> Result<Value>) -> Result<()> {
    println!("{}", json!({ "ready": true }));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        println!("{}", answer(line.trim()).await?);
    }
    Ok(())
}
