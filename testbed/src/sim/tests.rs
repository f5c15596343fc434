//! A few seeds of each kind; the long run is `cargo run --release -p testbed --bin sim -- --seeds 500`.

use super::*;

fn failures(from: u64, seeds: u64, mutation: Option<Mutation>) -> Vec<(u64, String)> {
    let outcomes = run(&Arguments { seeds, from, mutation });
    assert_eq!(outcomes.len() as u64, seeds, "every seed was run");
    outcomes.into_iter().filter_map(|outcome| Some((outcome.seed, outcome.broke?))).collect()
}

#[test]
fn thirty_seeds_hold() {
    assert_eq!(failures(0, 30, None), vec![]);
}

#[test]
fn every_planted_fault_is_found() {
    for (name, mutation) in MUTATIONS {
        let mut found = None;
        for from in (0..200).step_by(10) {
            found = failures(from, 10, Some(mutation)).into_iter().next();
            if found.is_some() {
                break;
            }
        }
        let (seed, broke) = found.unwrap_or_else(|| panic!("{name} was not found within 200 seeds"));
        eprintln!("{name}: seed {seed}: {broke}");
    }
}

#[test]
fn one_seed_always_tells_the_same_story() {
    let story = || {
        let mut world = World::new(Options { seed: 7, mutation: None, trace: true });
        world.run().expect("seed 7 holds");
        world.trace
    };
    let first = story();
    assert!(first.len() > 100);
    assert_eq!(first, story());
}

#[test]
fn bad_arguments_are_refused() {
    let parse = |line: &str| parse(line.split_whitespace().map(str::to_owned));
    for bad in ["--seeds", "--seeds x", "--from -1", "--mutation nothing", "500", "--seed 3"] {
        assert!(parse(bad).is_err(), "{bad}");
    }
    let parsed = parse("--seeds 500 --from 3 --mutation accept-gap").expect("good arguments");
    assert_eq!((parsed.seeds, parsed.from, parsed.mutation), (500, 3, Some(Mutation::AcceptGap)));
}
