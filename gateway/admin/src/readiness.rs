//! Whether the program may be given work, and if not, what it waits for.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A set of named blockers; ready when there is none. A clone is another handle on the same set.
///
/// Take every blocker before the probes are served: a program that has not yet said what it waits for looks ready.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<Blockers>>);

#[derive(Debug, Default)]
struct Blockers {
    next: u64,
    names: BTreeMap<u64, &'static str>,
    notes: BTreeMap<&'static str, Vec<String>>,
}

/// Something that must happen before the program is ready. Only [`Blocker::done`] says that it did: if the task that
/// holds it dies, the program stays blocked, and `/readyz` names what never came.
#[derive(Debug)]
#[must_use = "blocks for ever unless `done` is called"]
pub struct Blocker {
    id: u64,
    readiness: Readiness,
}

impl Readiness {
    pub fn new() -> Self {
        Self::default()
    }

    /// Not ready until the blocker is done. `name` says what is awaited, in words: "first snapshot", "draining".
    pub fn block(&self, name: &'static str) -> Blocker {
        let mut blockers = self.lock();
        let id = blockers.next;
        blockers.next += 1;
        blockers.names.insert(id, name);
        Blocker { id, readiness: self.clone() }
    }

    /// What is awaited, oldest first; empty when ready.
    pub fn blocked_by(&self) -> Vec<&'static str> {
        self.lock().names.values().copied().collect()
    }

    /// What `/readyz` tells besides, under a topic: it stays ready. In place of what was said of the topic before.
    pub fn note(&self, topic: &'static str, lines: Vec<String>) {
        self.lock().notes.insert(topic, lines);
    }

    /// What was noted, in order of topic.
    pub fn notes(&self) -> Vec<String> {
        self.lock().notes.values().flatten().cloned().collect()
    }

    pub fn is_ready(&self) -> bool {
        self.lock().names.is_empty()
    }

    /// Each change is one call, so a poisoned set is still whole.
    fn lock(&self) -> MutexGuard<'_, Blockers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Blocker {
    /// What was awaited has happened.
    pub fn done(self) {
        self.readiness.lock().names.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_ready_when_the_last_blocker_is_done() {
        let readiness = Readiness::new();
        let identity = readiness.block("identity");
        let snapshot = readiness.block("first snapshot");
        assert_eq!(readiness.blocked_by(), ["identity", "first snapshot"]);
        identity.done();
        assert!(!readiness.is_ready());
        snapshot.done();
        assert!(readiness.is_ready());
    }

    #[test]
    fn a_note_is_told_until_another_of_its_topic_and_blocks_nothing() {
        let readiness = Readiness::new();
        readiness.note("freshness", vec!["east: static since 9 s".into()]);
        readiness.note("disk", vec!["nearly full".into()]);
        assert_eq!(readiness.notes(), ["nearly full", "east: static since 9 s"]);
        assert!(readiness.is_ready());
        readiness.note("freshness", Vec::new());
        assert_eq!(readiness.notes(), ["nearly full"]);
    }

    #[test]
    fn two_blockers_of_one_name_are_two() {
        let readiness = Readiness::new();
        let [first, second] = [readiness.block("listener"), readiness.block("listener")];
        first.done();
        assert_eq!(readiness.blocked_by(), ["listener"]);
        second.done();
        assert!(readiness.is_ready());
    }

    #[test]
    fn can_be_blocked_again_from_another_handle() {
        let readiness = Readiness::new();
        let draining = readiness.clone().block("draining");
        assert!(!readiness.is_ready());
        draining.done();
        assert!(readiness.is_ready());
    }

    #[test]
    fn a_task_that_dies_leaves_the_program_blocked() {
        let readiness = Readiness::new();
        let held = readiness.block("identity");
        let result = std::thread::spawn(move || {
            let _held = held;
            panic!("before it was done");
        });
        assert!(result.join().is_err());
        assert_eq!(readiness.blocked_by(), ["identity"]);
    }
}
