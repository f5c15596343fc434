//! One child process of the demo: started, watched, and surely ended.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::sockets::children;

/// How long a process may take to end after SIGTERM before it is killed.
const TERM_WAIT: Duration = Duration::from_secs(10);

/// A running program whose output goes to a file. Dropping it kills the process.
pub(crate) struct Process {
    pub(crate) name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts this very executable with `args`; standard output and error are appended to `log`.
    pub(crate) fn start(name: &str, args: &[&str], log: &Path) -> Result<Self> {
        let executable = std::env::current_exe().context("where this executable is")?;
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let child = Command::new(executable)
            .args(args)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            // A group of its own: Ctrl-C in a terminal is for the demo, which then ends its children in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Process id; `None` once it ended.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Everything it wrote so far.
    pub(crate) fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last lines it wrote, for a message.
    pub(crate) fn last_words(&self) -> String {
        let output = self.output();
        let lines: Vec<&str> = output.lines().collect();
        lines.iter().skip(lines.len().saturating_sub(5)).copied().collect::<Vec<_>>().join("\n")
    }

    /// An error if the process ended already.
    pub(crate) fn alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}:\n{}", self.name, self.last_words()),
        }
    }

    /// Kills it without warning, as a crash would, and waits until the processes that it started are gone too: nobody
    /// ends them but the kernel.
    pub(crate) async fn crash(&mut self) -> Result<()> {
        let started = self.child.id().map(children).transpose()?.unwrap_or_default();
        self.child.kill().await.with_context(|| format!("killing {}", self.name))?;
        until(&format!("what {} started is gone", self.name), TERM_WAIT, || async {
            let left: Vec<_> = started.iter().filter(|pid| runs(**pid)).collect();
            ensure!(left.is_empty(), "processes are left: {left:?}");
            Ok(())
        })
        .await
    }

    /// Asks it to end and waits; an error if it had to be killed.
    pub(crate) async fn end(&mut self) -> Result<()> {
        let Some(pid) = self.child.id() else { return Ok(()) };
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM)?;
        match timeout(TERM_WAIT, self.child.wait()).await {
            Ok(status) => {
                let status = status?;
                if status.success() { Ok(()) } else { bail!("{} ended with {status}", self.name) }
            }
            Err(_) => {
                self.child.kill().await?;
                bail!("{} did not end within {TERM_WAIT:?} of SIGTERM", self.name)
            }
        }
    }
}

/// Whether a process is there and not only waiting to be noticed by whoever started it.
pub(crate) fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, fields)| !fields.starts_with(['Z', 'X']))
}

/// Waits until `probe` gives a value, at most `limit`; the last error says what was missing.
pub(crate) async fn until<T, F, W>(what: &str, limit: Duration, mut probe: F) -> Result<T>
where
    F: FnMut() -> W,
    W: Future<Output = Result<T>>,
{
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        match probe().await {
            Ok(value) => return Ok(value),
            Err(error) if tokio::time::Instant::now() >= deadline => {
                return Err(error.context(format!("{what} did not come true within {limit:?}")));
            }
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}
