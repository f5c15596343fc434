//! sled, and all that one must know about it.
//!
//! - A left-over `snap.*.generating` makes it refuse to open (sled #1527): removed before each open.
//! - It may panic on damage: every call is caught here.
//! - Its flush leaves data in the page cache: an fdatasync follows.
//! - A node of 20 values that passes 128 KiB goes to a file of its own, which is never synced and may be removed too
//!   early: values are cut into parts of [`PART_BYTES`] by the table, so that no node does.
//! - Its background flusher, once it has panicked, makes closing hang: it is off, we flush.

use std::{
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// Longest value that the engine is given: 20 of them, with keys, stay below a quarter of a segment of 512 KiB.
pub(super) const PART_BYTES: usize = 4096;
/// Memory for pages; the rows are read once at the start and seldom after.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// A handle of ours that was just dropped may hold the engine's own lock for a moment: 200 tries, 10 ms apart.
const LOCK_TRIES: u32 = 200;

/// Why the engine does not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum EngineError {
    #[error("input/output: {0}")]
    Io(String),
    #[error("{0}")]
    Corrupt(String),
    #[error("engine panicked: {0}")]
    Panicked(String),
}

impl From<sled::Error> for EngineError {
    fn from(error: sled::Error) -> Self {
        match error {
            sled::Error::Io(error) => Self::Io(error.to_string()),
            other => Self::Corrupt(other.to_string()),
        }
    }
}

impl From<io::Error> for EngineError {
    fn from(error: io::Error) -> Self {
        Self::Io(error.to_string())
    }
}

/// An open sled database.
#[derive(Debug)]
pub(super) struct Engine {
    db: sled::Db,
    /// The same file that sled writes, for fdatasync.
    file: File,
}

/// Keys and new values; `None` removes.
pub(super) type Writes = Vec<(Vec<u8>, Option<Vec<u8>>)>;

impl Engine {
    /// Opens or makes the database in `path`, which exists, and makes what it finds durable.
    pub(super) fn open(path: &Path) -> Result<Self, EngineError> {
        for stale in snapshots(path, Some("generating"))? {
            tracing::info!(path = %stale.display(), "removed what a killed start left behind");
            fs::remove_file(stale)?;
        }
        let mut tries = 0;
        let db = loop {
            let config = sled::Config::new()
                .path(path)
                .cache_capacity(CACHE_BYTES)
                .flush_every_ms(None)
                .mode(sled::Mode::HighThroughput);
            match guarded(|| config.open().map_err(EngineError::from)) {
                Err(EngineError::Io(detail)) if detail.contains("could not acquire lock") && tries < LOCK_TRIES => {
                    tries += 1;
                    thread::sleep(Duration::from_millis(10));
                }
                other => break other?,
            }
        };
        let file = File::open(path.join("db"))?;
        let engine = Self { db, file };
        // A process that was killed may have flushed what it never synced, and we are about to answer from it.
        engine.file.sync_data()?;
        Ok(engine)
    }

    /// Calls `visit` with each key and value, in the order of keys.
    pub(super) fn scan(&self, mut visit: impl FnMut(&[u8], &[u8])) -> Result<(), EngineError> {
        guarded(|| {
            for pair in self.db.iter() {
                let (key, value) = pair?;
                visit(&key, &value);
            }
            Ok(())
        })
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        guarded(|| Ok(self.db.get(key)?.map(|value| value.to_vec())))
    }

    /// Makes all writes or none; they are on the disk when it returns.
    pub(super) fn write(&self, writes: Writes) -> Result<(), EngineError> {
        guarded(|| {
            let mut batch = sled::Batch::default();
            for (key, value) in writes {
                match value {
                    Some(value) => batch.insert(key, value),
                    None => batch.remove(key),
                }
            }
            self.db.apply_batch(batch)?;
            self.db.flush()?;
            self.file.sync_data()?;
            Ok(())
        })
    }

    /// Size of the file in bytes; 0 when nobody can tell.
    pub(super) fn bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }

    /// Closes the database; whatever it still has to say about it is dropped with it.
    pub(super) fn close(self) {
        let Self { db, file } = self;
        let _ = guarded(|| {
            drop(db);
            Ok(())
        });
        drop(file);
    }
}

/// The engine's snapshots of its page table in `path`, all or those that end with `.extension`.
///
/// The log alone says the same, so that a store whose snapshot is damaged opens without it.
pub(super) fn snapshots(path: &Path, extension: Option<&str>) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with("snap.")) else { continue };
        if extension.is_none_or(|extension| name.strip_suffix(extension).is_some_and(|rest| rest.ends_with('.'))) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Runs a call into sled; a panic becomes an error. What it leaves half done is never used again: the caller closes
/// the engine after any error.
fn guarded<T>(call: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(EngineError::Panicked(text.chars().take(300).collect()))
    })
}
