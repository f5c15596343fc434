//! The file that a backup is: what comes back, and that nothing else does.

use std::io::Read;

use proptest::prelude::*;

use super::*;
use crate::{LocalSigner, now};

const KEY: [u8; 32] = [7; 32];

fn signer(name: &str) -> LocalSigner {
    let domain = format!("{name}.mesh.internal").parse().expect("trust domain");
    LocalSigner::generate(&domain, &name.parse().expect("name"), now()).expect("keys").0
}

fn written(signer: &LocalSigner, key: &[u8; 32], content: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut writer = Writer::new(key, &signer.candidate(), now(), &mut file).expect("begun");
    let foretold = writer.file_bytes(content.len() as u64);
    // In pieces that are no chunks.
    content.chunks(1000).for_each(|piece| writer.push(piece, &mut file));
    writer.finish(signer, &mut file).expect("signed");
    assert_eq!(foretold, file.len() as u64);
    file
}

fn read(key: &[u8; 32], file: impl Read) -> Result<Vec<u8>, BackupError> {
    let mut reader = Reader::open(file)?;
    reader.unlock(key)?;
    let mut content = Vec::new();
    while let Some(chunk) = reader.next_chunk()? {
        content.extend_from_slice(&chunk);
    }
    Ok(content)
}

fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 31 + at / 977) as u8).collect()
}

#[test]
fn content_of_every_length_comes_back() {
    let west = signer("west");
    for bytes in [0, 1, 999, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 3 * CHUNK_BYTES + 17] {
        let file = written(&west, &KEY, &content(bytes));
        assert_eq!(read(&KEY, file.as_slice()).expect("whole"), content(bytes), "{bytes}");
        let head = verify_whole(file.as_slice()).expect("whole without a key");
        assert_eq!((head.format, head.cluster), (FORMAT, west.candidate().id));
    }
}

#[test]
fn nothing_of_the_content_or_of_the_cluster_is_legible() {
    let west = signer("west");
    let secret = b"payments.billing.west".repeat(50);
    let file = written(&west, &KEY, &secret);
    for word in [&b"payments"[..], b"billing", b"west", b"mesh.internal"] {
        assert!(!file.windows(word.len()).any(|found| found == word), "{}", word.escape_ascii());
    }
    // Two files of one content have no chunk in common.
    let other = written(&west, &KEY, &secret);
    let tail = |file: &[u8]| file[file.len() - 500..].to_vec();
    assert_ne!(tail(&file)[..400], tail(&other)[..400]);
}

#[test]
fn no_flipped_bit_passes_anywhere_in_the_file() {
    let west = signer("west");
    let file = written(&west, &KEY, &content(CHUNK_BYTES + 300));
    // Every byte of the head, the frames, the ends of chunks and the signature; some of the ciphertext.
    let head = 8 + 4 + 4;
    let places = (0..head + 300).chain((0..file.len()).step_by(509)).chain(file.len() - 800..file.len());
    for place in places {
        let mut damaged = file.clone();
        damaged[place] ^= 1 << (place % 8);
        let error = read(&KEY, damaged.as_slice()).expect_err("a flipped bit passed");
        assert!(!matches!(error, BackupError::Io { .. }), "byte {place}: {error}");
        assert!(verify_whole(damaged.as_slice()).is_err(), "byte {place} passed without a key");
    }
}

#[test]
fn no_cut_file_passes_and_the_place_is_told() {
    let west = signer("west");
    let file = written(&west, &KEY, &content(2 * CHUNK_BYTES + 300));
    for end in (0..file.len()).step_by(211).chain(file.len() - 500..file.len()) {
        let error = read(&KEY, &file[..end]).expect_err("a cut file passed");
        match error {
            BackupError::NotABackup => assert!(end < 8, "{end}"),
            BackupError::Cut { at } => assert_eq!(at, end as u64),
            other => panic!("cut at {end}: {other}"),
        }
    }
    let mut longer = file.clone();
    longer.push(0);
    assert!(matches!(read(&KEY, longer.as_slice()), Err(BackupError::Trailing { at }) if at == file.len() as u64));
}

/// Head, chunks and signature of a file of full chunks and one short one.
fn parts(file: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>, Vec<u8>) {
    let header = u32::from_be_bytes(file[12..16].try_into().expect("length")) as usize;
    let (head, mut rest) = file.split_at(16 + header + 32);
    let mut chunks = Vec::new();
    while rest.len() > SIGNATURE_BYTES {
        let length = u32::from_be_bytes(rest[1..5].try_into().expect("length")) as usize;
        let (chunk, more) = rest.split_at(FRAME_BYTES + length + TAG_BYTES);
        chunks.push(chunk.to_vec());
        rest = more;
    }
    (head.to_vec(), chunks, rest.to_vec())
}

#[test]
fn chunks_are_not_moved_left_out_repeated_or_taken_from_another_file() {
    let west = signer("west");
    let (head, chunks, signature) = parts(&written(&west, &KEY, &content(3 * CHUNK_BYTES + 5)));
    let (_, others, other_signature) = parts(&written(&west, &KEY, &content(3 * CHUNK_BYTES + 5)));
    let [a, b, c, last] = chunks.as_slice() else { panic!("{} chunks", chunks.len()) };
    let (other, other_last) = (&others[0], &others[3]);
    let cases: [(&str, Vec<&Vec<u8>>, u64); 6] = [
        ("swapped", vec![b, a, c, last], 0),
        ("left out", vec![a, c, last], 1),
        ("repeated", vec![a, a, b, c, last], 1),
        ("of another file", vec![other, b, c, last], 0),
        ("the last of another file", vec![a, b, c, other_last], 3),
        ("the last one early", vec![a, last], 1),
    ];
    for (what, chunks, place) in cases {
        for signature in [&signature, &other_signature] {
            let file =
                [&[&head][..], &chunks, &[signature]].concat().into_iter().flatten().copied().collect::<Vec<_>>();
            let error = read(&KEY, file.as_slice()).expect_err(what);
            assert!(matches!(error, BackupError::Chunk { number, .. } if number == place), "{what}: {error}");
            assert!(verify_whole(file.as_slice()).is_err(), "{what} passed without a key");
        }
    }
}

#[test]
fn a_file_that_another_cluster_signed_is_not_this_ones() {
    // Whoever has the key, but not the signer, makes a file with this cluster's head.
    let (west, east) = (signer("west"), signer("east"));
    let mut file = Vec::new();
    let mut writer = Writer::new(&KEY, &west.candidate(), now(), &mut file).expect("begun");
    writer.push(b"forged", &mut file);
    writer.finish(&east, &mut file).expect("signed");
    assert!(matches!(read(&KEY, file.as_slice()), Err(BackupError::Signature { .. })));
    // And the signature over something else is none over a backup.
    let digest = sha256(&file[..file.len() - SIGNATURE_BYTES]);
    let record = west.sign_record(&digest.0).expect("signed");
    let end = file.len() - SIGNATURE_BYTES;
    file[end..].copy_from_slice(&record);
    assert!(matches!(read(&KEY, file.as_slice()), Err(BackupError::Signature { .. })));
}

#[test]
fn another_key_file_is_named_as_the_reason() {
    let file = written(&signer("west"), &KEY, b"content");
    let error = read(&[8; 32], file.as_slice()).expect_err("another key opened it");
    assert!(matches!(error, BackupError::OtherKey { .. }), "{error}");
    assert!(error.to_string().contains("key file"), "{error}");
}

#[test]
fn a_file_of_a_later_format_is_not_guessed_at() {
    let mut file = written(&signer("west"), &KEY, b"content");
    file[8..12].copy_from_slice(&2_u32.to_be_bytes());
    let error = read(&KEY, file.as_slice()).expect_err("read");
    assert!(matches!(error, BackupError::Future { found: 2 }), "{error}");
    assert!(matches!(read(&KEY, &b"PK\x03\x04 something else"[..]), Err(BackupError::NotABackup)));
}

#[test]
fn format_1_is_what_it_was() {
    // A file with fixed header and key; the signature is made anew, since keys are.
    let header = Header {
        root: vec![1; 32],
        replication_key: vec![2; 32],
        created_at_ms: 1_700_000_000_000,
        salt: vec![3; 32],
        key_id: key_id(&KEY).to_vec(),
    };
    let mut file = Vec::new();
    let mut writer = Writer::with(&KEY, &header, &mut file).expect("begun");
    writer.push(b"content", &mut file);
    writer.finish(&signer("west"), &mut file).expect("signed");
    let unsigned = &file[..file.len() - SIGNATURE_BYTES];
    assert_eq!(sha256(unsigned).to_string(), "2f74d496e072f21cdd5b5214fcd013f4d43226a1ed0fbbd9bfae5de48d08888f");
    let reader = Reader::open(file.as_slice()).expect("head");
    assert_eq!(reader.head().created_at, Timestamp::from_millis(1_700_000_000_000));
}

proptest! {
    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in 0_usize..200) {
        prop_assert!(read(&KEY, bytes.as_slice()).is_err());
        // A good beginning, then anything.
        let mut file = written(&signer("west"), &KEY, b"content");
        file.truncate(cut);
        file.extend(bytes);
        prop_assert!(read(&KEY, file.as_slice()).is_err());
    }
}
