//! Keys, rows, and changes of rows.

use std::fmt;

use federation_model::{Audience, ClusterId, RecordId};

/// What a row is for: the first byte of its key on disk, so that each kind is one range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Who this cluster is, and its sealed keys.
    Own,
    /// Signed envelopes, as their writers signed them.
    Record,
    /// Join tokens that this cluster issued.
    JoinToken,
    /// Workload tokens that this cluster issued.
    WorkloadToken,
    /// What only this process needs: assignments, caches, settings.
    Local,
}

impl Kind {
    /// Every kind, in the order of their keys.
    pub const ALL: [Self; 5] = [Self::Own, Self::Record, Self::JoinToken, Self::WorkloadToken, Self::Local];

    /// The word in metrics, messages and backups; never changed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Record => "record",
            Self::JoinToken => "join_token",
            Self::WorkloadToken => "workload_token",
            Self::Local => "local",
        }
    }

    /// The kind of this word.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Place in [`Kind::ALL`].
    #[cfg(feature = "sled")]
    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Own => 0,
            Self::Record => 1,
            Self::JoinToken => 2,
            Self::WorkloadToken => 3,
            Self::Local => 4,
        }
    }

    /// The byte on disk; never reused for another kind.
    #[cfg(feature = "sled")]
    pub(crate) const fn byte(self) -> u8 {
        match self {
            Self::Own => 1,
            Self::Record => 2,
            Self::JoinToken => 3,
            Self::WorkloadToken => 4,
            Self::Local => 5,
        }
    }

    #[cfg(feature = "sled")]
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.byte() == byte)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Names a row.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub kind: Kind,
    /// 1 to [`crate::NAME_BYTES_MAX`] bytes; rows of a kind are listed in their order.
    pub name: Vec<u8>,
}

impl Key {
    pub fn new(kind: Kind, name: impl Into<Vec<u8>>) -> Self {
        Self { kind, name: name.into() }
    }
}

impl fmt::Display for Key {
    /// Kind and name; bytes that are no printable ASCII as `\x..`, cut after 160 characters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: String = self.name.escape_ascii().map(char::from).take(160).collect();
        write!(f, "{}:{shown}", self.kind)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Number of the apply that wrote a row: grows by one with each apply that changes something, never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A row as it is stored.
#[derive(Clone, PartialEq, Eq)]
pub struct Row {
    pub key: Key,
    pub value: Vec<u8>,
    /// Of the apply that wrote it: what [`Expect::Is`] takes.
    pub revision: Revision,
}

impl fmt::Debug for Row {
    /// Without the value, which may be a sealed key or a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Row({} @{}, {} bytes)", self.key, self.revision, self.value.len())
    }
}

/// What a change demands of the row that it replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing: the row may be there or not.
    Any,
    /// No such row.
    Absent,
    /// The row, as this apply wrote it.
    Is(Revision),
}

impl Expect {
    /// Whether a row at `found` is what was expected.
    pub fn holds(self, found: Option<Revision>) -> bool {
        match self {
            Self::Any => true,
            Self::Absent => found.is_none(),
            Self::Is(revision) => found == Some(revision),
        }
    }
}

/// One change of one row. All changes of an apply are made, or none.
#[derive(Clone, PartialEq, Eq)]
pub enum Change {
    Put { key: Key, value: Vec<u8>, expected: Expect },
    Delete { key: Key, expected: Expect },
}

impl Change {
    /// Writes the row, whatever was there.
    pub fn put(key: Key, value: impl Into<Vec<u8>>) -> Self {
        Self::Put { key, value: value.into(), expected: Expect::Any }
    }

    /// Removes the row, if it is there.
    pub fn delete(key: Key) -> Self {
        Self::Delete { key, expected: Expect::Any }
    }

    /// The same change, made only if the row is as expected.
    pub fn expecting(mut self, expectation: Expect) -> Self {
        let (Self::Put { expected, .. } | Self::Delete { expected, .. }) = &mut self;
        *expected = expectation;
        self
    }

    pub fn key(&self) -> &Key {
        let (Self::Put { key, .. } | Self::Delete { key, .. }) = self;
        key
    }

    pub fn expected(&self) -> Expect {
        let (Self::Put { expected, .. } | Self::Delete { expected, .. }) = self;
        *expected
    }

    /// The bytes of the new value; 0 for a delete.
    pub(crate) fn value_bytes(&self) -> usize {
        match self {
            Self::Put { value, .. } => value.len(),
            Self::Delete { .. } => 0,
        }
    }
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if matches!(self, Self::Put { .. }) { "put" } else { "delete" };
        write!(f, "{verb} {} ({} bytes, {:?})", self.key(), self.value_bytes(), self.expected())
    }
}

/// Where a record lies: a log's records stand together, in the order of epoch and sequence number; records that share
/// a place (their writer equivocated) are told apart by the digest.
pub fn record_key(id: &RecordId) -> Key {
    let mut name = record_prefix(&id.writer, &id.audience);
    name.extend(id.epoch.to_be_bytes());
    name.extend(id.seq.to_be_bytes());
    name.extend(id.digest.0);
    Key::new(Kind::Record, name)
}

/// What the names of all records of one log start with, and of no other.
pub fn record_prefix(writer: &ClusterId, audience: &Audience) -> Vec<u8> {
    let mut prefix = writer.as_bytes().to_vec();
    match audience {
        Audience::Law => prefix.push(0),
        Audience::All => prefix.push(1),
        Audience::Member(id) => {
            prefix.push(2);
            prefix.extend(id.as_bytes());
        }
    }
    prefix
}

/// Writer and epoch of the record whose row has this name; `None` if it is no such name.
pub fn record_epoch(name: &[u8]) -> Option<(ClusterId, u64)> {
    let writer = ClusterId::try_from(name.get(..32)?).ok()?;
    // Behind the audience: epoch, sequence number, digest.
    let (_, place) = name.get(33..)?.split_last_chunk::<48>()?;
    let (epoch, _) = place.split_first_chunk::<8>()?;
    Some((writer, u64::from_be_bytes(*epoch)))
}

#[cfg(test)]
mod tests {
    use federation_model::Digest;

    use super::*;

    fn id(byte: u8) -> ClusterId {
        ClusterId::from_digest(Digest([byte; 32]))
    }

    fn place(audience: Audience, epoch: u64, seq: u64) -> RecordId {
        RecordId { writer: id(1), audience, epoch, seq, digest: Digest([9; 32]) }
    }

    #[test]
    fn records_of_a_log_stand_in_the_order_of_epoch_and_sequence() {
        let names: Vec<_> = [(1, 1), (1, 2), (1, 255), (1, 256), (1, u64::MAX), (2, 1), (256, 1), (65_536, 1)]
            .map(|(epoch, seq)| record_key(&place(Audience::Law, epoch, seq)).name)
            .into();
        assert!(names.is_sorted(), "{names:?}");
    }

    #[test]
    fn writer_and_epoch_are_read_back_from_a_name() {
        for audience in [Audience::Law, Audience::All, Audience::Member(id(2))] {
            let name = record_key(&place(audience, 7, 9)).name;
            assert_eq!(record_epoch(&name), Some((id(1), 7)));
            assert_eq!(record_epoch(&name[..80]), None);
        }
        assert_eq!(record_epoch(b""), None);
    }

    #[test]
    fn the_prefix_of_a_log_is_that_of_no_other() {
        let audiences = [Audience::Law, Audience::All, Audience::Member(id(2)), Audience::Member(id(3))];
        for mine in audiences {
            for other in audiences {
                let key = record_key(&place(other, 1, 1));
                assert_eq!(key.name.starts_with(&record_prefix(&id(1), &mine)), mine == other);
            }
        }
    }

    #[test]
    fn equivocating_records_have_two_rows() {
        let one = place(Audience::Law, 1, 1);
        let other = RecordId { digest: Digest([8; 32]), ..one };
        assert_ne!(record_key(&one), record_key(&other));
    }

    #[test]
    fn values_stand_in_no_debug_text() {
        let change = Change::put(Key::new(Kind::Own, "self"), "top secret");
        assert!(!format!("{change:?}").contains("secret"), "{change:?}");
        let row = Row { key: Key::new(Kind::Own, "self"), value: b"top secret".to_vec(), revision: Revision(3) };
        assert_eq!(format!("{row:?}"), "Row(own:self @3, 10 bytes)");
    }

    #[test]
    fn hostile_names_are_shown_escaped_and_cut() {
        let shown = Key::new(Kind::Local, vec![0x1b; 4000]).to_string();
        assert!(shown.starts_with("local:\\x1b") && shown.len() < 200, "{shown}");
    }
}
