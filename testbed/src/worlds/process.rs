//! One child process: the `hanse` executable with a program's arguments, surely ended.

use std::{
    collections::BTreeSet,
    net::TcpListener,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    time::{Instant, timeout},
};

use super::{CONVERGE, until};

/// The `hanse` executable: where cargo puts it, beside this program or the folder of this test.
///
/// # Panics
/// It is not there: `cargo test --workspace` builds it, and so does `cargo build -p hanse`.
pub fn hanse() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let test = std::env::current_exe().expect("this test knows its own path");
        let folder = test.parent().expect("a test lies in target/<profile>/deps, a program in target/<profile>");
        let profile = if folder.ends_with("deps") { folder.parent().expect("deps lies in a profile") } else { folder };
        let executable = profile.join("hanse");
        assert!(
            executable.is_file(),
            "{} is not there: these tests start real processes; run `cargo build -p hanse` (with --release if the \
             tests have it), or the whole of `cargo test --workspace`",
            executable.display()
        );
        executable
    })
}

/// A running program whose output goes to a file. Dropping it kills the process.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `executable` with `arguments`; what it says is appended to `log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(executable: &Path, name: &str, arguments: &[&str], log: &Path) -> Result<Self> {
        Self::run(name, Command::new(executable).args(arguments), log)
    }

    /// The same with a listening socket handed over, as systemd does it (sd_listen_fds(3)).
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_activated(
        executable: &Path,
        name: &str,
        arguments: &[&str],
        log: &Path,
        held: &TcpListener,
    ) -> Result<Self> {
        // The shell puts the socket where it belongs and becomes the program.
        let script = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\" 3<&0 </dev/null";
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(executable).args(arguments);
        Self::run_with(name, &mut command, log, OwnedFd::from(held.try_clone()?).into())
    }

    /// The same in a network namespace; needs root.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_within(
        namespace: &str,
        executable: &Path,
        name: &str,
        arguments: &[&str],
        log: &Path,
    ) -> Result<Self> {
        // `ip` becomes the program: there is one process to end.
        Self::run(name, Command::new("ip").args(["netns", "exec", namespace]).arg(executable).args(arguments), log)
    }

    fn run(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        Self::run_with(name, command, log, Stdio::null())
    }

    fn run_with(name: &str, command: &mut Command, log: &Path, stdin: Stdio) -> Result<Self> {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let child = command
            .env_remove("HANSE_SOCKET")
            .stdin(stdin)
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Everything it wrote so far, earlier lives included.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// An error if the process ended already.
    ///
    /// # Errors
    /// It ended.
    pub fn alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}", self.name),
        }
    }

    /// Kills it without warning (SIGKILL) and waits until it is gone, and what it started with it: nobody ends that but
    /// the kernel.
    ///
    /// # Errors
    /// It ended before, by itself, or something that it started is left.
    pub async fn crash(&mut self) -> Result<()> {
        self.alive()?;
        let started = children(self.pid()?)?;
        self.child.kill().await.with_context(|| format!("killing {}", self.name))?;
        until(&format!("what {} started is gone", self.name), CONVERGE, async || {
            let left: Vec<_> = started.iter().filter(|pid| runs(**pid)).collect();
            ensure!(left.is_empty(), "processes are left: {left:?}");
            Ok(())
        })
        .await
    }

    /// Process id.
    ///
    /// # Errors
    /// It has ended.
    pub fn pid(&self) -> Result<u32> {
        self.child.id().with_context(|| format!("{} has ended", self.name))
    }

    /// Process id of what it started as `hanse VERB`.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn part(&self, verb: &str) -> Result<u32> {
        let mut found = Vec::new();
        for pid in children(self.pid()?)? {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if line.split(|byte| *byte == 0).nth(1) == Some(verb.as_bytes()) {
                found.push(pid);
            }
        }
        ensure!(found.len() == 1, "{} runs {} of {verb}", self.name, found.len());
        Ok(found[0])
    }

    /// Tells it to end as systemd or Kubernetes would (SIGTERM), and waits until it has; it must end with 0.
    ///
    /// # Errors
    /// It had ended before, or ends with an error, or not within `limit`.
    pub async fn terminate(&mut self, limit: Duration) -> Result<Duration> {
        self.alive()?;
        let began = Instant::now();
        kill(Pid::from_raw(self.pid()?.try_into()?), Signal::SIGTERM)?;
        let status = timeout(limit, self.child.wait()).await;
        let status = status.with_context(|| format!("{} does not end within {limit:?}", self.name))??;
        ensure!(status.success(), "{} ended with {status}", self.name);
        Ok(began.elapsed())
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// The kernel gives no answer.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        Ok(self.child.wait().await?)
    }

    /// Ports of the UDP sockets that it, or its edge if it is a gateway, has bound, as the kernel tells them.
    pub(super) fn udp_ports(&self) -> Result<BTreeSet<u16>> {
        let pid = self.part("edge").or_else(|_| self.pid())?;
        let mut inodes = BTreeSet::new();
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
            // A descriptor may close while we look.
            let Ok(target) = std::fs::read_link(entry?.path()) else { continue };
            let text = target.to_string_lossy();
            inodes.extend(text.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')).map(str::to_owned));
        }
        let mut ports = BTreeSet::new();
        for table in ["udp", "udp6"] {
            let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
            for line in text.lines().skip(1) {
                let mut fields = line.split_whitespace();
                let (Some(local), Some(inode)) = (fields.nth(1), fields.nth(7)) else { continue };
                let port = local.rsplit_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
                ports.extend(port.filter(|_| inodes.contains(inode)));
            }
        }
        Ok(ports)
    }
}

/// The processes that `pid` started and that still run.
fn children(pid: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(child) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if state(child).is_some_and(|(_, parent)| parent == pid) {
            found.push(child);
        }
    }
    Ok(found)
}

/// Whether a process is there and not only waiting to be noticed by whoever started it.
pub fn runs(pid: u32) -> bool {
    state(pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

/// State and parent of a process, if it is there. Its name, in brackets, may hold anything: both come after the last.
fn state(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}
