//! Simulates federations of replicas: `sim --seeds 500 [--from K] [--mutation NAME | --mutations]`, or one
//! world of very many members: `sim --members 1000`.
//!
//! In: seeds. Out: one JSON line on stdout; for a failure the seed, what broke and the trace of events on stderr, and
//! exit code 1. Never: reads a clock (but to say how long it took) or a socket; one seed always tells the same story.

mod checks;
mod node;
mod report;
#[cfg(test)]
mod tests;
mod workload;
mod world;

use std::{
    panic::catch_unwind,
    process::ExitCode,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use anyhow::{Context, Result, bail};
use federation_model::Mutation;

use crate::world::{Options, World};

/// Most lines of a trace that are printed, the last ones.
const TRACE_LINES_MAX: usize = 400;

const USAGE: &str = "usage: sim [--seeds N] [--from K] [--mutation NAME | --mutations] | sim --members N [--from K]";

/// Every planted fault by its name.
const MUTATIONS: [(&str, Mutation); 13] = [
    ("accept-gap", Mutation::AcceptGap),
    ("send-before-persist", Mutation::SendBeforePersist),
    ("persist-first", Mutation::PersistFirst),
    ("ignore-fork", Mutation::IgnoreFork),
    ("resurrect-void", Mutation::ResurrectVoid),
    ("skip-publish", Mutation::SkipPublish),
    ("forget-floor", Mutation::ForgetFloor),
    ("ignore-doubt", Mutation::IgnoreDoubt),
    ("relay-private-log", Mutation::RelayPrivateLog),
    ("skip-anti-entropy", Mutation::SkipAntiEntropy),
    ("forget-tombstone", Mutation::ForgetTombstone),
    ("accept-lower-bundle", Mutation::AcceptLowerBundle),
    ("replace-anyones", Mutation::ReplaceAnyones),
];

#[derive(Clone, Copy)]
struct Arguments {
    seeds: u64,
    from: u64,
    mutation: Option<Mutation>,
    /// Looks for every planted fault, each until the first seed that finds it.
    mutations: bool,
    /// One world of so many, in place of many small ones.
    members: Option<usize>,
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
    let good = if let Some(members) = arguments.members {
        hold_large(members, arguments.from)
    } else if arguments.mutations {
        find_all(arguments)
    } else {
        hold(arguments)
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Arguments> {
    let mut parsed = Arguments { seeds: 100, from: 0, mutation: None, mutations: false, members: None };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--seeds" => parsed.seeds = value()?.parse().context("--seeds is a number")?,
            "--from" => parsed.from = value()?.parse().context("--from is a number")?,
            "--mutation" => parsed.mutation = Some(mutation(&value()?)?),
            "--members" => parsed.members = Some(value()?.parse().context("--members is a number")?),
            "--mutations" => parsed.mutations = true,
            other => bail!("unknown argument {other:?}"),
        }
    }
    if parsed.mutations && parsed.mutation.is_some() {
        bail!("--mutation and --mutations exclude each other");
    }
    Ok(parsed)
}

fn mutation(text: &str) -> Result<Mutation> {
    let found = MUTATIONS.into_iter().find(|(name, _)| *name == text);
    let names = || MUTATIONS.map(|(name, _)| name).join(", ");
    found.map(|(_, mutation)| mutation).with_context(|| format!("unknown mutation {text:?}, known are {}", names()))
}

fn name(mutation: Mutation) -> &'static str {
    MUTATIONS.into_iter().find(|(_, known)| *known == mutation).map_or("unknown", |(name, _)| name)
}

/// Runs every seed and says which broke; whether none did.
fn hold(arguments: Arguments) -> bool {
    let outcomes = run(arguments, false);
    let failed: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.broke.is_some()).collect();
    for outcome in &failed {
        eprintln!("seed {}: {}", outcome.seed, outcome.broke.as_deref().unwrap_or_default());
    }
    if let Some(first) = failed.first() {
        print_trace(first.seed, arguments.mutation);
    }
    println!("{}", report::summary(arguments, &outcomes));
    failed.is_empty()
}

/// Runs one world of very many; whether it held.
fn hold_large(members: usize, seed: u64) -> bool {
    let started = tokio::time::Instant::now();
    let mut world = World::large(members, seed);
    let told = world.run_large();
    if let Err(error) = &told {
        eprintln!("{members} members, seed {seed}: {error:#}");
    }
    println!("{}", report::large(&world, started.elapsed()));
    told.is_ok()
}

/// Runs the seeds with each planted fault until one finds it; whether all were found.
fn find_all(arguments: Arguments) -> bool {
    let mut all = true;
    let mut found = serde_json::Map::new();
    for (name, mutation) in MUTATIONS {
        let outcomes = run(Arguments { mutation: Some(mutation), ..arguments }, true);
        let first = outcomes.iter().find_map(|outcome| Some((outcome.seed, outcome.broke.as_deref()?)));
        match first {
            Some((seed, broke)) => eprintln!("{name}: found by seed {seed}: {broke}"),
            None => eprintln!("{name}: not found by {} seeds", arguments.seeds),
        }
        all &= first.is_some();
        found.insert(name.to_owned(), first.map(|(seed, _)| seed).into());
    }
    let (seeds, from) = (arguments.seeds, arguments.from);
    println!("{}", serde_json::json!({ "seeds": seeds, "from": from, "found": found }));
    all
}

/// Runs every seed, or until one fails, on as many threads as there are cores; the outcomes are in order of seed.
fn run(arguments: Arguments, until_found: bool) -> Vec<Outcome> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU64::new(arguments.from);
    let found = AtomicBool::new(false);
    let end = arguments.from.saturating_add(arguments.seeds);
    let mut outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let work = || {
            let mut outcomes = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= end || (until_found && found.load(Ordering::Relaxed)) {
                    return outcomes;
                }
                let outcome = simulate(seed, arguments.mutation);
                found.fetch_or(outcome.broke.is_some(), Ordering::Relaxed);
                outcomes.push(outcome);
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
