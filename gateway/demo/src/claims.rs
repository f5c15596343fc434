//! What the demo claims, and whether each claim held.

use std::{io::IsTerminal, time::Duration};

use anyhow::Result;
use serde::Serialize;
use tokio::time::Instant;

/// One claim and its outcome: the shape of `--once -o json`.
#[derive(Debug, Clone, Serialize)]
pub struct Claim {
    pub claim: &'static str,
    pub ok: bool,
    pub detail: String,
    pub ms: u64,
}

/// Tells the story as it goes (on standard error) and keeps the claims.
pub(crate) struct Teller {
    claims: Vec<Claim>,
    colour: bool,
    quiet: bool,
    start: Instant,
}

impl Teller {
    pub(crate) fn new(quiet: bool) -> Self {
        let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { claims: Vec::new(), colour, quiet, start: Instant::now() }
    }

    /// One sentence of what happens now.
    pub(crate) fn say(&self, sentence: &str) {
        if !self.quiet {
            eprintln!("{} {sentence}", self.paint("2", &format!("{:6.2}s", self.start.elapsed().as_secs_f64())));
        }
    }

    /// Notes how the steps of one claim went.
    pub(crate) fn note(&mut self, claim: &'static str, took: Duration, outcome: Result<String>) {
        let ok = outcome.is_ok();
        let detail = outcome.unwrap_or_else(|error| format!("{error:#}"));
        let mark = if ok { self.paint("32", "ok  ") } else { self.paint("31", "FAIL") };
        self.say(&format!("{mark} {} {detail}", self.paint("1", claim)));
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.claims.push(Claim { claim, ok, detail, ms });
    }

    /// Whether any claim did not hold so far.
    pub(crate) fn failed(&self) -> bool {
        self.claims.iter().any(|claim| !claim.ok)
    }

    pub(crate) fn into_claims(self) -> Vec<Claim> {
        self.claims
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// Prints the claims as a table on standard output.
pub(crate) fn print_table(claims: &[Claim]) {
    let width = claims.iter().map(|claim| claim.claim.len()).max().unwrap_or_default();
    for claim in claims {
        let mark = if claim.ok { "ok  " } else { "FAIL" };
        println!("{mark}  {:width$}  {:>6} ms  {}", claim.claim, claim.ms, claim.detail);
    }
    let held = claims.iter().filter(|claim| claim.ok).count();
    println!("{held} of {} claims held", claims.len());
}
