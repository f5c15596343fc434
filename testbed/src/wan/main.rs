//! Real gateways over the emulated WAN, measured: `wan propagation`, `wan eviction` and `wan partition`, as root.
//!
//! In: how many members, how far apart, how lossy, how broken. Out: one JSON line per measurement; exit code 1 if one
//! misses its bar, 2 if it could not be made. Never: changes a product's timeouts to make a bar.

mod eviction;
mod federation;
mod figures;
mod look;
mod member;
mod partition;
mod propagation;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use serde_json::Value;
use testbed::{netns::missing, worlds::World};
use tokio::signal::unix::{SignalKind, signal};

use crate::{federation::Federation, partition::Kind};

/// Time for everything but the partitions themselves.
const LIMIT: Duration = Duration::from_secs(3_600);

#[derive(Parser)]
#[command(about = "Measures real gateways over an emulated WAN; needs root, and `hanse` built beside it")]
struct Arguments {
    #[command(subcommand)]
    story: Story,
}

#[derive(Subcommand)]
enum Story {
    /// How long a new intention takes to be in force everywhere, for every distance and loss.
    Propagation {
        #[command(flatten)]
        common: Common,
        /// Shares of packets that are lost.
        #[arg(long, value_delimiter = ',', default_value = "0")]
        loss: Vec<f64>,
        /// Intentions per measurement.
        #[arg(long, default_value_t = 50)]
        rules: usize,
    },
    /// How long an eviction takes until every other member has shut the evicted one out, for every distance.
    Eviction {
        #[command(flatten)]
        common: Common,
        /// Members that are put out, one after the other.
        #[arg(long, default_value_t = 5)]
        evictions: usize,
    },
    /// How long members take to agree after a partition, for every distance and kind.
    Partition {
        #[command(flatten)]
        common: Common,
        #[arg(long, value_enum, value_delimiter = ',', default_value = "full,one-way,hole")]
        kind: Vec<Kind>,
        /// Length of the partition.
        #[arg(long, default_value_t = 20)]
        seconds: u64,
    },
}

#[derive(Args)]
struct Common {
    #[arg(long, default_value_t = 4)]
    members: usize,
    /// Round trips between every two members.
    #[arg(long, value_delimiter = ',', default_value = "100ms", value_parser = humantime::parse_duration)]
    rtt: Vec<Duration>,
    /// Luck of the packets.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What the gateways log.
    #[arg(long, default_value = "info")]
    log: String,
    /// Folder to which their logs are copied at the end.
    #[arg(long)]
    keep_logs: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let missing = missing();
    if !missing.is_empty() {
        missing.iter().for_each(|what| eprintln!("missing: {what}"));
        return ExitCode::from(2);
    }
    match run(arguments.story).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

/// Tells the story, unless somebody ends it; either way every process and namespace is gone afterwards.
async fn run(story: Story) -> Result<bool> {
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut held = true;
    let told = World::tell(LIMIT + story.partitions(), async |world| {
        tokio::select! {
            told = tell(world, &story, &mut held) => told,
            _ = interrupt.recv() => anyhow::bail!("interrupted"),
            _ = terminate.recv() => anyhow::bail!("terminated"),
        }
    });
    told.await.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
    Ok(held)
}

impl Story {
    fn common(&self) -> &Common {
        match self {
            Self::Propagation { common, .. } | Self::Eviction { common, .. } | Self::Partition { common, .. } => common,
        }
    }

    /// Time that passes behind cuts.
    fn partitions(&self) -> Duration {
        match self {
            Self::Propagation { .. } | Self::Eviction { .. } => Duration::ZERO,
            Self::Partition { common, kind, seconds } => Duration::from_secs(*seconds)
                .saturating_mul(u32::try_from(kind.len() * common.rtt.len()).unwrap_or(u32::MAX)),
        }
    }
}

async fn tell(world: &World, story: &Story, held: &mut bool) -> Result<()> {
    let common = story.common();
    let rtt = common.rtt.first().copied().unwrap_or_default();
    let federation = Federation::start(world, common.members, rtt, common.seed, &common.log).await?;
    let told = measure(&federation, story, held).await;
    if let Some(folder) = &common.keep_logs {
        federation.keep_logs(folder)?;
    }
    told
}

async fn measure(federation: &Federation, story: &Story, held: &mut bool) -> Result<()> {
    let mut series = 0;
    let mut say = |(this, told): (bool, Value)| {
        println!("{told}");
        *held &= this;
        series += 1;
        series
    };
    let mut number = 0;
    for &rtt in &story.common().rtt {
        match story {
            Story::Propagation { loss, rules, .. } => {
                for &loss in loss {
                    number = say(propagation::tell(federation, rtt, loss, *rules, number).await?);
                }
            }
            Story::Eviction { evictions, .. } => {
                number = say(eviction::tell(federation, rtt, *evictions, number).await?);
            }
            Story::Partition { kind, seconds, .. } => {
                federation.wan.change(&federation::distance(rtt))?;
                for &kind in kind {
                    let length = Duration::from_secs(*seconds);
                    number = say(partition::tell(federation, kind, rtt, length, number).await?);
                }
            }
        }
    }
    Ok(())
}
