//! A store that is made from rows of elsewhere, beside the place where it shall be: whole there, or not there at all.
//!
//! In: a path at which nothing is, and rows. Out: a store at that path, by one rename once all of it is on the disk.
//! Never: touches what is there; leaves a part of a store at that path, whenever it is killed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{directory::sync_directory, open_sled};
use crate::{OpenError, Store};

/// What is appended to the path while the store is made.
const MAKING: &str = ".restoring";

/// A store that is not in its place yet.
pub struct NewStore {
    store: Arc<dyn Store>,
    making: PathBuf,
    path: PathBuf,
}

impl NewStore {
    /// Begins a store that shall be at `path`, where nothing or an empty directory is. Rows go into [`NewStore::store`];
    /// what an earlier attempt left is removed. Whoever calls sees to it that nobody else does at the same time.
    ///
    /// # Errors
    /// Something is at `path`, or the store beside it cannot be made.
    pub async fn begin(path: &Path, mac_key: [u8; 32]) -> Result<Self, OpenError> {
        check_empty(path)?;
        let making = making(path);
        match fs::remove_dir_all(&making) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&making, &error)),
            _ => {}
        }
        let store = open_sled(&making, mac_key).await?;
        Ok(Self { store, making, path: path.to_owned() })
    }

    /// Whether a store was begun for `path` and neither finished nor given up: its rows were to be restored.
    pub fn was_interrupted(path: &Path) -> bool {
        making(path).symlink_metadata().is_ok()
    }

    /// The store, to be filled.
    pub fn store(&self) -> &dyn Store {
        self.store.as_ref()
    }

    /// Puts the store into its place; it is closed, whole and on the disk when this returns.
    ///
    /// # Errors
    /// Something came to be there meanwhile, or the disk fails. Nothing is in its place then.
    pub fn finish(self) -> Result<(), OpenError> {
        let Self { store, making, path } = self;
        // The last handle: what was written is flushed and the engine closed when it is gone.
        drop(store);
        let moved = || {
            sync_directory(&making)?;
            // Takes the place of an empty directory, and of nothing else (rename(2)).
            fs::rename(&making, &path)?;
            sync_directory(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))
        };
        moved().map_err(|error| match error.kind() {
            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
                OpenError::NotEmpty { path: path.clone() }
            }
            _ => failed(&path, &error),
        })
    }

    /// Gives it up.
    ///
    /// # Errors
    /// What was made cannot be removed; the next attempt tries again.
    pub fn abandon(self) -> Result<(), OpenError> {
        let Self { store, making, .. } = self;
        drop(store);
        fs::remove_dir_all(&making).map_err(|error| failed(&making, &error))
    }
}

fn making(path: &Path) -> PathBuf {
    let mut making = path.as_os_str().to_owned();
    making.push(MAKING);
    making.into()
}

fn check_empty(path: &Path) -> Result<(), OpenError> {
    match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(OpenError::NotEmpty { path: path.to_owned() })
        }
        Err(error) => Err(failed(path, &error)),
        Ok(entries) => match entries.count() {
            0 => Ok(()),
            _ => Err(OpenError::NotEmpty { path: path.to_owned() }),
        },
    }
}

fn failed(path: &Path, error: &io::Error) -> OpenError {
    OpenError::Io { path: path.to_owned(), detail: error.to_string() }
}
