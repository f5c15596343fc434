//! Opening: every step can be interrupted at any instant and is then done again.
//!
//! A new store is made in `rows.new` and renamed when it is whole; the head follows. So: no rows and no head is a new
//! store; rows that were never written to and no head is one whose making was interrupted; all else without a head,
//! or with a head and no rows, is damage.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::Path,
};

use crate::{Damage, Kind, OpenError, Revision};

use super::{
    directory::{Directory, open_private, sync_directory},
    engine::{Engine, EngineError, snapshots},
    head::{Found, Head},
    seal::{Sealer, StoreId},
    table::Table,
};

/// A directory that is ours until this is dropped, with what stays when the engine is opened anew.
pub(super) struct Session {
    pub(super) directory: Directory,
    pub(super) sealer: Sealer,
    pub(super) head: HeadState,
    _lock: File,
}

/// Whether there is a head to compare with.
pub(super) enum HeadState {
    Sound(Head),
    /// Not there: right only for a store that was never written to.
    Missing,
    Unreadable(&'static str),
}

/// The engine, open, and what was found in it.
pub(super) struct Attached {
    pub(super) engine: Engine,
    pub(super) table: Table,
    pub(super) damage: Vec<Damage>,
}

impl Session {
    /// Takes the directory, and makes a store in it if there is none.
    pub(super) fn begin(path: &Path, key: &[u8; 32]) -> Result<Self, OpenError> {
        let directory = Directory::prepare(path)?;
        let lock = directory.lock()?;
        let sealer = Sealer::new(key);
        let head = read_head(&directory, &sealer)?;
        let there = |path: &Path| path.symlink_metadata().is_ok();
        if !there(&directory.rows()) {
            match head {
                HeadState::Missing => make_rows(&directory, &sealer)?,
                _ => return Err(damaged(&directory, "the directory \"rows\" is gone")),
            }
        }
        if there(&directory.rows_new()) {
            fs::remove_dir_all(directory.rows_new()).map_err(|error| directory.io(&error))?;
        }
        directory.close_rows()?;
        Ok(Self { directory, sealer, head, _lock: lock })
    }

    /// Opens the engine and checks all that is in it, if need be a second time without the engine's snapshot.
    pub(super) fn attach(&mut self) -> Result<Attached, EngineError> {
        let first = match self.attach_once() {
            Ok(attached) if attached.damage.is_empty() => {
                self.drop_old_snapshots();
                return Ok(attached);
            }
            Err(error @ EngineError::Io(_)) => return Err(error),
            other => other,
        };
        if snapshots(&self.directory.rows(), None)?.is_empty() {
            return first;
        }
        match first {
            Ok(attached) => {
                tracing::warn!(damage = ?attached.damage, "store is damaged, trying without the engine's snapshot");
                attached.engine.close();
            }
            Err(error) => tracing::warn!(%error, "store cannot be opened, trying without the engine's snapshot"),
        }
        // Renamed, not removed: whoever examines the damage may want them.
        for path in snapshots(&self.directory.rows(), None)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            fs::rename(&path, path.with_file_name(format!("{OLD_SNAPSHOT}{name}")))?;
        }
        self.attach_once()
    }

    fn attach_once(&mut self) -> Result<Attached, EngineError> {
        let engine = Engine::open(&self.directory.rows())?;
        match self.load(&engine) {
            Ok((table, damage)) => Ok(Attached { engine, table, damage }),
            Err(error) => {
                engine.close();
                Err(error)
            }
        }
    }

    fn load(&mut self, engine: &Engine) -> Result<(Table, Vec<Damage>), EngineError> {
        // The engine has just made files.
        self.directory.close_rows().map_err(|error| EngineError::Io(error.to_string()))?;
        let store = match &self.head {
            HeadState::Sound(head) => Some(head.store()),
            HeadState::Missing | HeadState::Unreadable(_) => None,
        };
        let (table, mut damage) = Table::load(engine, &self.sealer, store)?;
        let unread = damage.iter().any(|damage| matches!(damage, Damage::Manifest { .. }));
        match &mut self.head {
            HeadState::Sound(head) if head.revision() > table.revision() => {
                if !unread {
                    damage.push(Damage::RolledBack { expected: head.revision(), found: table.revision() });
                }
            }
            HeadState::Sound(head) => {
                if damage.is_empty() {
                    // Also mends a slot that was torn, and the sync that a killed process owed.
                    head.write(table.revision(), &self.sealer)?;
                    head.sync()?;
                }
            }
            HeadState::Missing if damage.is_empty() && never_written(&table) => {
                self.head = HeadState::Sound(make_head(&self.directory, table.store(), &self.sealer)?);
            }
            HeadState::Missing => damage.push(Damage::Head { detail: "it is missing".to_owned() }),
            HeadState::Unreadable(detail) => damage.push(Damage::Head { detail: (*detail).to_owned() }),
        }
        Ok((table, damage))
    }

    fn drop_old_snapshots(&self) {
        let Ok(entries) = fs::read_dir(self.directory.rows()) else { return };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(OLD_SNAPSHOT) {
                // Left over it does no harm; the next start tries again.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// In front of the name of a snapshot that was set aside.
const OLD_SNAPSHOT: &str = "old-";

fn read_head(directory: &Directory, sealer: &Sealer) -> Result<HeadState, OpenError> {
    let path = directory.head();
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HeadState::Missing),
        Err(error) => return Err(directory.io(&error)),
        Ok(_) => {}
    }
    match Head::read(open_private(&path)?, sealer).map_err(|error| directory.io(&error))? {
        Found::Sound(head) => Ok(HeadState::Sound(head)),
        Found::Unreadable(detail) => Ok(HeadState::Unreadable(detail)),
        Found::OtherKey => Err(OpenError::WrongKey { path: directory.path().to_owned() }),
    }
}

fn never_written(table: &Table) -> bool {
    table.revision() == Revision(0) && Kind::ALL.into_iter().all(|kind| table.count(kind) == 0)
}

fn make_rows(directory: &Directory, sealer: &Sealer) -> Result<(), OpenError> {
    let path = directory.rows_new();
    let made = || -> Result<(), EngineError> {
        if path.symlink_metadata().is_ok() {
            fs::remove_dir_all(&path)?;
        }
        DirBuilder::new().mode(0o700).create(&path)?;
        let store = StoreId::random().ok_or_else(|| EngineError::Io("no randomness".to_owned()))?;
        let engine = Engine::open(&path)?;
        let written = engine.write(Table::blank(store, sealer));
        engine.close();
        written?;
        for entry in fs::read_dir(&path)? {
            File::open(entry?.path())?.sync_all()?;
        }
        sync_directory(&path)?;
        fs::rename(&path, directory.rows())?;
        Ok(())
    };
    made().map_err(|error| failed(directory, &error))?;
    directory.sync()
}

fn make_head(directory: &Directory, store: StoreId, sealer: &Sealer) -> Result<Head, EngineError> {
    let path = directory.head_new();
    let file = open_private(&path).map_err(|error| EngineError::Io(error.to_string()))?;
    let head = Head::create(file, store, Revision(0), sealer)?;
    fs::rename(&path, directory.head())?;
    sync_directory(directory.path())?;
    Ok(head)
}

/// An engine that does not open.
pub(super) fn failed(directory: &Directory, error: &EngineError) -> OpenError {
    match error {
        EngineError::Io(detail) => OpenError::Io { path: directory.path().to_owned(), detail: detail.clone() },
        EngineError::Corrupt(_) | EngineError::Panicked(_) => damaged(directory, &error.to_string()),
    }
}

fn damaged(directory: &Directory, detail: &str) -> OpenError {
    OpenError::Damaged { path: directory.path().to_owned(), detail: detail.to_owned() }
}
