//! `hanse gateway`: holds the two parts of a gateway, the edge and its signer, and starts again what died.
//!
//! In: a configuration. Out: two child processes with the ends of one socket pair as their standard inputs, of which
//! this process keeps both, so that either part can die and its successor goes on where it was. Never: holds a key,
//! opens a port, reads a store.
//!
//! An edge that is killed or panics is started again. One that ends with an error has said what must change, and ends
//! the gateway, as does one that dies [`DEATHS_MAX`] times in a row right after its start. A signer is always started
//! again, unless it ends with an error the first time: until then nothing was served that could go on. Both parts end
//! with this process, however it ends.

use std::{
    fs::{File, TryLockError},
    os::fd::OwnedFd,
    path::Path,
    process::{ExitCode, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use federation_identity::{RemoteSigner, signer};
use gateway_admin::{
    shutdown::{Signal, Signals},
    telemetry,
};
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::signal::{self, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{app::DRAIN_LIMIT, backup, config::Settings, confine, drain};

/// How many times in a row an edge may die within [`SETTLED`] of its start.
const DEATHS_MAX: u32 = 20;
/// A part that lived this long was up.
const SETTLED: Duration = Duration::from_secs(10);
/// Wait before a part is started again for the second time in a row; doubled each time, up to [`PAUSE_MAX`]. The first
/// time there is none.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How long the parts of a gateway that was killed may take to be gone.
const PREDECESSORS_LIMIT: Duration = Duration::from_secs(3);
/// How long an edge may take to end beyond what it gives itself.
const END_SLACK: Duration = Duration::from_secs(2);
/// What a Rust program ends with after a panic.
const PANICKED: i32 = 101;

/// Runs a gateway until it is told to end: an edge with its control plane, and the signer apart from it.
///
/// # Errors
/// The configuration is wrong, or the parts cannot be started. What a part ended with for good is the exit code.
pub async fn run(config: &Path, check: bool) -> Result<ExitCode> {
    let settings = Settings::load(config)?;
    if check {
        println!("{}: a gateway's configuration, all understood", config.display());
        return Ok(ExitCode::SUCCESS);
    }
    let _log = telemetry::init(settings.log.format.parse()?, &settings.log.level)?;
    let mut signals = Signals::new()?;
    confine::no_core_files()?;
    make_private(&settings.data_dir)?;
    let (_folder, _) = after_predecessors(&settings.data_dir).await?;
    backup::check_interrupted(&settings)?;
    let (edge, signer) = signer::channel().context("the signer's socket")?;
    let mut signer = Part::start("signer", config, signer)?;
    let mut edge = Part::start("edge", config, edge)?;
    let code = loop {
        tokio::select! {
            signal = signals.next() => {
                if signal.ends() {
                    break end(&mut edge, &mut signals, &settings).await?;
                }
                edge.tell(signal);
            }
            ended = signer.turn() => {
                if let Some(code) = ended?.and_then(|status| status.code()).filter(|_| signer.lives == 1) {
                    tracing::error!(code, "the signer did not start; the gateway ends");
                    break exit_code(code);
                }
            }
            ended = edge.turn() => {
                let Some(status) = ended? else { continue };
                match status.code() {
                    Some(code) if code != 0 && code != PANICKED => {
                        tracing::error!(code, "the edge ended with an error; the gateway ends");
                        break exit_code(code);
                    }
                    _ if edge.deaths >= DEATHS_MAX => {
                        tracing::error!(deaths = edge.deaths, "the edge dies at each start; the gateway ends");
                        break exit_code(5);
                    }
                    _ => {}
                }
            }
        }
    };
    edge.kill().await;
    signer.kill().await;
    Ok(code)
}

/// Does work on what belongs to a gateway that does not run, with its signer as a child; `changes` it needs `data_dir` for
/// itself alone.
///
/// # Errors
/// The key file is not there, a gateway runs on `data_dir`, the signer does not start, or the work fails.
pub(crate) async fn with_signer<T>(
    config: &Path,
    settings: &Settings,
    changes: bool,
    work: impl AsyncFnOnce(Arc<RemoteSigner>) -> Result<T>,
) -> Result<T> {
    confine::no_core_files()?;
    let kek = &settings.kek_file;
    // The signer would make one for a store that is not there.
    ensure!(kek.exists(), "kek_file {} is not there: put it back from where you keep it", kek.display());
    let _folder = if changes {
        make_private(&settings.data_dir)?;
        let (folder, free) = after_predecessors(&settings.data_dir).await?;
        ensure!(free, "a gateway runs on data_dir {}: stop it first", settings.data_dir.display());
        Some(folder)
    } else {
        None
    };
    let (here, there) = signer::channel().context("the signer's socket")?;
    let mut part = Part::start("signer", config, there)?;
    let remote = RemoteSigner::new(here, settings.trust_domain.clone(), settings.cluster.clone());
    let remote = Arc::new(remote.context("the signer's socket")?);
    let outcome = tokio::select! {
        outcome = work(remote) => outcome,
        ended = part.turn() => ended.and_then(|status| match status {
            Some(status) => bail!("the signer ended ({status}): it said why"),
            None => bail!("the signer ended"),
        }),
    };
    part.kill().await;
    outcome
}

/// Asks the edge to end and waits for it. Told again, it passes that on.
async fn end(edge: &mut Part, signals: &mut Signals, settings: &Settings) -> Result<ExitCode> {
    edge.tell(Signal::Terminate);
    let until = Instant::now() + drain::limit(settings.drain) + DRAIN_LIMIT + END_SLACK;
    loop {
        tokio::select! {
            ended = edge.ended(until.saturating_duration_since(Instant::now())) => return ended,
            signal = signals.next() => edge.tell(signal),
        }
    }
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(5))
}

/// One of the two children.
struct Part {
    verb: &'static str,
    arguments: Vec<std::ffi::OsString>,
    /// Its end of the socket, kept for its successor.
    end: OwnedFd,
    child: Option<Child>,
    /// When it was started, or is to be.
    at: Instant,
    lives: u32,
    /// How many times in a row it died within [`SETTLED`].
    deaths: u32,
}

impl Part {
    fn start(verb: &'static str, config: &Path, end: OwnedFd) -> Result<Self> {
        let parent = std::process::id().to_string();
        let arguments = vec![verb.into(), "--config".into(), config.into(), "--parent".into(), parent.into()];
        let mut part = Self { verb, arguments, end, child: None, at: Instant::now(), lives: 0, deaths: 0 };
        part.spawn()?;
        Ok(part)
    }

    /// Called by the main thread alone: the parts end with the thread that started them.
    fn spawn(&mut self) -> Result<()> {
        let end = self.end.try_clone().context("the signer's socket")?;
        // Not by path: this very executable, even if another was put in its place.
        let child = Command::new("/proc/self/exe")
            .arg0("hanse")
            .args(&self.arguments)
            .stdin(Stdio::from(end))
            // Of its own, so that Ctrl-C in a terminal is for this process, which ends its parts in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting the {}", self.verb))?;
        tracing::debug!(part = self.verb, pid = child.id(), "started");
        self.child = Some(child);
        self.at = Instant::now();
        self.lives += 1;
        Ok(())
    }

    /// Waits until it dies and says with what, or until it is time to start it again and does. Cancel-safe.
    async fn turn(&mut self) -> Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else {
            sleep_until(self.at).await;
            self.spawn()?;
            return Ok(None);
        };
        let status = child.wait().await?;
        self.child = None;
        self.deaths = if self.at.elapsed() < SETTLED { self.deaths + 1 } else { 1 };
        self.at = Instant::now() + pause(self.deaths);
        tracing::error!(part = self.verb, %status, deaths = self.deaths, "a part of the gateway died");
        Ok(Some(status))
    }

    fn tell(&self, signal: Signal) {
        let signal = match signal {
            Signal::Reload => signal::Signal::SIGHUP,
            _ => signal::Signal::SIGTERM,
        };
        let pid = self.child.as_ref().and_then(Child::id).and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid {
            // Between its death and our notice the kernel keeps its number.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Waits until it has ended, at most for `limit`.
    async fn ended(&mut self, limit: Duration) -> Result<ExitCode> {
        let Some(child) = &mut self.child else { return Ok(ExitCode::SUCCESS) };
        let Ok(status) = timeout(limit, child.wait()).await else {
            tracing::error!(part = self.verb, ?limit, "did not end in time and is killed");
            return Ok(exit_code(5));
        };
        self.child = None;
        // One that was killed meanwhile has not ended as it should.
        Ok(exit_code(status?.code().unwrap_or(5)))
    }

    async fn kill(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill().await;
        }
    }
}

/// How long a part stays down that died that many times in a row.
fn pause(deaths: u32) -> Duration {
    match deaths {
        0 | 1 => Duration::ZERO,
        _ => PAUSE_MAX.min(PAUSE_MIN * 2_u32.saturating_pow((deaths - 2).min(16))),
    }
}

/// Makes the data folder closed to others.
fn make_private(folder: &Path) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    if !folder.exists() {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.with_context(|| format!("making data_dir {}", folder.display()))?;
    }
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))
        .with_context(|| format!("data_dir {}", folder.display()))
}

/// Waits for the parts of a gateway on this folder that was killed a moment ago: until its edge is gone, its ports and
/// store are taken. The parts inherit a lock on the folder, which ends with the last of them. If it does not end, the
/// gateway is no dead one, and the edge says what is in use. Says whether the folder is this process's now.
async fn after_predecessors(folder: &Path) -> Result<(File, bool)> {
    let file = File::open(folder).with_context(|| format!("data_dir {}", folder.display()))?;
    fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).context("handing the lock on data_dir to the parts")?;
    let deadline = Instant::now() + PREDECESSORS_LIMIT;
    let is_held = || matches!(file.try_lock(), Err(TryLockError::WouldBlock));
    let mut held = is_held();
    while held && Instant::now() < deadline {
        sleep(Duration::from_millis(5)).await;
        held = is_held();
    }
    Ok((file, !held))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_comes_back_at_once_and_then_slower_up_to_a_bound() {
        let millis: Vec<_> = [0, 1, 2, 3, 4, 5, 6, 20, u32::MAX].map(|deaths| pause(deaths).as_millis()).into();
        assert_eq!(millis, [0, 0, 100, 200, 400, 800, 1000, 1000, 1000]);
    }
}
