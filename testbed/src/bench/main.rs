//! Measures what the figures of the documentation claim: `bench federation|links|rotation --json FILE`.
//!
//! In: the name of a part. Out: one JSON object, on stdout and in FILE. Never: judges a figure; whoever reads it does.

#![allow(clippy::result_large_err, reason = "an error ends the program, and is made once")]

mod federation;
mod links;
mod member;
mod path;
mod propagation;
mod rotation;
mod sync;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use tokio::runtime::Runtime;

const USAGE: &str = "usage: bench federation [--json FILE]\n       bench links [--members N] [--idle SECONDS] [--json FILE]\n       \
     bench rotation [--rate REQUESTS_A_SECOND] [--json FILE]";
/// Members of `links`, unless others are asked for.
const MEMBERS: usize = 2_000;
/// How long links idle, unless something else is asked for.
const IDLE: Duration = Duration::from_secs(60);
/// Requests a second while keys are rotated, unless others are asked for.
const RATE: usize = 2_000;

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}\n{USAGE}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let part = arguments.next().context("no part to measure is named")?;
    match part.as_str() {
        "links-hub" => return Runtime::new()?.block_on(links::hub(arguments)),
        "links-crowd" => return Runtime::new()?.block_on(links::crowd(arguments)),
        _ => {}
    }
    let mut file: Option<PathBuf> = None;
    let mut plan = links::Plan { members: MEMBERS, idle: IDLE };
    let mut rate = RATE;
    while let Some(argument) = arguments.next() {
        let mut number = || {
            arguments.next().with_context(|| format!("{argument} needs a number"))?.parse().context(argument.clone())
        };
        match argument.as_str() {
            "--json" => file = Some(arguments.next().context("--json needs a file")?.into()),
            "--members" => plan.members = number()?,
            "--rate" => rate = number()?,
            "--idle" => plan.idle = Duration::from_secs(number()? as u64),
            other => bail!("argument {other:?} is not known"),
        }
    }
    let figures = match part.as_str() {
        "federation" => {
            let mut figures = federation::measure()?;
            let runtime = Runtime::new()?;
            figures["cold_sync_s"] = runtime.block_on(sync::measure())?;
            figures["propagation_ms"] = runtime.block_on(propagation::measure())?;
            figures
        }
        "rotation" => Runtime::new()?.block_on(rotation::measure(u32::try_from(rate)?))?,
        "links" => Runtime::new()?.block_on(links::measure(&plan))?,
        other => bail!("part {other:?} is not known"),
    };
    let text = serde_json::to_string_pretty(&figures)?;
    println!("{text}");
    if let Some(file) = file {
        std::fs::write(&file, text + "\n").with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}
