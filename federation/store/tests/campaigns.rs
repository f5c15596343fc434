//! Small versions of the campaigns of `store-crash`; the long ones run it with other numbers.
//!
//! `HANSE_SEED=N` repeats a run with its numbers; the instant of a kill is never quite the same.

#![cfg(feature = "sled")]

use std::process::Command;

fn run(verb: &str, count: &str) -> String {
    let seed = std::env::var("HANSE_SEED").unwrap_or_else(|_| "1".to_owned());
    let scratch = tempfile::tempdir().expect("temporary directory");
    let output = Command::new(env!("CARGO_BIN_EXE_store-crash"))
        .args([verb, count, "--seed", &seed, "--dir"])
        .arg(scratch.path().join("campaign"))
        .output()
        .expect("store-crash runs");
    let (said, problems) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("seed {seed}: {said}");
    assert!(output.status.success(), "seed {seed}: {said}{problems}");
    said.into_owned()
}

#[test]
fn no_acknowledged_write_is_lost_in_forty_kills() {
    let said = run("--cycles", "40");
    assert!(said.contains("\"cycles\":40") && said.contains("\"lost\":0,\"failed_opens\":0,\"damaged\":0"), "{said}");
    assert!(said.contains("\"kills_early\":20"), "{said}");
    assert!(!said.contains("\"acked\":0,"), "nothing was written between the kills: {said}");
}

#[test]
fn no_damage_goes_unseen() {
    let said = run("--damage", "20");
    assert!(said.contains("\"silent\":0,\"panicked\":0,\"hung\":0"), "{said}");
}
