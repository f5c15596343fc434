//! What lies in a backup under its seal: a manifest that counts, then every row, each behind its length.
//!
//! In: rows, or the chunks of a file as they are opened. Out: bytes, or the same rows.
//! Never: takes a row of a kind that it does not know, more rows than the manifest counts, or fewer.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use federation_store::{Key, Kind, NAME_BYTES_MAX, Revision, Row, VALUE_BYTES_MAX};
use prost::Message;
use proto::store::{BackupCount, BackupManifest, BackupRow};

/// Most bytes of one message: the longest row, its fields' headers, and some more for rows of a later version.
const MESSAGE_BYTES_MAX: usize = NAME_BYTES_MAX + VALUE_BYTES_MAX + 1024;
/// Longest length in front of a message.
const LENGTH_BYTES_MAX: usize = 10;

/// The manifest of these rows.
pub(super) fn manifest(cluster: &str, trust_domain: &str, revision: Revision, rows: &[Row]) -> BackupManifest {
    let count = |kind: Kind| BackupCount {
        kind: kind.name().to_owned(),
        rows: rows.iter().filter(|row| row.key.kind == kind).count() as u64,
    };
    BackupManifest {
        cluster: cluster.to_owned(),
        trust_domain: trust_domain.to_owned(),
        revision: revision.0,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        counts: Kind::ALL.map(count).to_vec(),
    }
}

/// A row as it lies in a backup.
pub(super) fn row(row: Row) -> BackupRow {
    BackupRow { kind: row.key.kind.name().to_owned(), name: row.key.name, value: row.value }
}

/// What comes next in a backup.
#[derive(Debug, PartialEq)]
pub(super) enum Item {
    Manifest(BackupManifest),
    Row(Key, Vec<u8>),
}

/// Finds the messages in chunks that are cut anywhere.
#[derive(Default)]
pub(super) struct Decoder {
    waiting: Vec<u8>,
    /// Rows of each kind that are still to come; none before the manifest.
    left: Option<BTreeMap<Kind, u64>>,
}

impl Decoder {
    /// Takes the content of the next chunk.
    pub(super) fn feed(&mut self, chunk: &[u8]) {
        self.waiting.extend_from_slice(chunk);
    }

    /// Every whole message of what was fed.
    ///
    /// # Errors
    /// It is none of this format.
    pub(super) fn items(&mut self) -> Result<Vec<Item>> {
        let mut items = Vec::new();
        let waiting = std::mem::take(&mut self.waiting);
        let mut rest = waiting.as_slice();
        while let Some((message, more)) = split(rest)? {
            items.push(self.item(message)?);
            rest = more;
        }
        self.waiting = rest.to_vec();
        Ok(items)
    }

    fn item(&mut self, message: &[u8]) -> Result<Item> {
        let Some(left) = &mut self.left else {
            let manifest = BackupManifest::decode(message).context("the manifest of the backup")?;
            let mut counts = BTreeMap::new();
            for count in &manifest.counts {
                let kind = known(&count.kind)?;
                ensure!(counts.insert(kind, count.rows).is_none(), "the manifest counts rows of kind {kind} twice");
            }
            self.left = Some(counts);
            return Ok(Item::Manifest(manifest));
        };
        let row = BackupRow::decode(message).context("a row of the backup")?;
        let kind = known(&row.kind)?;
        let left = left.get_mut(&kind).filter(|left| **left > 0);
        *left.with_context(|| format!("there are more rows of kind {kind} than the manifest counts"))? -= 1;
        Ok(Item::Row(Key::new(kind, row.name), row.value))
    }

    /// Says that there are no more chunks.
    ///
    /// # Errors
    /// Something is missing.
    pub(super) fn end(self) -> Result<()> {
        ensure!(self.waiting.is_empty(), "the backup ends within a row");
        let left = self.left.context("the backup has no manifest")?;
        match left.iter().find(|(_, left)| **left > 0) {
            Some((kind, left)) => bail!("{left} rows of kind {kind} are missing from the backup"),
            None => Ok(()),
        }
    }
}

fn known(kind: &str) -> Result<Kind> {
    let fix = "use the version of hanse that wrote the backup, or a later one";
    Kind::from_name(kind).with_context(|| format!("rows of kind {:?} are not known to this version: {fix}", kind))
}

/// The first message and what follows; none while it is not whole.
fn split(bytes: &[u8]) -> Result<Option<(&[u8], &[u8])>> {
    let mut rest = bytes;
    let length = match prost::decode_length_delimiter(&mut rest) {
        Ok(length) => length,
        Err(_) if bytes.len() < LENGTH_BYTES_MAX => return Ok(None),
        Err(error) => return Err(error).context("the length of a row"),
    };
    ensure!(length <= MESSAGE_BYTES_MAX, "a row of {length} bytes, at most {MESSAGE_BYTES_MAX} are allowed");
    Ok(rest.split_at_checked(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        let rows = Kind::ALL.into_iter().flat_map(|kind| (0..40_u8).map(move |number| (kind, number)));
        let made = rows.map(|(kind, number)| Row {
            key: Key::new(kind, vec![number; 1 + usize::from(number)]),
            value: vec![number; usize::from(number) * 100],
            revision: Revision(u64::from(number)),
        });
        made.collect()
    }

    fn encoded(counts: impl FnOnce(&mut Vec<BackupCount>)) -> Vec<u8> {
        let count = |kind: Kind| BackupCount { kind: kind.name().to_owned(), rows: 40 };
        let mut manifest = BackupManifest { counts: Kind::ALL.map(count).to_vec(), ..BackupManifest::default() };
        counts(&mut manifest.counts);
        let mut bytes = manifest.encode_length_delimited_to_vec();
        rows().into_iter().for_each(|held| bytes.extend(row(held).encode_length_delimited_to_vec()));
        bytes
    }

    fn decoded(bytes: &[u8], piece: usize) -> Result<Vec<(Key, Vec<u8>)>> {
        let (mut decoder, mut found) = (Decoder::default(), Vec::new());
        for piece in bytes.chunks(piece) {
            decoder.feed(piece);
            found.extend(decoder.items()?.into_iter().filter_map(|item| match item {
                Item::Row(key, value) => Some((key, value)),
                Item::Manifest(_) => None,
            }));
        }
        decoder.end()?;
        Ok(found)
    }

    #[test]
    fn rows_come_back_wherever_the_chunks_are_cut() {
        let bytes = encoded(|_| {});
        let wanted: Vec<_> = rows().into_iter().map(|row| (row.key, row.value)).collect();
        for piece in [1, 7, 64, 1000, 65_536, bytes.len()] {
            assert_eq!(decoded(&bytes, piece).expect("whole"), wanted, "{piece}");
        }
    }

    #[test]
    fn a_content_that_is_cut_anywhere_is_not_taken() {
        let bytes = encoded(|_| {});
        for end in (0..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
            assert!(decoded(&bytes[..end], 4096).is_err(), "{end}");
        }
    }

    #[test]
    fn counts_that_are_not_those_of_the_rows_are_told() {
        for (counts, wanted) in
            [(41, "1 rows of kind record are missing"), (39, "more rows of kind record than the manifest counts")]
        {
            let error = decoded(&encoded(|held| held[1].rows = counts), 4096).expect_err("taken");
            assert!(error.to_string().contains(wanted), "{error}");
        }
        let error = decoded(&encoded(|held| held[1].kind = "spell".into()), 4096).expect_err("taken");
        assert!(error.to_string().contains("\"spell\" are not known to this version"), "{error}");
        let error = decoded(&encoded(|held| held[1].kind = "own".into()), 4096).expect_err("taken");
        assert!(error.to_string().contains("twice"), "{error}");
    }

    #[test]
    fn a_length_past_the_bound_is_refused_before_it_is_waited_for() {
        let mut bytes = BackupManifest::default().encode_length_delimited_to_vec();
        prost::encode_length_delimiter(MESSAGE_BYTES_MAX + 1, &mut bytes).expect("room");
        assert!(decoded(&bytes, 4096).expect_err("taken").to_string().contains("at most"));
    }
}
