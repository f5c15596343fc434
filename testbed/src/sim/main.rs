//! Simulates federations of replicas: `sim --seeds 500 [--from K] [--mutation NAME]`.
//!
//! In: seeds. Out: one JSON line on stdout; for a failure the seed, what broke and the trace of events on stderr, and
//! exit code 1. Never: reads a clock or a socket; one seed always tells the same story.

mod checks;
mod node;
#[cfg(test)]
mod tests;
mod workload;
mod world;

use std::{
    panic::catch_unwind,
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context, Result, bail};
use federation_model::Mutation;
use serde_json::json;

use crate::world::{Options, World};

/// Most lines of a trace that are printed, the last ones.
const TRACE_LINES_MAX: usize = 400;

const USAGE: &str = "usage: sim [--seeds N] [--from K] [--mutation accept-gap|send-before-persist|ignore-fork]";

struct Arguments {
    seeds: u64,
    from: u64,
    mutation: Option<Mutation>,
}

/// How one seed ended.
struct Outcome {
    seed: u64,
    /// `None` if nothing broke.
    broke: Option<String>,
    figures: world::Figures,
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error:#}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let outcomes = run(&arguments);
    let failed: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.broke.is_some()).collect();
    for outcome in &failed {
        eprintln!("seed {}: {}", outcome.seed, outcome.broke.as_deref().unwrap_or_default());
    }
    if let Some(first) = failed.first() {
        print_trace(first.seed, arguments.mutation);
    }
    let total =
        |figure: fn(&world::Figures) -> u64| outcomes.iter().map(|outcome| figure(&outcome.figures)).sum::<u64>();
    let summary = json!({
        "seeds": arguments.seeds,
        "failed": failed.len(),
        "from": arguments.from,
        "mutation": arguments.mutation.map(name),
        "first_failed": failed.first().map(|outcome| outcome.seed),
        "events": total(|figures| figures.events),
        "writes": total(|figures| figures.writes),
        "crashes": total(|figures| figures.crashes),
        "restores": total(|figures| figures.restores),
        "partitions": total(|figures| figures.partitions),
        "equivocations": total(|figures| figures.equivocations),
        "decisions": total(|figures| figures.decisions),
    });
    println!("{summary}");
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Arguments> {
    let mut parsed = Arguments { seeds: 100, from: 0, mutation: None };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--seeds" => parsed.seeds = value()?.parse().context("--seeds is a number")?,
            "--from" => parsed.from = value()?.parse().context("--from is a number")?,
            "--mutation" => parsed.mutation = Some(mutation(&value()?)?),
            other => bail!("unknown argument {other:?}"),
        }
    }
    Ok(parsed)
}

const MUTATIONS: [(&str, Mutation); 3] = [
    ("accept-gap", Mutation::AcceptGap),
    ("send-before-persist", Mutation::SendBeforePersist),
    ("ignore-fork", Mutation::IgnoreFork),
];

fn mutation(text: &str) -> Result<Mutation> {
    let found = MUTATIONS.into_iter().find(|(name, _)| *name == text);
    found.map(|(_, mutation)| mutation).with_context(|| format!("unknown mutation {text:?}"))
}

fn name(mutation: Mutation) -> &'static str {
    MUTATIONS.into_iter().find(|(_, known)| *known == mutation).map_or("unknown", |(name, _)| name)
}

/// Runs every seed, on as many threads as there are cores; the outcomes are in order of seed.
fn run(arguments: &Arguments) -> Vec<Outcome> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU64::new(arguments.from);
    let end = arguments.from.saturating_add(arguments.seeds);
    let mut outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let work = || {
            let mut outcomes = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= end {
                    return outcomes;
                }
                outcomes.push(simulate(seed, arguments.mutation));
            }
        };
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        handles.into_iter().flat_map(|handle| handle.join().unwrap_or_default()).collect()
    });
    outcomes.sort_by_key(|outcome| outcome.seed);
    outcomes
}

fn simulate(seed: u64, mutation: Option<Mutation>) -> Outcome {
    let told = catch_unwind(|| {
        let mut world = World::new(Options { seed, mutation, trace: false });
        let broke = world.run().err().map(|error| format!("{error:#}"));
        (broke, world.figures)
    });
    match told {
        Ok((broke, figures)) => Outcome { seed, broke, figures },
        Err(_) => Outcome { seed, broke: Some("panicked".to_owned()), figures: world::Figures::default() },
    }
}

/// Tells the story of a failed seed once more, this time aloud.
fn print_trace(seed: u64, mutation: Option<Mutation>) {
    let trace = catch_unwind(|| {
        let mut world = World::new(Options { seed, mutation, trace: true });
        // What broke was printed already; the trace is what is wanted now.
        let _ = world.run();
        world.trace
    });
    let trace = trace.unwrap_or_default();
    eprintln!("trace of seed {seed} (last {TRACE_LINES_MAX} of {} events):", trace.len());
    trace.iter().skip(trace.len().saturating_sub(TRACE_LINES_MAX)).for_each(|line| eprintln!("  {line}"));
}
