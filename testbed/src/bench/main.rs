//! Measures what the figures of the documentation claim: `bench federation --json FILE`.
//!
//! In: the name of a part. Out: one JSON object, on stdout and in FILE. Never: judges a figure; whoever reads it does.

#![allow(clippy::result_large_err, reason = "an error ends the program, and is made once")]

mod federation;
mod member;
mod path;
mod propagation;
mod sync;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};

const USAGE: &str = "usage: bench federation [--json FILE]";

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
    let mut file: Option<PathBuf> = None;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--json" => file = Some(arguments.next().context("--json needs a file")?.into()),
            other => bail!("argument {other:?} is not known"),
        }
    }
    let figures = match part.as_str() {
        "federation" => {
            let mut figures = federation::measure()?;
            let runtime = tokio::runtime::Runtime::new()?;
            figures["cold_sync_s"] = runtime.block_on(sync::measure())?;
            figures["propagation_ms"] = runtime.block_on(propagation::measure())?;
            figures
        }
        other => bail!("part {other:?} is not known"),
    };
    let text = serde_json::to_string_pretty(&figures)?;
    println!("{text}");
    if let Some(file) = file {
        std::fs::write(&file, text + "\n").with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}
