//! A persistent table of what is found by a number that is mixed well: a trie of wide branches and short leaves.
//!
//! In: values under 64-bit numbers, several under one if they collide. Out: lookups that touch two or three lines of
//! memory that are not always cached, and copies that share all but the path to what is changed afterwards. A map from a
//! library takes about half as long again, since each of its entries lies by itself; judging is all lookups.

use std::sync::Arc;

/// Bits of a number that choose among the children of a branch.
const BITS: u32 = 6;
const WIDTH: usize = 1 << BITS;
/// Most values in a leaf, unless their numbers agree in all bits.
const LEAF_MAX: usize = 48;

/// Values by number.
#[derive(Clone, Debug)]
pub(super) struct Table<V> {
    root: Node<V>,
    len: usize,
}

#[derive(Clone, Debug)]
enum Node<V> {
    Leaf(Arc<[(u64, V)]>),
    Branch(Arc<[Node<V>; WIDTH]>),
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        Self { root: Node::Leaf(Arc::from([])), len: 0 }
    }
}

impl<V: Clone> Table<V> {
    /// The values under a number.
    pub(super) fn find(&self, number: u64) -> impl Iterator<Item = &V> {
        let (mut node, mut bits) = (&self.root, number);
        let leaf: &[(u64, V)] = loop {
            match node {
                Node::Leaf(leaf) => break leaf,
                Node::Branch(children) => {
                    // Six bits are always within.
                    let Some(child) = children.get(bits as usize % WIDTH) else { break &[] };
                    (node, bits) = (child, bits >> BITS);
                }
            }
        };
        leaf.iter().filter(move |(held, _)| *held == number).map(|(_, value)| value)
    }

    pub(super) fn put(&mut self, number: u64, value: V) {
        self.root.put(0, number, value);
        self.len += 1;
    }

    /// Takes out the first value under a number of which `is` holds.
    pub(super) fn take(&mut self, number: u64, is: impl Fn(&V) -> bool) -> Option<V> {
        if !self.find(number).any(&is) {
            return None;
        }
        self.len -= 1;
        self.root.take(number, number, &is)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &V> {
        let mut waiting = vec![&self.root];
        let leaves = std::iter::from_fn(move || {
            loop {
                match waiting.pop()? {
                    Node::Leaf(leaf) => return Some(leaf),
                    Node::Branch(children) => waiting.extend(children.iter()),
                }
            }
        });
        leaves.flat_map(|leaf| leaf.iter().map(|(_, value)| value))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<V: Clone> Node<V> {
    fn put(&mut self, depth: u32, number: u64, value: V) {
        match self {
            Self::Branch(children) => {
                if let Some(child) = Arc::make_mut(children).get_mut(slot(number, depth)) {
                    child.put(depth + 1, number, value);
                }
            }
            Self::Leaf(leaf) if leaf.len() < LEAF_MAX || depth * BITS >= u64::BITS => {
                *leaf = leaf.iter().cloned().chain([(number, value)]).collect();
            }
            Self::Leaf(leaf) => {
                let mut parts: [Vec<(u64, V)>; WIDTH] = std::array::from_fn(|_| Vec::new());
                for entry in leaf.iter().cloned().chain([(number, value)]) {
                    if let Some(part) = parts.get_mut(slot(entry.0, depth)) {
                        part.push(entry);
                    }
                }
                *self = Self::Branch(Arc::new(parts.map(|part| Self::Leaf(part.into()))));
            }
        }
    }

    fn take(&mut self, bits: u64, number: u64, is: &impl Fn(&V) -> bool) -> Option<V> {
        match self {
            Self::Branch(children) => {
                Arc::make_mut(children).get_mut(bits as usize % WIDTH)?.take(bits >> BITS, number, is)
            }
            Self::Leaf(leaf) => {
                let at = leaf.iter().position(|(held, value)| *held == number && is(value))?;
                let taken = leaf.get(at).map(|(_, value)| value.clone());
                let rest = leaf.iter().enumerate().filter(|(index, _)| *index != at);
                *leaf = rest.map(|(_, entry)| entry.clone()).collect();
                taken
            }
        }
    }
}

/// Which child of a branch at `depth` a number belongs to; beyond its last bit the first.
fn slot(number: u64, depth: u32) -> usize {
    number.checked_shr(depth * BITS).unwrap_or(0) as usize % WIDTH
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::testing::Dice;

    /// Numbers that agree in many bits, or in all.
    fn number(dice: &mut Dice) -> u64 {
        match dice.below(4) {
            0 => dice.roll(),
            1 => dice.below(4) as u64,
            2 => (dice.below(3000) as u64) << 40,
            _ => dice.below(3000) as u64,
        }
    }

    #[test]
    fn it_holds_what_a_plain_map_holds_and_copies_stay_as_they_were() {
        for seed in 0..20 {
            let mut dice = Dice(seed);
            let mut table: Table<u64> = Table::default();
            let mut plain: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
            let mut copies = Vec::new();
            for step in 0..4_000 {
                let number = number(&mut dice);
                if dice.one_in(3) {
                    let of = plain.entry(number).or_default();
                    let wanted = if of.is_empty() { None } else { Some(of.remove(0)) };
                    assert_eq!(table.take(number, |value| wanted.is_none_or(|wanted| *value == wanted)), wanted);
                } else {
                    table.put(number, step);
                    plain.entry(number).or_default().push(step);
                }
                if dice.one_in(1_000) {
                    copies.push((table.clone(), plain.clone()));
                }
            }
            copies.push((table, plain));
            for (table, plain) in copies {
                for (number, values) in &plain {
                    assert_eq!(table.find(*number).copied().collect::<Vec<_>>(), *values, "seed {seed}");
                }
                let (mut all, mut wanted): (Vec<u64>, Vec<u64>) =
                    (table.iter().copied().collect(), plain.into_values().flatten().collect());
                all.sort_unstable();
                wanted.sort_unstable();
                assert_eq!(all, wanted, "seed {seed}");
                assert_eq!(table.is_empty(), wanted.is_empty());
                assert_eq!(table.find(u64::MAX / 3).count(), 0);
            }
        }
    }

    #[test]
    fn a_table_that_was_emptied_is_empty() {
        let mut table: Table<u64> = Table::default();
        (0..200).for_each(|number| table.put(7, number));
        assert!((0..200).all(|number| table.take(7, |value| *value == number) == Some(number)));
        assert!(table.is_empty() && table.iter().next().is_none() && table.take(7, |_| true).is_none());
    }
}
