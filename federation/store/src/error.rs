//! What can go wrong: opening, changing, and damage.

use std::path::PathBuf;

use crate::{Expect, Key, Kind, Revision};

/// Something in the store is not what was written. It was seen at the start, or by a read; it is never passed over.
///
/// A store with damage takes no change and answers no read of a kind that is concerned, so that damage is not covered
/// up and no deny goes missing unseen: the caller serves deny-only and tells a person.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// The row is there, its content is not what was written.
    #[error("row {key} was altered: {detail}")]
    Row { key: Key, detail: String },
    /// Rows of this kind are missing, stale or too many.
    #[error("rows of kind {kind} are not those last written: {expected} were, {found} sound ones are there")]
    Rows { kind: Kind, expected: u64, found: u64 },
    /// The whole store is an earlier one, or its newest part is gone.
    #[error("store is at revision {found}, but {expected} was written before: newer rows are gone")]
    RolledBack { expected: Revision, found: Revision },
    /// Something that this version never wrote.
    #[error("store holds something that was never written: {detail}")]
    Stray { detail: String },
    /// The list of what must be there cannot be trusted.
    #[error("manifest of the store: {detail}")]
    Manifest { detail: String },
    /// The file that tells an earlier store from the newest one cannot be trusted.
    #[error("head of the store: {detail}")]
    Head { detail: String },
}

impl Damage {
    /// Short fixed word for metrics and audit.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Row { .. } => "row_altered",
            Self::Rows { .. } => "rows_missing",
            Self::RolledBack { .. } => "rolled_back",
            Self::Stray { .. } => "stray",
            Self::Manifest { .. } => "manifest",
            Self::Head { .. } => "head",
        }
    }

    /// Whether reads of `kind` can no longer be trusted.
    pub fn concerns(&self, kind: Kind) -> bool {
        match self {
            Self::Row { key, .. } => key.kind == kind,
            Self::Rows { kind: damaged, .. } => *damaged == kind,
            Self::RolledBack { .. } | Self::Stray { .. } | Self::Manifest { .. } | Self::Head { .. } => true,
        }
    }
}

/// Why a store does not do what it was asked.
///
/// All but [`StoreError::Uncertain`] mean that nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Somebody else changed the row first: read it again and decide anew.
    #[error("row {key} is not as expected: {expected:?}, found {found:?}")]
    Conflict { key: Key, expected: Expect, found: Option<Revision> },
    #[error("row {0} stands twice in one apply")]
    Twice(Key),
    #[error("{what} has {bytes} bytes, at most {max} are allowed")]
    TooLong { what: &'static str, bytes: usize, max: usize },
    #[error("row key has an empty name")]
    Unnamed,
    #[error("apply has {count} changes, at most {max} are allowed")]
    TooMany { count: usize, max: usize },
    /// Reads of this kind, and every write, are refused: see [`Damage`].
    #[error("store is damaged and read-only: {0}")]
    Damaged(Damage),
    /// Works again by itself when there is room.
    #[error("disk is full: {free} bytes free at {path}, {needed} needed; nothing was changed")]
    Full { path: PathBuf, free: u64, needed: u64 },
    /// The disk or the engine failed; it is tried anew with the next request.
    #[error("store cannot be used now, nothing was changed: {detail}")]
    Unavailable { detail: String },
    /// As above, but the change may be on the disk nevertheless: read before you write again.
    #[error("store failed and the change may have been made or not: {detail}")]
    Uncertain { detail: String },
    #[error("store is closed")]
    Closed,
}

impl StoreError {
    /// Short fixed word for metrics and audit.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Conflict { .. } => "conflict",
            Self::Twice(_) => "twice",
            Self::TooLong { .. } => "too_long",
            Self::Unnamed => "unnamed",
            Self::TooMany { .. } => "too_many",
            Self::Damaged(_) => "damaged",
            Self::Full { .. } => "full",
            Self::Unavailable { .. } => "unavailable",
            Self::Uncertain { .. } => "uncertain",
            Self::Closed => "closed",
        }
    }
}

/// Why a store cannot be opened. Nothing was removed or rewritten.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    #[error("store {path} is in use by another process{}: stop it first, one store serves one process",
        .holder.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Locked { path: PathBuf, holder: Option<u32> },
    #[error("{path} {problem}: {fix}")]
    Permissions { path: PathBuf, problem: String, fix: String },
    #[error("{path} is on {filesystem}, which does not keep the promises that a store needs: use a local disk")]
    Filesystem { path: PathBuf, filesystem: &'static str },
    #[error("store {path} was sealed with another key: give the key that made it")]
    WrongKey { path: PathBuf },
    #[error("store {path} is damaged and cannot be opened ({detail}): restore it, or move it aside and join again")]
    Damaged { path: PathBuf, detail: String },
    #[error("{path} holds something already, and a store is only made where nothing is: move it aside first")]
    NotEmpty { path: PathBuf },
    #[error("store {path}: {detail}")]
    Io { path: PathBuf, detail: String },
}

impl OpenError {
    /// Short fixed word for metrics and audit.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "locked",
            Self::Permissions { .. } => "permissions",
            Self::Filesystem { .. } => "filesystem",
            Self::WrongKey { .. } => "wrong_key",
            Self::Damaged { .. } => "damaged",
            Self::NotEmpty { .. } => "not_empty",
            Self::Io { .. } => "io",
        }
    }
}
