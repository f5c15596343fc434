//! The trait that every store has, and the bounds that all of them hold.

use std::{collections::HashSet, pin::Pin};

use crate::{Change, Damage, Key, Kind, Revision, Row, StoreError};

/// A future that can be named, sent and kept in a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Longest name of a row in bytes.
pub const NAME_BYTES_MAX: usize = 512;
/// Longest value of a row in bytes: four times the longest record.
pub const VALUE_BYTES_MAX: usize = 256 * 1024;
/// Most changes in one apply: a joiner takes the whole law in one.
pub const CHANGES_MAX: usize = 256 * 1024;
/// Most bytes of names and values in one apply.
pub const APPLY_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Rows under keys, changed all or nothing.
///
/// Reads see every apply that returned before they began. Whoever drops a future of `apply` leaves open whether the
/// change is made.
pub trait Store: Send + Sync + 'static {
    /// The row under `key`.
    ///
    /// # Errors
    /// Damage that concerns the kind; a store that cannot be read now.
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Row>, StoreError>>;

    /// Every row of `kind` whose name starts with `prefix`, in the order of names.
    ///
    /// # Errors
    /// As [`Store::get`]: never a part of the rows.
    fn list<'a>(&'a self, kind: Kind, prefix: &'a [u8]) -> BoxFuture<'a, Result<Vec<Row>, StoreError>>;

    /// Every row of every kind as of one moment, in the order of keys, and the revision of that moment. No apply is
    /// between two of them.
    ///
    /// # Errors
    /// Any damage: a copy of a damaged store is none. A store that cannot be read now.
    fn all(&self) -> BoxFuture<'_, Result<(Revision, Vec<Row>), StoreError>>;

    /// Makes all changes or none; they are on the disk when it returns. No changes: the current revision.
    ///
    /// # Errors
    /// A row that is not as expected, a bound, damage, a full or failing disk.
    fn apply(&self, changes: Vec<Change>) -> BoxFuture<'_, Result<Revision, StoreError>>;

    /// What is not as it was written; empty when all is well. At most 1,000 entries.
    fn damaged(&self) -> Vec<Damage>;
}

/// Checks what does not depend on the rows: bounds, and that no row stands twice.
pub(crate) fn check(changes: &[Change]) -> Result<(), StoreError> {
    if changes.len() > CHANGES_MAX {
        return Err(StoreError::TooMany { count: changes.len(), max: CHANGES_MAX });
    }
    let mut keys = HashSet::with_capacity(changes.len());
    let mut bytes = 0;
    for change in changes {
        check_name(&change.key().name)?;
        at_most("row value", change.value_bytes(), VALUE_BYTES_MAX)?;
        bytes += change.key().name.len() + change.value_bytes();
        at_most("apply", bytes, APPLY_BYTES_MAX)?;
        if !keys.insert(change.key()) {
            return Err(StoreError::Twice(change.key().clone()));
        }
    }
    Ok(())
}

/// A name has 1 to [`NAME_BYTES_MAX`] bytes.
pub(crate) fn check_name(name: &[u8]) -> Result<(), StoreError> {
    if name.is_empty() {
        return Err(StoreError::Unnamed);
    }
    at_most("row name", name.len(), NAME_BYTES_MAX)
}

fn at_most(what: &'static str, bytes: usize, max: usize) -> Result<(), StoreError> {
    if bytes > max { Err(StoreError::TooLong { what, bytes, max }) } else { Ok(()) }
}
