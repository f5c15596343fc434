//! A store in memory: for tests, and for programs that may forget. Durable until the process ends.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    BoxFuture, Change, Damage, Key, Kind, Revision, Row, Store, StoreError,
    store::{check, check_name},
};

/// An empty store that lives as long as the process.
pub fn memory() -> Arc<dyn Store> {
    Arc::new(Memory::default())
}

#[derive(Default)]
struct Memory(Mutex<State>);

#[derive(Default)]
struct State {
    rows: BTreeMap<Key, (Revision, Vec<u8>)>,
    revision: Revision,
}

impl Memory {
    /// A panic elsewhere cannot leave the rows half changed: every change below is made after every check.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn apply(&mut self, changes: Vec<Change>) -> Result<Revision, StoreError> {
        check(&changes)?;
        for change in &changes {
            let found = self.rows.get(change.key()).map(|(revision, _)| *revision);
            if !change.expected().holds(found) {
                return Err(StoreError::Conflict { key: change.key().clone(), expected: change.expected(), found });
            }
        }
        if changes.is_empty() {
            return Ok(self.revision);
        }
        self.revision.0 += 1;
        for change in changes {
            match change {
                Change::Put { key, value, .. } => self.rows.insert(key, (self.revision, value)),
                Change::Delete { key, .. } => self.rows.remove(&key),
            };
        }
        Ok(self.revision)
    }
}

impl Store for Memory {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Row>, StoreError>> {
        Box::pin(async move {
            check_name(&key.name)?;
            let row = |(revision, value): &(Revision, Vec<u8>)| Row {
                key: key.clone(),
                value: value.clone(),
                revision: *revision,
            };
            Ok(self.state().rows.get(key).map(row))
        })
    }

    fn list<'a>(&'a self, kind: Kind, prefix: &'a [u8]) -> BoxFuture<'a, Result<Vec<Row>, StoreError>> {
        Box::pin(async move {
            let first = Key::new(kind, prefix);
            let state = self.state();
            let rows =
                state.rows.range(first..).take_while(|(key, _)| key.kind == kind && key.name.starts_with(prefix)).map(
                    |(key, (revision, value))| Row { key: key.clone(), value: value.clone(), revision: *revision },
                );
            Ok(rows.collect())
        })
    }

    fn all(&self) -> BoxFuture<'_, Result<(Revision, Vec<Row>), StoreError>> {
        Box::pin(async move {
            let state = self.state();
            let rows = state.rows.iter().map(|(key, (revision, value))| Row {
                key: key.clone(),
                value: value.clone(),
                revision: *revision,
            });
            Ok((state.revision, rows.collect()))
        })
    }

    fn apply(&self, changes: Vec<Change>) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(async move { self.state().apply(changes) })
    }

    fn damaged(&self) -> Vec<Damage> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn passes_the_battery() {
        crate::contract::run(async || super::memory()).await;
    }
}
