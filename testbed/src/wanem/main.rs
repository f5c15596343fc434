//! A WAN between network namespaces: `wanem --schedule FILE --seed N`, as root.
//!
//! Says in one JSON line when it is ready, runs until SIGINT or SIGTERM, removes its namespaces, and says in another line
//! what became of the packets. Same schedule and seed, same fates.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::json;
use testbed::netns::{Schedule, Wan, missing};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(about = "Emulates a WAN between network namespaces `hanse-<cluster>`; needs root")]
struct Arguments {
    /// Clusters, links and events, in TOML.
    #[arg(long, required_unless_present = "check")]
    schedule: Option<PathBuf>,
    /// Luck of the packets.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only says what this machine lacks; exit code 1 if anything.
    #[arg(long)]
    check: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let told = match arguments.schedule {
        Some(path) if !arguments.check => run(&path, arguments.seed).await,
        _ => Ok(check()),
    };
    told.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        ExitCode::FAILURE
    })
}

fn check() -> ExitCode {
    let missing = missing();
    missing.iter().for_each(|what| eprintln!("missing: {what}"));
    println!("{}", json!({ "able": missing.is_empty(), "missing": missing }));
    if missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn run(path: &std::path::Path, seed: u64) -> Result<ExitCode> {
    let schedule = Schedule::load(path)?;
    // Before there is anything to remove.
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let wan = Wan::start(schedule, seed)?;
    let site = |site: &testbed::netns::Site| json!({ "cluster": site.cluster, "namespace": site.namespace, "ipv4": site.ipv4, "ipv6": site.ipv6 });
    println!(
        "{}",
        json!({ "ready": true, "seed": seed, "clusters": wan.sites().iter().map(site).collect::<Vec<_>>() })
    );
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    println!("{}", serde_json::to_string(&wan.stop()?)?);
    Ok(ExitCode::SUCCESS)
}
