//! Kills, damages and measures the store on disk, and says what came of it in one JSON line.
//!
//! ```text
//! store-crash --cycles 2000 [--seed N]   kill -9 at any instant, half of them within 50 ms of the start
//! store-crash --damage 1000 [--seed N]   bit flips, truncations, and a fifth as many zeroed pages
//! store-crash --bench                    latency and throughput of applies
//! ```
//!
//! Exit code 1 when an acknowledged write was lost, a store did not open, or damage went unseen. `--dir` says where
//! to work (default: a new directory in the system's temporary one, removed when all went well).

mod bench;
mod damage;
mod kill;
mod world;

use std::{path::PathBuf, process::ExitCode};

/// What stands behind the verb.
struct Options {
    count: u64,
    seed: u64,
    directory: PathBuf,
    /// Of the child: which start this is.
    start: u64,
}

fn main() -> ExitCode {
    let (verb, options) = match parse(std::env::args().skip(1)) {
        Ok(parsed) => parsed,
        Err(problem) => {
            eprintln!("{problem}\nusage: store-crash --cycles N | --damage N | --bench [--seed N] [--dir D]");
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        match verb.as_str() {
            "--cycles" => kill::campaign(&options).await,
            "--damage" => damage::campaign(&options).await,
            "--bench" => bench::run(&options).await,
            "child" => kill::child(&options).await,
            _ => damage::inspect(&options).await,
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<(String, Options), String> {
    let mut verb = None;
    let mut options = Options {
        count: 0,
        seed: 1,
        directory: std::env::temp_dir().join(format!("store-crash-{}", std::process::id())),
        start: 0,
    };
    let number = |argument: Option<String>| {
        argument.and_then(|text| text.parse().ok()).ok_or_else(|| "a number is missing".to_owned())
    };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--cycles" | "--damage" => {
                options.count = number(arguments.next())?;
                verb = Some(argument);
            }
            "--bench" | "child" | "inspect" => verb = Some(argument),
            "--seed" => options.seed = number(arguments.next())?,
            "--start" => options.start = number(arguments.next())?,
            "--dir" => options.directory = arguments.next().ok_or("a directory is missing")?.into(),
            other => return Err(format!("unknown argument {other:?}")),
        }
    }
    Ok((verb.ok_or("nothing to do")?, options))
}
