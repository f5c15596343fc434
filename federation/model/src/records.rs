//! The records that a cluster holds, in order of arrival: a list that is shared with readers as it grows.
//!
//! In: records as they are taken, and as a fork makes them void. Out: copies that cost nothing and never change.
//! Never: gives a number twice.

use rpds::RedBlackTreeMapSync;

use crate::{Authentic, Record};

/// Records by order of arrival. A copy shares everything with its original, and each goes on by itself.
#[derive(Clone, Debug, Default)]
pub struct Records {
    held: RedBlackTreeMapSync<u64, Authentic<Record>>,
    next: u64,
    removed: u64,
}

impl Records {
    /// Appends a record; its arrival, by which it is found.
    pub(crate) fn push(&mut self, record: Authentic<Record>) -> u64 {
        let arrival = self.next;
        self.held.insert_mut(arrival, record);
        self.next += 1;
        arrival
    }

    pub(crate) fn remove(&mut self, arrival: u64) -> Option<Authentic<Record>> {
        let record = self.held.get(&arrival).cloned()?;
        self.held.remove_mut(&arrival);
        self.removed += 1;
        Some(record)
    }

    pub fn get(&self, arrival: u64) -> Option<&Authentic<Record>> {
        self.held.get(&arrival)
    }

    /// In order of arrival.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Authentic<Record>> {
        self.held.values()
    }

    /// The records from the `arrival`-th on.
    pub fn since(&self, arrival: u64) -> impl Iterator<Item = &Authentic<Record>> {
        self.held.range(arrival..).map(|(_, record)| record)
    }

    /// The newest that is held.
    pub fn last(&self) -> Option<&Authentic<Record>> {
        self.held.last().map(|(_, record)| record)
    }

    /// The arrival of whatever comes next.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// How many records went again. A reader that sees another figure than before reads the whole list anew.
    pub fn removed(&self) -> u64 {
        self.removed
    }

    pub fn len(&self) -> usize {
        self.held.size()
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

impl FromIterator<Authentic<Record>> for Records {
    fn from_iter<I: IntoIterator<Item = Authentic<Record>>>(records: I) -> Self {
        let mut list = Self::default();
        for record in records {
            list.push(record);
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Writer;

    #[test]
    fn a_copy_stays_as_it_was_while_the_list_goes_on() {
        let (mut east, founding) = Writer::found();
        let mut list: Records = [founding, east.admit(1, false), east.admit(2, false)].into_iter().collect();
        let copy = list.clone();
        let gone = list.remove(1).expect("held");
        assert!(list.remove(1).is_none() && list.get(1).is_none());
        assert_eq!(list.push(gone.clone()), 3, "no number is given twice");
        assert_eq!((list.len(), list.removed(), list.next()), (3, 1, 4));
        assert_eq!((copy.len(), copy.removed(), copy.next()), (3, 0, 3));
        let ids = |list: &Records, from| list.since(from).map(Authentic::<Record>::id).collect::<Vec<_>>();
        assert_eq!(ids(&list, 2), vec![copy.get(2).expect("held").id(), gone.id()]);
        assert_eq!(ids(&copy, 1), vec![gone.id(), copy.get(2).expect("held").id()]);
        assert_eq!(copy.last().map(Authentic::<Record>::id), copy.get(2).map(Authentic::<Record>::id));
        assert!(Records::default().is_empty() && Records::default().last().is_none());
    }
}
