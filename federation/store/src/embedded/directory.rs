//! The directory: who may read it, who holds it, and where it may lie.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::{
    sys::statfs::{self, FsType},
    unistd::Uid,
};

use crate::OpenError;

/// Filesystems that do not keep locks or flushes; numbers from linux/magic.h.
const REMOTE: [(i64, &str); 4] = [(0x6969, "NFS"), (0x517b, "SMB"), (0xff53_4d42, "CIFS"), (0xfe53_4d42, "SMB2")];
const BTRFS: i64 = 0x9123_683e;

/// The paths of one store.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Makes the directory if it is not there, and checks that nobody else can reach into it.
    pub(super) fn prepare(path: &Path) -> Result<Self, OpenError> {
        let here = Self { path: path.to_owned() };
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| here.io(&error))?;
                here.sync_parent()?;
            }
            Err(error) => return Err(here.io(&error)),
            Ok(_) => {}
        }
        check_directory(path)?;
        here.check_filesystem()?;
        Ok(here)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn rows(&self) -> PathBuf {
        self.path.join("rows")
    }

    /// Where a new store is made, before it is renamed to [`Directory::rows`].
    pub(super) fn rows_new(&self) -> PathBuf {
        self.path.join("rows.new")
    }

    pub(super) fn head(&self) -> PathBuf {
        self.path.join("head")
    }

    pub(super) fn head_new(&self) -> PathBuf {
        self.path.join("head.new")
    }

    /// Takes the lock, which ends with the returned file, and so with the process too.
    pub(super) fn lock(&self) -> Result<File, OpenError> {
        let path = self.path.join("lock");
        let mut file = open_private(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let mut text = String::new();
                let holder = file.take(20).read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(OpenError::Locked { path: self.path.clone(), holder });
            }
            Err(fs::TryLockError::Error(error)) => return Err(self.io(&error)),
        }
        // For people only: what counts is the lock.
        let told = file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0)));
        told.and_then(|_| writeln!(file, "{}", std::process::id())).map_err(|error| self.io(&error))?;
        Ok(file)
    }

    /// Checks the engine's directory and makes its files ours alone: the engine makes them 0644, and a kill may come
    /// before they are narrowed.
    pub(super) fn close_rows(&self) -> Result<(), OpenError> {
        check_directory(&self.rows())?;
        self.close_files(&self.rows(), true)
    }

    fn close_files(&self, directory: &Path, descend: bool) -> Result<(), OpenError> {
        for entry in fs::read_dir(directory).map_err(|error| self.io(&error))? {
            let path = entry.map_err(|error| self.io(&error))?.path();
            let metadata = fs::symlink_metadata(&path).map_err(|error| self.io(&error))?;
            let kind = metadata.file_type();
            let special = kind.is_symlink() || kind.is_fifo() || kind.is_socket() || kind.is_char_device();
            if special || kind.is_block_device() || metadata.uid() != Uid::effective().as_raw() {
                return Err(refused(&path, "is a link, no file, or owned by another user", "remove it"));
            }
            if metadata.mode() & 0o077 != 0 {
                let mode = if kind.is_dir() { 0o700 } else { 0o600 };
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(|error| self.io(&error))?;
            }
            if kind.is_dir() && descend {
                self.close_files(&path, false)?;
            }
        }
        Ok(())
    }

    /// Makes creations and renames in the store's directory durable.
    pub(super) fn sync(&self) -> Result<(), OpenError> {
        sync_directory(&self.path).map_err(|error| self.io(&error))
    }

    fn sync_parent(&self) -> Result<(), OpenError> {
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync_directory(parent),
            _ => sync_directory(Path::new(".")),
        }
        .map_err(|error| self.io(&error))
    }

    fn check_filesystem(&self) -> Result<(), OpenError> {
        let FsType(found) = match statfs::statfs(&self.path) {
            Ok(stat) => stat.filesystem_type(),
            Err(errno) => return Err(self.io(&errno.into())),
        };
        #[allow(clippy::unnecessary_cast, reason = "the width of f_type differs between platforms")]
        let found = found as i64;
        if let Some((_, filesystem)) = REMOTE.iter().find(|(magic, _)| *magic == found) {
            return Err(OpenError::Filesystem { path: self.path.clone(), filesystem });
        }
        if found == BTRFS {
            tracing::warn!(path = %self.path.display(), "store lies on btrfs, where small synced writes are slow");
        }
        Ok(())
    }

    pub(super) fn io(&self, error: &io::Error) -> OpenError {
        OpenError::Io { path: self.path.clone(), detail: error.to_string() }
    }
}

/// Opens a file of ours for reading and writing, or makes it with mode 0600; refuses links, and files of others or
/// that others may read.
pub(super) fn open_private(path: &Path) -> Result<File, OpenError> {
    let options = |create| {
        OpenOptions::new().read(true).write(true).create(create).mode(0o600).custom_flags(NO_FOLLOW).open(path)
    };
    let file = options(true).map_err(|error| match error.raw_os_error() {
        Some(nix::libc::ELOOP) => refused(path, "is a symbolic link", "remove it"),
        _ => OpenError::Io { path: path.to_owned(), detail: error.to_string() },
    })?;
    let metadata =
        file.metadata().map_err(|error| OpenError::Io { path: path.to_owned(), detail: error.to_string() })?;
    if !metadata.is_file() || metadata.nlink() != 1 {
        return Err(refused(path, "is no plain file or has a second name", "remove it"));
    }
    check_owner(path, &metadata, 0o600)?;
    Ok(file)
}

const NO_FOLLOW: i32 = nix::libc::O_NOFOLLOW | nix::libc::O_CLOEXEC;

fn check_directory(path: &Path) -> Result<(), OpenError> {
    let metadata = fs::symlink_metadata(path)
        .map_err(|error| OpenError::Io { path: path.to_owned(), detail: error.to_string() })?;
    if metadata.file_type().is_symlink() {
        return Err(refused(path, "is a symbolic link", "name the directory itself"));
    }
    if !metadata.is_dir() {
        return Err(refused(path, "is no directory", "name a directory, or one that does not exist yet"));
    }
    check_owner(path, &metadata, 0o700)
}

fn check_owner(path: &Path, metadata: &fs::Metadata, mode: u32) -> Result<(), OpenError> {
    let own = Uid::effective().as_raw();
    if metadata.uid() != own {
        let problem = format!("belongs to uid {}, this process runs as uid {own}", metadata.uid());
        return Err(refused(path, &problem, &format!("run `chown {own} {}`", path.display())));
    }
    let found = metadata.mode() & 0o7777;
    if found & 0o077 != 0 {
        let problem = format!("can be reached by other users (mode {found:04o})");
        return Err(refused(path, &problem, &format!("run `chmod {mode:04o} {}`", path.display())));
    }
    Ok(())
}

fn refused(path: &Path, problem: &str, fix: &str) -> OpenError {
    OpenError::Permissions { path: path.to_owned(), problem: problem.to_owned(), fix: fix.to_owned() }
}

/// Makes creations, removals and renames in a directory durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
