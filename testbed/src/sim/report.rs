//! What a run says of itself: sums over all seeds, and how much of the space of faults they cover.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    Arguments, Outcome, name,
    world::{Figures, NEMESES, TRICKS, World},
};

/// One line for all seeds.
pub(crate) fn summary(arguments: Arguments, outcomes: &[Outcome]) -> Value {
    let total = |figure: fn(&Figures) -> u64| outcomes.iter().map(|outcome| figure(&outcome.figures)).sum::<u64>();
    let failed: Vec<u64> =
        outcomes.iter().filter(|outcome| outcome.broke.is_some()).map(|outcome| outcome.seed).collect();
    let mut times: Vec<u64> = outcomes.iter().map(|outcome| outcome.figures.converged_ms).collect();
    times.sort_unstable();
    let converged = |permille: usize| times.get((times.len() * permille / 1_000).min(times.len().max(1) - 1));
    let plans: Vec<u32> = outcomes.iter().map(|outcome| outcome.figures.nemeses).collect();
    let pairs: BTreeSet<u32> = plans.iter().copied().filter(|plan| plan.count_ones() == 2).collect();
    let alone = NEMESES.iter().enumerate().map(|(at, (name, _))| {
        let worlds = plans.iter().filter(|plan| **plan == 1 << at).count();
        (*name, worlds)
    });
    let tricks = TRICKS.iter().enumerate().map(|(at, (name, _))| {
        let worlds = outcomes.iter().filter(|outcome| outcome.figures.tricks & (1 << at) != 0).count();
        (*name, worlds)
    });
    json!({
        "seeds": arguments.seeds,
        "failed": failed.len(),
        "from": arguments.from,
        "mutation": arguments.mutation.map(name),
        "first_failed": failed.first(),
        "events": total(|figures| figures.events),
        "writes": total(|figures| figures.writes),
        "failed_writes": total(|figures| figures.failed_writes),
        "strikes": total(|figures| figures.strikes),
        "partitions": total(|figures| figures.partitions),
        "crashes": total(|figures| figures.crashes),
        "restores": total(|figures| figures.restores),
        "equivocations": total(|figures| figures.equivocations),
        "evictions": total(|figures| figures.evictions),
        "publications": total(|figures| figures.publications),
        "decisions": total(|figures| figures.decisions),
        "messages": total(|figures| figures.messages),
        "records_sent": total(|figures| figures.records_sent),
        "converged_ms": { "p50": converged(500), "p99": converged(990), "max": converged(1_000) },
        "worlds_alone": alone.collect::<BTreeMap<_, _>>(),
        "pairs": pairs.len(),
        "worlds_crooked": tricks.collect::<BTreeMap<_, _>>(),
    })
}

/// One line for a world of very many.
pub(crate) fn large(world: &World, took: Duration) -> Value {
    let (members, links, records) = world.sizes();
    let figures = &world.figures;
    json!({
        "members": members,
        "links": links,
        "records": records,
        "events": figures.events,
        "messages": figures.messages,
        "records_sent": figures.records_sent,
        "copies_per_record_and_member": figures.records_sent as f64 / (records * members) as f64,
        "bytes": figures.bytes,
        "converged_ms": figures.converged_ms,
        "wall_seconds": took.as_secs_f64(),
    })
}
