//! Every process of two clusters replaced under load, one after the other, as an operator would.
//!
//! In: the executables that follow each other, and how much load. Out: what the clients saw, and how long each process was
//! away. Never: sleeps in the hope that something happened.

use std::{fmt, path::Path, time::Duration};

use anyhow::{Result, ensure};
use tokio::time::Instant;

use crate::worlds::{Answered, CONVERGE, Cluster, HttpApp, Load, Plan, Seen, Workload, World, link, until};

const PAYMENTS: &str = "payments.billing.west.mesh.internal";
const PORT: u16 = 8080;
/// Requests that are answered before, between and after the replacements.
const QUIET: usize = 300;

/// What waited for a process that came back is over so long after.
const AFTERMATH: Duration = Duration::from_secs(2);

/// How much load there is.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Clients that keep their connection.
    pub keeping: u32,
    /// Clients that open one for each request.
    pub anew: u32,
    /// Time between two requests of each client.
    pub pace: Duration,
}

/// One process that was replaced.
#[derive(Clone, Debug)]
pub struct Replaced {
    pub what: String,
    /// From SIGTERM until the old one had ended: it waits for what is under way.
    pub ending: Duration,
    /// From the start of the new one until it answered.
    pub starting: Duration,
    from: Instant,
    to: Instant,
}

/// What there was to see.
#[derive(Debug)]
pub struct Report {
    pub seen: Seen,
    pub replaced: Vec<Replaced>,
    pub lasted: Duration,
}

/// Lets web in east call payments in west by HTTP, and replaces the sidecars and the gateways by each further one of
/// `executables`, in the order that the operator's guide gives. The listener of web's sidecar is held by this process, as
/// systemd holds one (`ListenStream=`), and `calling` is what runs there all the time: an application that dials a port on
/// which nobody listens fails, whoever comes later.
///
/// # Errors
/// Something did not start, end or come back; failed requests are in the report.
pub async fn rolling(world: &World, calling: &Path, executables: &[&Path], rate: Rate) -> Result<Report> {
    let (first, rest) = (executables[0], &executables[1..]);
    let plan = |name| Plan::new(name).inbound().executable(first);
    let (mut west, mut east) =
        tokio::try_join!(Cluster::start(world, plan("west")), Cluster::start(world, plan("east")))?;
    link(&[&west, &east], &[]).await?;
    let app = HttpApp::start().await?;
    let serves = Some((("payments.billing", PORT), app.address));
    let mut payments = Workload::before(world, &west, "payments.billing", serves, first).await?;
    let mut web = Workload::activated(world, &east, "web.shop", calling).await?;
    until("payments is exported", CONVERGE, async || {
        west.run(&["service", "export", "payments.billing"]).await.map(|_| ())
    })
    .await?;
    west.run(&["intention", "allow", "web.shop.east", "payments.billing"]).await?;
    let began = Instant::now();
    let load = until("web reaches payments", CONVERGE, async || {
        let load = Load::start(web.socks, PAYMENTS, PORT, 1, 0, Duration::from_millis(20));
        until("an answer", CONVERGE, async || {
            ensure!(load.counts() != (0, 0), "none yet");
            Ok(())
        })
        .await?;
        ensure!(load.end().await?.failed.is_empty(), "refused");
        Ok(Load::start(web.socks, PAYMENTS, PORT, rate.keeping, rate.anew, rate.pace))
    })
    .await?;
    let mut replaced = Vec::new();
    for next in rest {
        for what in ["east's gateway", "west's gateway", "payments' sidecar", "web's sidecar"] {
            quiet(&load).await?;
            let from = Instant::now();
            let (ending, starting) = match what {
                "east's gateway" => east.replace(next).await?,
                "west's gateway" => west.replace(next).await?,
                "web's sidecar" => web.replace(calling).await?,
                _ => payments.replace(next).await?,
            };
            replaced.push(Replaced { what: what.to_owned(), ending, starting, from, to: Instant::now() });
        }
    }
    quiet(&load).await?;
    Ok(Report { seen: load.end().await?, replaced, lasted: began.elapsed() })
}

/// Waits until so many more requests have their answer.
async fn quiet(load: &Load) -> Result<()> {
    let (before, _) = load.counts();
    until("requests are answered", CONVERGE * 3, async || {
        let (answered, failed) = load.counts();
        ensure!(answered >= before + QUIET, "{} were, {failed} failed", answered - before);
        Ok(())
    })
    .await
}

impl Report {
    /// Time to an answer of the request at `share` of those that were due while nothing was replaced.
    pub fn undisturbed(&self, share: f64) -> Duration {
        let calm = |answered: &&Answered| {
            let disturbed = |held: &Replaced| (held.from..held.to + AFTERMATH).contains(&answered.at);
            !self.replaced.iter().any(disturbed)
        };
        let mut took: Vec<_> = self.seen.answered.iter().filter(calm).map(|answered| answered.took).collect();
        took.sort_unstable();
        took.get((took.len() as f64 * share) as usize).or(took.last()).copied().unwrap_or_default()
    }

    /// How many requests failed that were due while the process was replaced, or soon after.
    pub fn failed_during(&self, step: &Replaced) -> usize {
        // What is due once the next one is being replaced is that one's.
        let next = self.replaced.iter().map(|held| held.from).find(|from| *from > step.from);
        let end = next.unwrap_or(step.to + AFTERMATH).min(step.to + AFTERMATH);
        self.seen.failed.iter().filter(|(at, _)| (step.from..end).contains(at)).count()
    }

    /// The longest time to an answer.
    pub fn longest(&self) -> Duration {
        self.seen.answered.iter().map(|answered| answered.took).max().unwrap_or_default()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Seen { answered, failed, reopened } = &self.seen;
        let again = answered.iter().filter(|answered| answered.again).count();
        let rate = answered.len() as f64 / self.lasted.as_secs_f64();
        writeln!(f, "{} requests in {:.1?} ({rate:.0}/s), {} failed", answered.len(), self.lasted, failed.len())?;
        writeln!(f, "  {again} sent again on another connection, {reopened} kept connections opened anew")?;
        let (half, most) = (self.undisturbed(0.5), self.undisturbed(0.99));
        writeln!(f, "  undisturbed p50 {half:.1?}, p99 {most:.1?}; longest of all {:.1?}", self.longest())?;
        for held in &self.replaced {
            let (ending, starting, failed) = (held.ending, held.starting, self.failed_during(held));
            writeln!(f, "  {}: ended in {ending:.2?}, was back {starting:.0?} later, {failed} failed", held.what)?;
        }
        for (_, failure) in failed.iter().take(5) {
            writeln!(f, "  failed: {failure}")?;
        }
        Ok(())
    }
}
