//! This version beside the one before it: `skew interop PREVIOUS` and `skew rolling PREVIOUS [REQUESTS_A_SECOND]`.
//!
//! In: the executable of the version before. Out: a line for each thing that both do together, exit code 0 if all do.
//! `.ci/campaign skew` and `.ci/campaign upgrade` build the executable and call this.

mod interop;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use testbed::{
    upgrade::{Rate, rolling},
    worlds::{World, hanse},
};

const USAGE: &str = "usage: skew interop PREVIOUS | skew rolling PREVIOUS [REQUESTS_A_SECOND]";
/// How long one world may take.
const LIMIT: Duration = Duration::from_secs(600);
/// Time between two requests of each client.
const PACE: Duration = Duration::from_millis(100);

#[tokio::main]
async fn main() -> ExitCode {
    match run(std::env::args().skip(1)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}\n{USAGE}");
            ExitCode::FAILURE
        }
    }
}

async fn run(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let part = arguments.next().context("no part is named")?;
    let previous: PathBuf = arguments.next().context("no executable of the version before is named")?.into();
    ensure!(previous.is_file(), "{} is no executable", previous.display());
    let told = |failure| anyhow::anyhow!("{failure:?}");
    let (this, before) = (hanse(), previous.as_path());
    match part.as_str() {
        "interop" => {
            for (issuer, joiner) in [(this, before), (before, this)] {
                World::tell(LIMIT, async |world| interop::story(world, issuer, joiner).await).await.map_err(told)?;
            }
            World::tell(LIMIT, async |world| interop::store(world, before, this).await).await.map_err(told)
        }
        "rolling" => {
            let rate: u32 = arguments.next().as_deref().unwrap_or("200").parse().context("requests a second")?;
            let clients = rate / 10;
            // A new connection costs four processes a handshake: a twentieth of the load is of that kind.
            let anew = (clients / 20).max(1);
            let rate = Rate { keeping: clients - anew, anew, pace: PACE };
            World::tell(LIMIT, async |world| {
                let order = [before, this, this, before];
                let report = rolling(world, this, &order, rate).await?;
                println!("{report}");
                // The version before may not know how to go in good order, nor to wait: what fails with it is shown above.
                let round = report.replaced.len() / (order.len() - 1);
                let ours = report.replaced.iter().skip(round).take(round);
                let failed: usize = ours.map(|step| report.failed_during(step)).sum();
                ensure!(failed == 0, "{failed} requests failed where this version followed itself");
                Ok(())
            })
            .await
            .map_err(told)
        }
        other => bail!("part {other:?} is not known"),
    }
}
