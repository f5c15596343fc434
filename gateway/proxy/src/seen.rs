//! Connection ids that were presented here, so that a captured greeting does not work twice.
//!
//! A replay gains nothing but a handshake that it cannot finish (the hello's key share is not the thief's); this keeps
//! it from costing a dial. Two generations, so that each id is kept for at least one and at most two header windows.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use federation_model::{ConnectionId, Timestamp};

use crate::{connections::Direction, limits::SEEN_MAX};

/// How long a header can be presented: five minutes of clock difference either way.
const WINDOW: Duration = Duration::from_secs(600);

/// A process that both passes on and serves meets one id twice, rightly.
type Key = (ConnectionId, Direction);

#[derive(Default)]
pub(crate) struct Seen(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    since: Timestamp,
    newer: HashSet<Key>,
    older: HashSet<Key>,
}

impl Seen {
    /// Takes note of an id whose signature was verified; `false` if it was here before.
    ///
    /// Past [`SEEN_MAX`] ids the older ones are forgotten early.
    pub(crate) fn first(&self, id: ConnectionId, direction: Direction, now: Timestamp) -> bool {
        let key = (id, direction);
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.since(held.since) >= WINDOW || held.newer.len() >= SEEN_MAX / 2 {
            held.older = std::mem::take(&mut held.newer);
            held.since = now;
        }
        !held.older.contains(&key) && held.newer.insert(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u32) -> ConnectionId {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        ConnectionId(bytes)
    }

    #[test]
    fn an_id_works_once_while_its_header_could_be_presented() {
        let seen = Seen::default();
        let start = Timestamp::from_secs(1_800_000_000);
        assert!(seen.first(id(1), Direction::Inbound, start));
        assert!(!seen.first(id(1), Direction::Inbound, start));
        assert!(seen.first(id(1), Direction::Passage, start));
        assert!(!seen.first(id(1), Direction::Inbound, start.after(Duration::from_secs(599))));
        assert!(seen.first(id(2), Direction::Inbound, start.after(Duration::from_secs(599))));
        assert!(!seen.first(id(2), Direction::Inbound, start.after(Duration::from_secs(1198))));
    }

    #[test]
    fn memory_is_bounded() {
        let seen = Seen::default();
        let now = Timestamp::from_secs(1_800_000_000);
        for n in 0..(SEEN_MAX as u32 * 2) {
            assert!(seen.first(id(n), Direction::Inbound, now));
        }
        let held = seen.0.lock().unwrap();
        assert!(held.newer.len() + held.older.len() <= SEEN_MAX);
    }
}
