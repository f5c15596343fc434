//! Rows as they lie in the engine, the index that knows all of them, and the manifest that counts them.
//!
//! ```text
//! 00                          manifest: format, store id, revision, per kind (count, MAC of the sum), MAC of it all
//! 01 kind name                row: format, revision, position, length, MAC, first part of the value
//! 02 revision position number further parts of a value that is longer than one part
//! ```

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;

use std::collections::{BTreeMap, BTreeSet};

use crate::{Damage, Key, Kind, Revision, Row};

use super::{
    engine::{Engine, EngineError, PART_BYTES, Writes},
    seal::{Sealer, StoreId, Tag, same},
};

/// Format of rows and manifest.
pub(super) const FORMAT: u8 = 1;
const MANIFEST_KEY: [u8; 1] = [0];
const ROW: u8 = 1;
const PART: u8 = 2;
/// Revision, position, length.
const PLACE_BYTES: usize = 8 + 4 + 4;
const HEADER_BYTES: usize = 1 + PLACE_BYTES + 32;
/// First part of a value, which shares its place with the header.
const FIRST_BYTES: usize = PART_BYTES - HEADER_BYTES;
const KINDS: usize = Kind::ALL.len();
/// Most damages that are listed; the first ones tell enough.
const DAMAGE_MAX: usize = 1000;

/// What is known of a row without reading it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) revision: Revision,
    /// Number of its change within the apply: with the revision it names the further parts.
    position: u32,
    length: u32,
    /// Of this very version of the row.
    share: Tag,
}

/// Per kind: how many rows, and the sum (XOR) of their shares.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    count: u64,
    shares: Tag,
}

impl Sum {
    fn toggle(&mut self, share: &Tag) {
        self.shares.iter_mut().zip(share).for_each(|(sum, byte)| *sum ^= byte);
    }
}

/// All rows, by key.
pub(super) struct Table {
    store: StoreId,
    sealer: Sealer,
    revision: Revision,
    index: BTreeMap<Key, Entry>,
    sums: [Sum; KINDS],
}

/// Changes of several applies that become one batch of the engine.
pub(super) struct Staged {
    revision: Revision,
    sums: [Sum; KINDS],
    entries: BTreeMap<Key, Option<Entry>>,
    writes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl Table {
    /// The writes that make an engine a store without rows.
    pub(super) fn blank(store: StoreId, sealer: &Sealer) -> Writes {
        let manifest = manifest(store, sealer, Revision(0), &[Sum::default(); KINDS]);
        vec![(MANIFEST_KEY.to_vec(), Some(manifest))]
    }

    /// Reads every row and compares what is there with what the manifest says must be.
    ///
    /// Without a store id the engine's own is taken: a start that was killed had not written a head yet.
    pub(super) fn load(
        engine: &Engine,
        sealer: &Sealer,
        expected: Option<StoreId>,
    ) -> Result<(Self, Vec<Damage>), EngineError> {
        let mut damage = Vec::new();
        let bytes = engine.get(&MANIFEST_KEY)?;
        let manifest = bytes.as_deref().ok_or("it is missing").and_then(|bytes| Manifest::parse(bytes, sealer));
        let manifest = manifest.unwrap_or_else(|detail| {
            damage.push(Damage::Manifest { detail: detail.to_owned() });
            Manifest::default()
        });
        if expected.is_some_and(|expected| expected != manifest.store) && damage.is_empty() {
            damage.push(Damage::Manifest { detail: "it is that of another store".to_owned() });
        }
        let mut table = Self {
            store: manifest.store,
            sealer: sealer.clone(),
            revision: manifest.revision,
            index: BTreeMap::new(),
            sums: [Sum::default(); KINDS],
        };
        table.read_rows(engine, &mut damage)?;
        for kind in Kind::ALL {
            let (sum, (expected, seal)) = (table.sums[kind.index()], manifest.kinds[kind.index()]);
            if !same(&seal, &sealer.sum(table.store, table.revision.0, kind, sum.count, &sum.shares)) {
                damage.push(Damage::Rows { kind, expected, found: sum.count });
            }
        }
        damage.truncate(DAMAGE_MAX);
        Ok((table, damage))
    }

    fn read_rows(&mut self, engine: &Engine, damage: &mut Vec<Damage>) -> Result<(), EngineError> {
        let mut rows = Vec::new();
        let mut parts = BTreeSet::new();
        let mut note = |found| {
            if damage.len() < DAMAGE_MAX {
                damage.push(found);
            }
        };
        // Values that lie in one part are checked on the way; keys of the others are kept for a second look.
        engine.scan(|raw, value| match raw.first() {
            Some(&ROW) => match row_key(raw) {
                Some(key) => match self.check_row(&key, value, &mut |_| Ok(None)) {
                    Ok((entry, _)) => self.enter(key, entry),
                    Err(RowFault::Parts) => rows.push((key, value.to_vec())),
                    Err(RowFault::Altered(detail)) => note(Damage::Row { key, detail: detail.to_owned() }),
                    Err(RowFault::Engine(_)) => {}
                },
                None => note(Damage::Stray { detail: format!("a row with the key {}", raw.escape_ascii()) }),
            },
            Some(&PART) => {
                parts.insert(raw.to_vec());
            }
            _ if raw == MANIFEST_KEY => {}
            _ => note(Damage::Stray { detail: format!("the key {}", raw.escape_ascii()) }),
        })?;
        for (key, value) in rows {
            let mut used = Vec::new();
            let checked = self.check_row(&key, &value, &mut |part| {
                used.push(part.to_vec());
                engine.get(part)
            });
            used.iter().for_each(|part| _ = parts.remove(part));
            match checked {
                Ok((entry, _)) => self.enter(key, entry),
                Err(RowFault::Engine(error)) => return Err(error),
                Err(RowFault::Altered(detail)) => note(Damage::Row { key, detail: detail.to_owned() }),
                Err(RowFault::Parts) => note(Damage::Row { key, detail: "a part of it is missing".to_owned() }),
            }
        }
        if let Some(part) = parts.first() {
            let detail = format!("{} parts of no row, such as {}", parts.len(), part.escape_ascii());
            note(Damage::Stray { detail });
        }
        Ok(())
    }

    fn enter(&mut self, key: Key, entry: Entry) {
        let sum = &mut self.sums[key.kind.index()];
        sum.count += 1;
        sum.toggle(&entry.share);
        self.index.insert(key, entry);
    }

    pub(super) fn store(&self) -> StoreId {
        self.store
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn count(&self, kind: Kind) -> u64 {
        self.sums[kind.index()].count
    }

    /// Reads a row and checks that it is the very version that the index knows.
    pub(super) fn row(&self, engine: &Engine, key: &Key) -> Result<Option<Row>, RowError> {
        let Some(entry) = self.index.get(key) else { return Ok(None) };
        self.read(engine, key, entry).map(Some)
    }

    /// Every row of `kind` whose name starts with `prefix`.
    pub(super) fn rows(&self, engine: &Engine, kind: Kind, prefix: &[u8]) -> Result<Vec<Row>, RowError> {
        self.index
            .range(Key::new(kind, prefix)..)
            .take_while(|(key, _)| key.kind == kind && key.name.starts_with(prefix))
            .map(|(key, entry)| self.read(engine, key, entry))
            .collect()
    }

    fn read(&self, engine: &Engine, key: &Key, entry: &Entry) -> Result<Row, RowError> {
        let altered = |detail: &str| RowError::Damaged(Damage::Row { key: key.clone(), detail: detail.to_owned() });
        let raw = engine.get(&raw_key(key)).map_err(RowError::Engine)?.ok_or_else(|| altered("it is gone"))?;
        match self.check_row(key, &raw, &mut |part| engine.get(part)) {
            Ok((found, value)) if same(&found.share, &entry.share) => {
                Ok(Row { key: key.clone(), value, revision: found.revision })
            }
            Ok(_) => Err(altered("it is an earlier version")),
            Err(RowFault::Altered(detail)) => Err(altered(detail)),
            Err(RowFault::Parts) => Err(altered("a part of it is missing")),
            Err(RowFault::Engine(error)) => Err(RowError::Engine(error)),
        }
    }

    /// Puts a row's parts together and checks its MAC.
    fn check_row(&self, key: &Key, raw: &[u8], part: &mut ReadPart<'_>) -> Result<(Entry, Vec<u8>), RowFault> {
        let (place, tag, first) = split_row(raw).ok_or(RowFault::Altered("its header is cut or unknown"))?;
        let Place { revision, position, length } = Place::parse(place);
        let length_wanted = length as usize;
        let parts = parts_of(length_wanted);
        let mut value = first.to_vec();
        for number in 0..parts {
            let bytes = part(&part_key(revision, position, number)).map_err(RowFault::Engine)?;
            value.extend(bytes.ok_or(RowFault::Parts)?);
            // A lie about the length ends here, not in memory.
            if value.len() > length_wanted {
                return Err(RowFault::Altered("it is longer than it says"));
            }
        }
        let expected = self.sealer.row(self.store, key, place, &value);
        if value.len() != length_wanted || !same(tag, &expected) {
            return Err(RowFault::Altered("its MAC is not valid"));
        }
        Ok((Entry { revision, position, length, share: self.sealer.share(&expected) }, value))
    }

    /// An empty set of changes on top of what is there.
    pub(super) fn stage(&self) -> Staged {
        Staged { revision: self.revision, sums: self.sums, entries: BTreeMap::new(), writes: BTreeMap::new() }
    }

    /// The revision of a row, changes that wait included.
    pub(super) fn found(&self, staged: &Staged, key: &Key) -> Option<Revision> {
        self.entry(staged, key).map(|entry| entry.revision)
    }

    fn entry(&self, staged: &Staged, key: &Key) -> Option<Entry> {
        staged.entries.get(key).copied().unwrap_or_else(|| self.index.get(key).copied())
    }

    /// Adds one change; `position` is its number within its apply, whose revision [`Staged::next`] gave.
    pub(super) fn change(&self, staged: &mut Staged, key: Key, value: Option<Vec<u8>>, position: u32) {
        if let Some(old) = self.entry(staged, &key) {
            let sum = &mut staged.sums[key.kind.index()];
            sum.count -= 1;
            sum.toggle(&old.share);
            for number in 0..parts_of(old.length as usize) {
                staged.writes.insert(part_key(old.revision, old.position, number), None);
            }
        }
        let Some(value) = value else {
            staged.writes.insert(raw_key(&key), None);
            staged.entries.insert(key, None);
            return;
        };
        let place = Place { revision: staged.revision, position, length: value.len() as u32 };
        let tag = self.sealer.row(self.store, &key, &place.bytes(), &value);
        let share = self.sealer.share(&tag);
        let sum = &mut staged.sums[key.kind.index()];
        sum.count += 1;
        sum.toggle(&share);
        let (first, rest) = value.split_at(value.len().min(FIRST_BYTES));
        let mut raw = Vec::with_capacity(HEADER_BYTES + first.len());
        raw.push(FORMAT);
        raw.extend(place.bytes());
        raw.extend(tag);
        raw.extend(first);
        staged.writes.insert(raw_key(&key), Some(raw));
        for (number, part) in rest.chunks(PART_BYTES).enumerate() {
            staged.writes.insert(part_key(place.revision, position, number as u32), Some(part.to_vec()));
        }
        let entry = Entry { revision: place.revision, position, length: place.length, share };
        staged.entries.insert(key, Some(entry));
    }

    /// What the engine must write, the manifest included.
    pub(super) fn writes(&self, staged: &mut Staged) -> Writes {
        let manifest = manifest(self.store, &self.sealer, staged.revision, &staged.sums);
        let writes = std::mem::take(&mut staged.writes);
        writes.into_iter().chain([(MANIFEST_KEY.to_vec(), Some(manifest))]).collect()
    }

    /// The changes are on the disk.
    pub(super) fn commit(&mut self, staged: Staged) {
        (self.revision, self.sums) = (staged.revision, staged.sums);
        for (key, entry) in staged.entries {
            match entry {
                Some(entry) => self.index.insert(key, entry),
                None => self.index.remove(&key),
            };
        }
    }
}

impl Staged {
    /// Begins the next apply and gives its revision.
    pub(super) fn next(&mut self) -> Revision {
        self.revision.0 += 1;
        self.revision
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }
}

/// Reads a further part of a value.
type ReadPart<'a> = dyn FnMut(&[u8]) -> Result<Option<Vec<u8>>, EngineError> + 'a;

/// Why a row that should be there cannot be read.
pub(super) enum RowError {
    Damaged(Damage),
    Engine(EngineError),
}

enum RowFault {
    Altered(&'static str),
    /// Further parts are needed and not there.
    Parts,
    Engine(EngineError),
}

#[derive(Clone, Copy)]
struct Place {
    revision: Revision,
    position: u32,
    length: u32,
}

impl Place {
    fn bytes(self) -> [u8; PLACE_BYTES] {
        let mut bytes = [0; PLACE_BYTES];
        bytes[..8].copy_from_slice(&self.revision.0.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.position.to_be_bytes());
        bytes[12..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    fn parse(bytes: &[u8; PLACE_BYTES]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *bytes;
        Self {
            revision: Revision(u64::from_be_bytes([a, b, c, d, e, f, g, h])),
            position: u32::from_be_bytes([i, j, k, l]),
            length: u32::from_be_bytes([m, n, o, p]),
        }
    }
}

fn split_row(raw: &[u8]) -> Option<(&[u8; PLACE_BYTES], &[u8], &[u8])> {
    let (format, rest) = raw.split_first()?;
    let (place, rest) = rest.split_first_chunk::<PLACE_BYTES>()?;
    let (tag, first) = rest.split_at_checked(32)?;
    (*format == FORMAT).then_some((place, tag, first))
}

/// How many further parts a value of this length has.
fn parts_of(length: usize) -> u32 {
    length.saturating_sub(FIRST_BYTES).div_ceil(PART_BYTES) as u32
}

fn raw_key(key: &Key) -> Vec<u8> {
    let mut raw = Vec::with_capacity(2 + key.name.len());
    raw.extend([ROW, key.kind.byte()]);
    raw.extend(&key.name);
    raw
}

fn row_key(raw: &[u8]) -> Option<Key> {
    let (_, rest) = raw.split_first()?;
    let (kind, name) = rest.split_first()?;
    (!name.is_empty()).then_some(Key::new(Kind::from_byte(*kind)?, name))
}

fn part_key(revision: Revision, position: u32, number: u32) -> Vec<u8> {
    let mut raw = vec![PART];
    raw.extend(revision.0.to_be_bytes());
    raw.extend(position.to_be_bytes());
    raw.extend(number.to_be_bytes());
    raw
}

/// What a manifest says.
struct Manifest {
    store: StoreId,
    revision: Revision,
    /// Count, for people, and MAC of the sum.
    kinds: [(u64, Tag); KINDS],
}

impl Default for Manifest {
    fn default() -> Self {
        Self { store: StoreId([0; 16]), revision: Revision(0), kinds: [(0, [0; 32]); KINDS] }
    }
}

impl Manifest {
    fn parse(bytes: &[u8], sealer: &Sealer) -> Result<Self, &'static str> {
        const CUT: &str = "it is cut";
        let (format, rest) = bytes.split_first().ok_or(CUT)?;
        if *format != FORMAT {
            return Err("its format is unknown");
        }
        let (store, rest) = rest.split_first_chunk::<16>().ok_or(CUT)?;
        let (revision, mut rest) = rest.split_first_chunk::<8>().ok_or(CUT)?;
        let mut found =
            Self { store: StoreId(*store), revision: Revision(u64::from_be_bytes(*revision)), ..Self::default() };
        for kind in &mut found.kinds {
            let (count, seal);
            (count, rest) = rest.split_first_chunk::<8>().ok_or(CUT)?;
            (seal, rest) = rest.split_first_chunk::<32>().ok_or(CUT)?;
            *kind = (u64::from_be_bytes(*count), *seal);
        }
        let content = bytes.get(..bytes.len() - rest.len()).ok_or(CUT)?;
        if same(rest, &sealer.manifest(content)) { Ok(found) } else { Err("its MAC is not valid") }
    }
}

fn manifest(store: StoreId, sealer: &Sealer, revision: Revision, sums: &[Sum; KINDS]) -> Vec<u8> {
    let mut bytes = vec![FORMAT];
    bytes.extend(store.0);
    bytes.extend(revision.0.to_be_bytes());
    for (kind, sum) in Kind::ALL.into_iter().zip(sums) {
        bytes.extend(sum.count.to_be_bytes());
        bytes.extend(sealer.sum(store, revision.0, kind, sum.count, &sum.shares));
    }
    let tag = sealer.manifest(&bytes);
    bytes.extend(tag);
    bytes
}
