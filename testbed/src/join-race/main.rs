//! `join-race`: races for join tokens against a real gateway, without and with kill -9 of its edge. Exits with 1 if a
//! token ever had another number of winners than one.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use testbed::{
    race::{self, Race},
    worlds::{Cluster, Plan, World},
};

/// Many clusters redeem one token at once, again and again.
#[derive(Parser)]
struct Arguments {
    /// Tokens, one after another
    #[arg(long, default_value_t = 1_000)]
    tokens: usize,
    /// Clusters that redeem each
    #[arg(long, default_value_t = 64)]
    redeemers: usize,
    /// Kill the issuer's edge once in each round
    #[arg(long)]
    kill: bool,
    /// What decides when
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { tokens, redeemers, kill, seed } = Arguments::parse();
    let started = tokio::time::Instant::now();
    let told = World::tell(Duration::from_secs(3600), async |world| {
        let mut east = Cluster::start(world, Plan::new("east").inbound()).await?;
        let report = race::run(&mut east, Race { tokens, redeemers, kill, seed }).await?;
        println!(
            "{} tokens with one winner of {redeemers} each, {} too late, {} killed between use and answer, {:.0} s",
            report.rounds,
            report.too_late,
            report.killed_before_the_answer,
            started.elapsed().as_secs_f64()
        );
        Ok(())
    });
    match told.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure:?}");
            ExitCode::FAILURE
        }
    }
}
