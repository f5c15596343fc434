//! A world: real gateways and sidecars on loopback, driven as an operator would, by the `hanse` executable.
//!
//! In: what clusters and workloads there shall be. Out: processes, answers of the CLI, connections through the mesh.
//! Never: reaches into a program, needs root, uses another address than 127.0.0.1, or leaves a process behind.

mod app;
mod cli;
mod cluster;
mod http;
mod network;
mod ports;
mod process;
mod workload;

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

pub use app::{Conversation, EchoApp, Refused, dial};
pub use cli::Answer;
pub use cluster::{Cluster, Plan, link};
pub use http::{Answered, HttpApp, Load, Seen};
pub use network::Network;
pub use process::{Process, hanse, runs};
pub use workload::{Serving, Workload};

/// How long a change may take to be in force everywhere, on a machine that is busy with other things.
pub const CONVERGE: Duration = Duration::from_secs(20);
/// Pause between two looks of [`until`].
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Lines of each log that are told when a story fails.
const LAST_WORDS: usize = 25;

/// Why a story failed. Its `Debug` is plain text, since that is what a failed test prints.
pub struct Failure(String);

impl std::fmt::Debug for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where the processes of one story live: a temporary folder and the network between its clusters.
pub struct World {
    folder: TempDir,
    network: Network,
}

impl World {
    /// Tells a story in a world of its own, for at most `limit`. If it fails, the error ends in the last lines of every
    /// process's log.
    ///
    /// # Errors
    /// The story failed or took too long.
    pub async fn tell(limit: Duration, story: impl AsyncFnOnce(&World) -> Result<()>) -> Result<(), Failure> {
        let folder = tempfile::Builder::new().prefix("hanse-testbed-").tempdir();
        let world = Self { folder: folder.map_err(|error| Failure(error.to_string()))?, network: Network::default() };
        let told = match timeout(limit, story(&world)).await {
            Ok(told) => told,
            Err(_) => Err(anyhow::anyhow!("the story did not end within {limit:?}")),
        };
        told.map_err(|error| Failure(format!("{error:#}\n{}", world.last_words())))
    }

    /// The network between the clusters whose plan says that they are relayed.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// A folder of this world.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn folder(&self, name: &str) -> Result<std::path::PathBuf> {
        let folder = self.folder.path().join(name);
        std::fs::create_dir(&folder).with_context(|| format!("folder {name} of the world"))?;
        Ok(folder)
    }

    fn last_words(&self) -> String {
        let mut words = String::new();
        let mut folders: Vec<_> = std::fs::read_dir(self.folder.path()).into_iter().flatten().flatten().collect();
        folders.sort_by_key(std::fs::DirEntry::path);
        for folder in folders {
            for file in std::fs::read_dir(folder.path()).into_iter().flatten().flatten() {
                let path = file.path();
                if path.extension().is_some_and(|extension| extension == "log") {
                    words.push_str(&format!("--- {}/{}\n", folder.file_name().display(), file.file_name().display()));
                    words.push_str(&tail(&path));
                }
            }
        }
        words
    }
}

/// The last lines of a log, and the last ones before them that tell of trouble.
fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let (before, last) = lines.split_at(lines.len().saturating_sub(LAST_WORDS));
    let trouble = |line: &&&str| [" WARN ", " ERROR ", "denied"].iter().any(|word| line.contains(word));
    let troubles: Vec<&&str> = before.iter().filter(trouble).collect();
    let troubles = troubles.iter().skip(troubles.len().saturating_sub(LAST_WORDS));
    troubles.map(|line| **line).chain(last.iter().copied()).map(|line| format!("{line}\n")).collect()
}

/// Looks until `probe` gives a value, at most for `limit`; the last error says what was missing.
///
/// # Errors
/// It did not come true in time.
pub async fn until<T>(what: &str, limit: Duration, mut probe: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        // A probe that hangs is one that does not come true.
        let seen = match timeout(limit, probe()).await {
            Ok(seen) => seen,
            Err(_) => bail!("looking whether {what} did not end within {limit:?}"),
        };
        match seen {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("{what}: not within {limit:?}")));
            }
            Err(_) => sleep(LOOK_AGAIN).await,
        }
    }
}
