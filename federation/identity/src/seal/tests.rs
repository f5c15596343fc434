//! Sealed values that were moved or changed, and key files that are not fit.

use std::{fs::Permissions, os::unix::fs::PermissionsExt};

use proptest::prelude::*;

use super::*;
use crate::{Signer, testing::Cluster, testing_vectors};

#[test]
fn what_is_sealed_opens_under_its_own_name_alone() {
    let kek = Kek::generate();
    for value in [&b""[..], b"x", &[7; 10_000], &vec![1; SEALED_BYTES_MAX]] {
        let sealed = kek.seal(b"keys/self", value).expect("sealed");
        assert_eq!(kek.open(b"keys/self", &sealed).expect("opened").as_slice(), value);
        assert_eq!(kek.open(b"keys/other", &sealed), Err(SealError::Damaged));
        assert_eq!(kek.open(b"", &sealed), Err(SealError::Damaged));
        assert_eq!(Kek::generate().open(b"keys/self", &sealed), Err(SealError::OtherKey));
        assert!(value.is_empty() || !sealed.windows(value.len()).any(|window| window == value) || value.len() == 1);
    }
    let long = vec![0; SEALED_BYTES_MAX + 1];
    assert_eq!(kek.seal(b"", &long), Err(SealError::TooLong { bytes: long.len() }));
    assert_eq!(kek.open(b"", &vec![1; 2 * SEALED_BYTES_MAX]).expect_err("long").reason(), "too_long");
}

#[test]
fn the_same_value_is_never_sealed_alike() {
    let kek = Kek::generate();
    let (one, two) = (kek.seal(b"a", b"value").expect("one"), kek.seal(b"a", b"value").expect("two"));
    assert_ne!(one, two);
    // Parts of two sealed values do not mix: each data key opens its own value alone.
    let cut = 1 + KEK_ID_BYTES + NONCE_LEN + WRAPPED_BYTES;
    let mixed = [&one[..cut], &two[cut..]].concat();
    assert_eq!(kek.open(b"a", &mixed), Err(SealError::Damaged));
}

#[test]
fn every_changed_or_missing_byte_is_noticed() {
    let kek = Kek::generate();
    let sealed = kek.seal(b"name", b"value").expect("sealed");
    for at in 0..sealed.len() {
        let mut changed = sealed.clone();
        changed[at] ^= 0x40;
        assert!(kek.open(b"name", &changed).is_err(), "byte {at}");
        assert!(kek.open(b"name", &sealed[..at]).is_err(), "cut at {at}");
    }
    assert!(kek.open(b"name", &[&sealed[..], &[0]].concat()).is_err());
}

#[test]
fn a_value_for_another_cluster_is_read_there_alone() {
    let (west, east) = (Cluster::new("west"), Cluster::new("east"));
    let sealed = seal_to(&east.signer.candidate().sealing_key, b"grant", b"secret").expect("sealed");
    assert_eq!(east.signer.unseal(b"grant", &sealed).expect("opened").as_slice(), b"secret");
    assert_eq!(west.signer.unseal(b"grant", &sealed), Err(SealError::Damaged.into()));
    assert_eq!(east.signer.unseal(b"other", &sealed), Err(SealError::Damaged.into()));
    for at in 0..sealed.len() {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        assert!(east.signer.unseal(b"grant", &changed).is_err(), "byte {at}");
        assert!(east.signer.unseal(b"grant", &sealed[..at]).is_err(), "cut at {at}");
    }
    // A point of low order would make a secret that everybody knows.
    assert_eq!(seal_to(&SealingKey([0; 32]), b"grant", b"secret"), Err(SealError::Recipient));
}

#[test]
fn sealed_values_are_those_of_the_published_vector() {
    let vector = testing_vectors::read("sealed.txt");
    let kek = Kek::from_bytes(vector.array("kek"));
    let (aad, value) = (vector.bytes("aad"), vector.bytes("value"));
    assert_eq!(*kek.open(&aad, &vector.bytes("sealed")).expect("opened"), value);
    assert_eq!(*unseal(&vector.bytes("recipient_private"), &aad, &vector.bytes("sealed_to")).expect("opened"), value);
    let again = seal_to(&SealingKey(vector.array("recipient_public")), &aad, &value).expect("sealed");
    assert_eq!(*unseal(&vector.bytes("recipient_private"), &aad, &again).expect("opened"), value);
}

#[test]
fn keys_for_other_purposes_tell_nothing_of_the_key_nor_of_each_other() {
    let kek = Kek::from_bytes([3; 32]);
    let derived = kek.derive("one");
    assert_eq!(derived, Kek::from_bytes([3; 32]).derive("one"), "the same at each start");
    assert_ne!(derived, kek.derive("two"));
    assert_ne!(derived, Kek::from_bytes([4; 32]).derive("one"));
    assert_ne!(*derived, [3; 32]);
}

#[test]
fn secrets_have_no_text() {
    assert_eq!(format!("{:?}", Kek::generate()), "Kek(hidden)");
}

#[test]
fn a_key_file_is_made_for_its_owner_alone_and_read_again() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("kek");
    let made = Kek::create(&path).expect("made");
    let found = fs::metadata(&path).expect("metadata");
    assert_eq!((found.mode() & 0o7777, found.len()), (0o400, 32));
    let read = Kek::load(&path).expect("read");
    assert_eq!(read.open(b"a", &made.seal(b"a", b"value").expect("sealed")).expect("opened").as_slice(), b"value");
    assert_eq!(Kek::create(&path).expect_err("exists").reason(), "exists");
    assert_eq!(Kek::load(&path).expect("still there").bytes, made.bytes);
    let nowhere = folder.path().join("no/such/folder/kek");
    assert_eq!(Kek::create(&nowhere).expect_err("no folder").reason(), "io");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("chmod");
    assert!(Kek::load(&path).is_ok(), "its owner may be able to write it");
}

#[test]
fn a_key_file_that_is_not_fit_is_refused_in_words_that_help() {
    let folder = tempfile::tempdir().expect("folder");
    let file = |name: &str, content: &[u8], mode: u32| {
        let path = folder.path().join(name);
        fs::write(&path, content).expect("write");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("chmod");
        path
    };
    let key: Vec<u8> = (0..32).collect();
    let mut cases: Vec<(PathBuf, &str, &str)> = Vec::new();
    for mode in [0o440, 0o404, 0o420, 0o402, 0o410, 0o401, 0o640, 0o644, 0o660, 0o666, 0o777, 0o4400, 0o1400] {
        cases.push((file(&format!("mode-{mode:o}"), &key, mode), "mode", "chmod 0400"));
    }
    for length in [0, 1, 16, 31, 33, 64, 65_536] {
        let content: Vec<u8> = (0..length).map(|at| at as u8).collect();
        cases.push((file(&format!("length-{length}"), &content, 0o400), "length", "exactly 32"));
    }
    cases.push((file("zeros", &[0; 32], 0o400), "weak", "no key"));
    cases.push((file("letters", &[b'a'; 32], 0o400), "weak", "no key"));
    let good = file("good", &key, 0o400);
    let link = |name: &str, to: &Path| {
        let path = folder.path().join(name);
        std::os::unix::fs::symlink(to, &path).expect("link");
        path
    };
    cases.push((link("link", &good), "symlink", "name the file itself"));
    cases.push((link("dangling", &folder.path().join("nothing")), "symlink", "name the file itself"));
    cases.push((folder.path().join("nothing"), "missing", "kek_file"));
    cases.push((folder.path().to_path_buf(), "not_a_file", "regular file"));
    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).expect("pipe");
    cases.push((pipe, "not_a_file", "regular file"));
    // Only root can give files away.
    if nix::unistd::geteuid().is_root() {
        let path = file("foreign", &key, 0o400);
        std::os::unix::fs::chown(&path, Some(65_534), None).expect("chown");
        cases.push((path, "owner", "chown"));
    }
    for (path, reason, help) in cases {
        let refused = Kek::load(&path).expect_err(&path.display().to_string());
        assert_eq!(refused.reason(), reason, "{refused}");
        let text = refused.to_string();
        assert!(text.contains(help) && text.contains(&path.display().to_string()), "{text}");
    }
    assert!(Kek::load(&good).is_ok());
}

proptest! {
    #[test]
    fn arbitrary_sealed_bytes_never_panic_nor_open(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let kek = Kek::from_bytes([3; 32]);
        prop_assert!(kek.open(b"name", &bytes).is_err());
        // With a head that fits, as far as that goes.
        let fitting = [&[VERSION][..], &kek.id, &bytes].concat();
        prop_assert!(kek.open(b"name", &fitting).is_err());
        prop_assert!(unseal(&[5; 32], b"name", &bytes).is_err());
        prop_assert!(unseal(&[5; 32], b"name", &[&[VERSION][..], &bytes].concat()).is_err());
    }
}
