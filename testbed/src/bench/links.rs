//! One edge with thousands of links: connecting, idling, a new rule, two storms of reconnects.
//!
//! In: how many members. Out: figures by name: seconds, KiB per link, cores, milliseconds. Never: another edge's limits
//! than production's: hub and crowd are processes of their own (`child`), and what kills them is SIGKILL.

mod child;
mod process;

use std::{
    net::UdpSocket,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use federation_link::crowd::Cast;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

pub(crate) use self::child::{crowd, hub};
use self::process::Process;

/// Longest wait for all links to be up.
const UP_LIMIT: Duration = Duration::from_secs(300);
/// How often it is looked whether they are.
const LOOK: Duration = Duration::from_millis(200);
/// Time for what follows a storm to calm down before anything else is measured.
const SETTLE: Duration = Duration::from_secs(15);
/// Rules of which each member's copy is waited for.
const RULES: usize = 20;
/// Pause between two of them.
const RULE_PAUSE: Duration = Duration::from_secs(1);
/// How long a hub that died stays away.
const AWAY: Duration = Duration::from_secs(5);

/// How much is measured.
pub(crate) struct Plan {
    pub(crate) members: usize,
    /// How long links idle while CPU and memory are watched.
    pub(crate) idle: Duration,
}

/// The two processes and what they work with.
struct Stage {
    folder: tempfile::TempDir,
    address: String,
    members: usize,
    hub: Process,
    crowd: Process,
}

pub(crate) async fn measure(plan: &Plan) -> Result<Value> {
    let folder = tempfile::tempdir().context("a folder")?;
    let cast = Cast::make(plan.members).context("keys of members")?;
    cast.write(&folder.path().join("cast")).context("keeping the cast")?;
    // Free now; nobody else binds this address.
    let address = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let hub = hub_at(folder.path(), &address).await?;
    let crowd = crowd_for(folder.path(), &address).await?;
    let mut stage = Stage { folder, address, members: plan.members, hub, crowd };
    let before = stage.hub.resident()?;
    let mut figures = json!({ "members": plan.members, "rss_before_mib": mib(before) });

    figures["connect"] = stage.until_up(Instant::now(), true).await?;
    sleep(SETTLE).await;
    figures["idle"] = stage.idle(plan.idle).await?;
    figures["kib_per_link_idle"] = stage.per_link(before)?;
    figures["rule"] = stage.rules().await?;
    figures["kib_per_link_after_rules"] = stage.per_link(before)?;

    let killed = Instant::now();
    stage.crowd.kill().await?;
    stage.crowd = crowd_for(stage.folder.path(), &stage.address).await?;
    figures["storm_crowd_died"] = stage.until_up(killed, true).await?;
    sleep(SETTLE).await;
    figures["kib_per_link_after_storm"] = stage.per_link(before)?;

    stage.hub.kill().await?;
    sleep(AWAY).await;
    let started = Instant::now();
    stage.hub = hub_at(stage.folder.path(), &stage.address).await?;
    figures["hub_opens_s"] = secs(started.elapsed()).into();
    let before = stage.hub.resident()?;
    figures["storm_hub_died"] = stage.until_up(started, false).await?;
    sleep(SETTLE).await;
    figures["kib_per_link_of_new_hub"] = stage.per_link(before)?;
    figures["rule_after_storms"] = stage.rules().await?;
    figures["rss_after_mib"] = mib(stage.hub.resident()?).into();
    figures["crowd_rss_mib"] = mib(stage.crowd.resident()?).into();
    Ok(figures)
}

async fn hub_at(folder: &Path, address: &str) -> Result<Process> {
    Process::start(&["links-hub", &text(folder.join("cast")), &text(folder.join("store")), address]).await
}

async fn crowd_for(folder: &Path, address: &str) -> Result<Process> {
    Process::start(&["links-crowd", &text(folder.join("cast")), address]).await
}

fn text(path: PathBuf) -> String {
    path.display().to_string()
}

impl Stage {
    /// Lets the crowd dial, if it does not yet, and waits until the hub says that every link is up.
    async fn until_up(&mut self, since: Instant, dial: bool) -> Result<Value> {
        if dial {
            self.crowd.ask("dial").await?;
        }
        let (begun, cpu) = (Instant::now(), self.hub.cpu()?);
        let mut peak = 0;
        loop {
            let [links, crowd] = [self.hub.ask("links").await?, self.crowd.ask("seen").await?];
            let count = |value: &Value| value["up"].as_u64().unwrap_or_default() as usize;
            peak = peak.max(self.hub.resident()?);
            if count(&links) == self.members && count(&crowd) == self.members {
                let took = begun.elapsed().as_secs_f64();
                let cores = (self.hub.cpu()? - cpu).as_secs_f64() / took;
                return Ok(json!({
                    "s": secs(since.elapsed()), "hub_cores": round(cores), "rss_peak_mib": mib(peak), "dials": crowd["sessions"],
                    "failures": crowd["failures"],
                }));
            }
            ensure!(begun.elapsed() < UP_LIMIT, "after {UP_LIMIT:?}: hub {links}, crowd {crowd}");
            sleep(LOOK).await;
        }
    }

    /// What the hub does while nothing happens.
    async fn idle(&mut self, time: Duration) -> Result<Value> {
        self.crowd.ask("seen").await?;
        let (began, hub, crowd) = (Instant::now(), self.hub.cpu()?, self.crowd.cpu()?);
        sleep(time).await;
        let took = began.elapsed().as_secs_f64();
        let cores = |cpu: Duration| round(cpu.as_secs_f64() / took);
        let (hub, crowd) = (cores(self.hub.cpu()? - hub), cores(self.crowd.cpu()? - crowd));
        let seen = self.crowd.ask("seen").await?;
        let links = self.hub.ask("links").await?;
        Ok(json!({
            "s": secs(began.elapsed()), "hub_cores": hub, "crowd_cores": crowd, "up": links["up"],
            "heartbeat_ms": seen["heartbeat_ms"], "heartbeats": seen["heartbeats"], "receipts": seen["receipts"],
        }))
    }

    /// How long the last and the ninety-ninth of a hundred members wait for a new rule, over some rules.
    async fn rules(&mut self) -> Result<Value> {
        let (mut p50, mut p99, mut last, mut confirmed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for number in 0..RULES {
            self.crowd.ask("seen").await?;
            let wrote = self.hub.ask("write").await?["at"].as_u64().context("no time")?;
            let asked = Instant::now();
            let mut arrivals: Vec<u64> = Vec::new();
            while arrivals.len() < self.members {
                ensure!(asked.elapsed() < UP_LIMIT, "rule {number}: {} of {} have it", arrivals.len(), self.members);
                sleep(Duration::from_millis(50)).await;
                let seen = self.crowd.ask("seen").await?;
                arrivals.extend(seen["arrivals"].as_array().into_iter().flatten().filter_map(Value::as_u64));
            }
            arrivals.sort_unstable();
            let at = |share: usize| arrivals.get(arrivals.len() * share / 100).copied().unwrap_or_default();
            p50.push(at(50).saturating_sub(wrote));
            p99.push(at(99).saturating_sub(wrote));
            last.push(arrivals.last().copied().unwrap_or_default().saturating_sub(wrote));
            loop {
                ensure!(asked.elapsed() < UP_LIMIT, "rule {number} is not confirmed by everyone");
                if self.hub.ask("enforced").await?["by"].as_u64() == Some(self.members as u64 + 1) {
                    break;
                }
                sleep(Duration::from_millis(50)).await;
            }
            confirmed.push(asked.elapsed().as_millis() as u64);
            sleep(RULE_PAUSE).await;
        }
        let worst = |mut of: Vec<u64>| {
            of.sort_unstable();
            json!({ "median": of.get(of.len() / 2), "worst": of.last() })
        };
        Ok(json!({
            "rules": RULES, "member_p50_ms": worst(p50), "member_p99_ms": worst(p99), "last_member_ms": worst(last),
            "confirmed_ms": worst(confirmed),
        }))
    }

    fn per_link(&self, before: usize) -> Result<Value> {
        let taken = self.hub.resident()?.saturating_sub(before);
        Ok(round(taken as f64 / 1024.0 / self.members as f64).into())
    }
}

fn mib(bytes: usize) -> f64 {
    round(bytes as f64 / (1024.0 * 1024.0))
}

fn secs(time: Duration) -> f64 {
    round(time.as_secs_f64())
}

fn round(figure: f64) -> f64 {
    (figure * 100.0).round() / 100.0
}
