//! The head: which revision is the newest, told outside the engine.
//!
//! A sled file that was cut opens as an earlier, sound state, manifest and all; only somebody outside can tell. The
//! head is written after a flush and before its applies are answered, so it is never ahead of the rows unless rows
//! were lost. It survives a kill at once (page cache) and a power cut once synced, which happens as soon as the store
//! has nothing else to do: rows that the disk has acknowledged do not depend on it.
//!
//! Two slots, written in turn, so that one torn write leaves the other.

use std::{fs::File, io, os::unix::fs::FileExt};

use crate::Revision;

use super::seal::{Sealer, StoreId, Tag, same};

const MAGIC: &[u8; 8] = b"hansehd1";
/// Slots lie on pages of their own.
const SLOT_STRIDE: u64 = 4096;
/// Magic, key id, store id, turn, revision.
const CONTENT_BYTES: usize = 8 + 8 + 16 + 8 + 8;
const SLOT_BYTES: usize = CONTENT_BYTES + 32;

/// The head file, open.
#[derive(Debug)]
pub(super) struct Head {
    file: File,
    store: StoreId,
    /// Counts writes: its lowest bit says which slot is next.
    turn: u64,
    revision: Revision,
    synced: bool,
}

/// What a head file says.
pub(super) enum Found {
    Sound(Head),
    /// No slot can be trusted.
    Unreadable(&'static str),
    /// Both slots were written under another key.
    OtherKey,
}

impl Head {
    /// Reads the slots of a head file.
    pub(super) fn read(file: File, sealer: &Sealer) -> io::Result<Found> {
        let mut newest: Option<(u64, Revision, StoreId)> = None;
        let (mut foreign, mut empty) = (0, 0);
        for slot in 0..2 {
            let mut bytes = [0; SLOT_BYTES];
            match file.read_exact_at(&mut bytes, slot * SLOT_STRIDE) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    empty += 1;
                    continue;
                }
                other => other?,
            }
            let Some(content) = Content::parse(&bytes) else { continue };
            if content.key_id != sealer.key_id() {
                foreign += 1;
            } else if same(&content.tag, &sealer.head(&bytes[..CONTENT_BYTES]))
                && newest.is_none_or(|(turn, ..)| content.turn > turn)
            {
                newest = Some((content.turn, content.revision, content.store));
            }
        }
        Ok(match newest {
            Some((turn, revision, store)) => Found::Sound(Self { file, store, turn, revision, synced: false }),
            None if foreign == 2 => Found::OtherKey,
            None if empty == 2 => Found::Unreadable("the file is too short"),
            None => Found::Unreadable("no copy of it has a valid MAC"),
        })
    }

    /// Writes both slots of a new head file, synced.
    pub(super) fn create(file: File, store: StoreId, revision: Revision, sealer: &Sealer) -> io::Result<Self> {
        let mut head = Self { file, store, turn: 0, revision, synced: false };
        head.write(revision, sealer)?;
        head.write(revision, sealer)?;
        head.sync()?;
        Ok(head)
    }

    pub(super) fn store(&self) -> StoreId {
        self.store
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    /// Says that the rows of `revision` are on the disk.
    pub(super) fn write(&mut self, revision: Revision, sealer: &Sealer) -> io::Result<()> {
        let turn = self.turn + 1;
        let mut bytes = Vec::with_capacity(SLOT_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(sealer.key_id());
        bytes.extend(self.store.0);
        bytes.extend(turn.to_be_bytes());
        bytes.extend(revision.0.to_be_bytes());
        bytes.extend(sealer.head(&bytes));
        self.synced = false;
        self.file.write_all_at(&bytes, (turn & 1) * SLOT_STRIDE)?;
        (self.turn, self.revision) = (turn, revision);
        Ok(())
    }

    pub(super) fn sync(&mut self) -> io::Result<()> {
        if !self.synced {
            self.file.sync_data()?;
            self.synced = true;
        }
        Ok(())
    }

    /// The same file, read again.
    #[cfg(feature = "fuzzing")]
    pub(super) fn reread(self, sealer: &Sealer) -> Found {
        Self::read(self.file, sealer).unwrap_or(Found::Unreadable("it cannot be read"))
    }

    /// How often it was written.
    #[cfg(test)]
    pub(super) fn turn(&self) -> u64 {
        self.turn
    }
}

struct Content {
    key_id: [u8; 8],
    store: StoreId,
    turn: u64,
    revision: Revision,
    tag: Tag,
}

impl Content {
    fn parse(bytes: &[u8; SLOT_BYTES]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (key_id, rest) = rest.split_first_chunk::<8>()?;
        let (store, rest) = rest.split_first_chunk::<16>()?;
        let (turn, rest) = rest.split_first_chunk::<8>()?;
        let (revision, rest) = rest.split_first_chunk::<8>()?;
        let tag: &Tag = rest.try_into().ok()?;
        (magic == MAGIC).then_some(Self {
            key_id: *key_id,
            store: StoreId(*store),
            turn: u64::from_be_bytes(*turn),
            revision: Revision(u64::from_be_bytes(*revision)),
            tag: *tag,
        })
    }
}
