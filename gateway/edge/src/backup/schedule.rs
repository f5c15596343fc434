//! Copies of the store by the clock: one every so often into a folder, the newest ones kept.
//!
//! In: `[backup]` of the configuration. Out: files `CLUSTER-TIME.hansebak`, each whole or not there. Never: removes a file
//! that it did not name, or an old copy before a new one is on the disk and was read back.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use federation_identity::{RemoteSigner, backup::verify_whole};
use federation_model::{ClusterName, Timestamp};
use gateway_api::Kind as Refused;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Copy, Source, begin, write};
use crate::{config::BackupConfig, metrics as names};

/// Ending of the files.
const ENDING: &str = ".hansebak";
/// Wait before a copy that failed is tried again, at most; less if the next one is due earlier.
const RETRY: Duration = Duration::from_secs(60);

/// Makes copies until `stop`.
pub(crate) async fn run(source: Arc<Source>, cluster: ClusterName, config: BackupConfig, stop: CancellationToken) {
    let folder = Folder { cluster, config };
    let mut due = folder.newest().map_or(Duration::ZERO, |age| folder.config.every.saturating_sub(age));
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(due) => {}
        }
        let (outcome, wait) = match folder.make(&source).await {
            Ok(path) => {
                tracing::info!(path = %path.display(), "backup made");
                ("done", folder.config.every)
            }
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "no backup could be made; the older ones are kept");
                ("failed", folder.config.every.min(RETRY))
            }
        };
        ::metrics::counter!(names::BACKUPS_TOTAL, "outcome" => outcome).increment(1);
        due = wait;
    }
}

struct Folder {
    cluster: ClusterName,
    config: BackupConfig,
}

impl Folder {
    /// How old the newest copy is; none if there is none.
    fn newest(&self) -> Option<Duration> {
        let path = self.copies().ok()?.pop()?;
        let made = fs::metadata(path).and_then(|found| found.modified()).ok()?;
        tell(made);
        // One from the future is as good as new.
        Some(made.elapsed().unwrap_or_default())
    }

    async fn make(&self, source: &Source) -> Result<PathBuf> {
        let copy = source.copy().await.map_err(|refusal| match refusal.kind {
            Refused::Exhausted => anyhow::anyhow!("another backup is being made"),
            _ => anyhow::anyhow!(refusal.message),
        })?;
        let (signer, key) = (Arc::clone(&source.signer), source.key.clone());
        let (directory, path) = (self.config.directory.clone(), self.path(copy.at));
        let made = path.clone();
        tokio::task::spawn_blocking(move || store(&directory, &made, copy, &signer, &key)).await??;
        tell(SystemTime::now());
        self.prune()?;
        Ok(path)
    }

    fn path(&self, at: Timestamp) -> PathBuf {
        let time = humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_millis(at.as_millis()));
        let time: String = time.to_string().chars().filter(char::is_ascii_alphanumeric).collect();
        self.config.directory.join(format!("{}-{time}{ENDING}", self.cluster))
    }

    /// Files that this cluster's name and a time make, the oldest first.
    fn copies(&self) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.config.directory)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let time =
                name.and_then(|name| name.strip_prefix(self.cluster.as_str())?.strip_prefix('-')?.strip_suffix(ENDING));
            // 20261231T235959Z
            if time.is_some_and(|time| {
                time.len() == 16 && time.bytes().all(|byte| byte.is_ascii_digit() || b"TZ".contains(&byte))
            }) {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }

    /// Removes the oldest.
    fn prune(&self) -> Result<()> {
        let copies = self.copies()?;
        for old in copies.iter().take(copies.len().saturating_sub(self.config.keep)) {
            fs::remove_file(old).with_context(|| format!("removing the old backup {}", old.display()))?;
        }
        Ok(())
    }
}

fn tell(made: SystemTime) {
    let since = made.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    ::metrics::gauge!(names::BACKUP_TIMESTAMP_SECONDS).set(since.as_secs_f64());
}

/// Writes a copy beside its place, reads it back, and puts it there.
fn store(directory: &Path, path: &Path, copy: Copy, signer: &Arc<RemoteSigner>, key: &[u8; 32]) -> Result<()> {
    let shown = path.display();
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.with_context(|| format!("backup.directory {}", directory.display()))?;
    let part = path.with_extension("part");
    let options = || fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&part);
    let mut file = options().with_context(|| format!("{}", part.display()))?;
    let mut out = Vec::new();
    let (writer, manifest) = begin(key, &copy, &mut out)?;
    write(writer, &manifest, copy, signer.as_ref(), out, |piece| Ok(file.write_all(&piece)?))
        .with_context(|| format!("writing {}", part.display()))?;
    file.sync_all().with_context(|| format!("writing {}", part.display()))?;
    let read = fs::File::open(&part).with_context(|| format!("reading {} back", part.display()))?;
    verify_whole(io::BufReader::new(read)).with_context(|| format!("reading {} back", part.display()))?;
    fs::rename(&part, path).and_then(|()| fs::File::open(directory)?.sync_all()).with_context(|| format!("{shown}"))
}

/// How long ago the newest copy in `backup.directory` was made, if that is too long ago; for people.
pub(crate) fn overdue(cluster: &ClusterName, config: &BackupConfig) -> Option<String> {
    let folder = Folder { cluster: cluster.clone(), config: config.clone() };
    let newest = folder.copies().ok()?.pop()?;
    let made = fs::metadata(newest).and_then(|found| found.modified()).ok()?;
    let age = made.elapsed().ok()?;
    (age > 2 * config.every + RETRY).then(|| {
        format!(
            "the newest backup in {} is {} s old, one is made every {} s: the log says why",
            config.directory.display(),
            age.as_secs(),
            config.every.as_secs()
        )
    })
}
