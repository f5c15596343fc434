//! What is found when files or rows were changed behind the store's back.

use std::{fs, os::unix::fs::FileExt, path::Path};

use super::{
    super::{
        engine::{Engine, snapshots},
        seal::Sealer,
        table::{RowError, Table},
    },
    KEY, Spoil, copy, filled, key, open, refused, scratch, set_mode,
};
use crate::{Change, Damage, Key, Kind, Revision, StoreError};

/// Changes rows behind the store's back, as no bit rot would: with the engine itself.
fn tamper(path: &Path, change: impl FnOnce(&Engine)) {
    let engine = Engine::open(&path.join("rows")).expect("engine");
    change(&engine);
    engine.close();
}

fn raw(kind: u8, name: &str) -> Vec<u8> {
    [&[1, kind], name.as_bytes()].concat()
}

async fn damage(path: &Path) -> Vec<&'static str> {
    open(path).await.damaged().iter().map(Damage::reason).collect()
}

#[tokio::test]
async fn an_altered_row_is_found_and_named() {
    let (_scratch, path) = scratch();
    filled(&path).await;
    tamper(&path, |engine| {
        let mut value = engine.get(&raw(2, "r4")).expect("get").expect("row");
        *value.last_mut().expect("byte") ^= 1;
        engine.write(vec![(raw(2, "r4"), Some(value))]).expect("write");
    });
    let store = open(&path).await;
    let found = store.damaged();
    assert!(matches!(&found[0], Damage::Row { key: named, .. } if *named == key("r4")), "{found:?}");
    // Its kind is not read any more, others are; nothing is written.
    assert!(matches!(store.list(Kind::Record, b"").await, Err(StoreError::Damaged(_))));
    assert!(matches!(store.get(&key("r1")).await, Err(StoreError::Damaged(_))));
    assert_eq!(store.list(Kind::JoinToken, b"").await.expect("sound").len(), 1);
    let refused = store.apply(vec![Change::put(Key::new(Kind::Local, "x"), "x")]).await;
    assert!(matches!(refused, Err(StoreError::Damaged(_))));
    drop(store);
    assert!(!open(&path).await.damaged().is_empty(), "damage does not heal by looking at it");
}

#[tokio::test]
async fn a_missing_row_is_found() {
    let (_scratch, path) = scratch();
    filled(&path).await;
    tamper(&path, |engine| engine.write(vec![(raw(2, "r4"), None)]).expect("write"));
    let found = open(&path).await.damaged();
    assert_eq!(found, [Damage::Rows { kind: Kind::Record, expected: 11, found: 10 }]);
}

#[tokio::test]
async fn an_old_version_of_a_row_is_found() {
    let (_scratch, path) = scratch();
    filled(&path).await;
    let mut old = None;
    tamper(&path, |engine| old = engine.get(&raw(2, "r4")).expect("get"));
    let store = open(&path).await;
    store.apply(vec![Change::put(key("r4"), "value 5")]).await.expect("apply");
    drop(store);
    tamper(&path, |engine| engine.write(vec![(raw(2, "r4"), old)]).expect("write"));
    let found = open(&path).await.damaged();
    assert_eq!(found, [Damage::Rows { kind: Kind::Record, expected: 11, found: 11 }]);
}

#[tokio::test]
async fn a_row_under_another_name_is_found() {
    let (_scratch, path) = scratch();
    filled(&path).await;
    tamper(&path, |engine| {
        let (one, two) = (engine.get(&raw(2, "r1")).expect("get"), engine.get(&raw(2, "r2")).expect("get"));
        engine.write(vec![(raw(2, "r1"), two), (raw(2, "r2"), one)]).expect("write");
    });
    let reasons = damage(&path).await;
    assert_eq!(reasons, ["row_altered", "row_altered", "rows_missing"]);
}

#[tokio::test]
async fn a_missing_part_of_a_long_value_is_found() {
    let (_scratch, path) = scratch();
    filled(&path).await;
    tamper(&path, |engine| {
        let mut parts = Vec::new();
        engine.scan(|raw, _| parts.extend((raw[0] == 2).then(|| raw.to_vec()))).expect("scan");
        engine.write(vec![(parts[2].clone(), None)]).expect("write");
    });
    let reasons = damage(&path).await;
    assert!(reasons.contains(&"row_altered"), "{reasons:?}");
}

#[tokio::test]
async fn what_was_never_written_is_found() {
    for stray in [vec![9, 9], vec![1, 99, b'x'], vec![1, 2], [&[2][..], &[7; 16]].concat()] {
        let (_scratch, path) = scratch();
        filled(&path).await;
        tamper(&path, |engine| engine.write(vec![(stray.clone(), Some(b"x".to_vec()))]).expect("write"));
        assert_eq!(damage(&path).await, ["stray"], "{stray:?}");
    }
}

#[tokio::test]
async fn rows_of_another_store_under_the_same_key_are_found() {
    let (scratch, path) = scratch();
    filled(&path).await;
    let other = scratch.path().join("other");
    filled(&other).await;
    fs::remove_dir_all(path.join("rows")).expect("remove");
    fs::rename(other.join("rows"), path.join("rows")).expect("rename");
    assert_eq!(damage(&path).await, ["manifest"]);
}

#[tokio::test]
async fn an_older_copy_of_the_rows_is_found() {
    let (scratch, path) = scratch();
    filled(&path).await;
    let older = scratch.path().join("older");
    copy(&path.join("rows"), &older);
    let store = open(&path).await;
    store.apply(vec![Change::put(key("deny"), "deny")]).await.expect("apply");
    drop(store);
    fs::remove_dir_all(path.join("rows")).expect("remove");
    fs::rename(older, path.join("rows")).expect("rename");
    let store = open(&path).await;
    assert_eq!(store.damaged(), [Damage::RolledBack { expected: Revision(12), found: Revision(11) }]);
    assert!(matches!(store.get(&key("deny")).await, Err(StoreError::Damaged(_))));
}

#[tokio::test]
async fn rows_that_are_gone_are_not_begun_anew() {
    let (_scratch, path) = scratch();
    filled(&path).await;
    fs::remove_dir_all(path.join("rows")).expect("remove");
    assert_eq!(refused(&path).await.reason(), "damaged");
    fs::create_dir(path.join("rows")).expect("mkdir");
    set_mode(&path.join("rows"), 0o700);
    assert_eq!(damage(&path).await[0], "manifest");
}

#[tokio::test]
async fn a_lost_or_spoiled_head_is_found_and_one_torn_slot_heals() {
    let spoil: [(Spoil, &[&str]); 4] = [
        (|head| fs::remove_file(head).expect("remove"), &["head"]),
        (|head| open_file(head).set_len(0).expect("cut"), &["head"]),
        (|head| open_file(head).write_all_at(&[0; 8192], 0).expect("write"), &["head"]),
        (|head| open_file(head).write_all_at(&[0xff; 60], 4096).expect("write"), &[]),
    ];
    for (spoil, expected) in spoil {
        let (_scratch, path) = scratch();
        filled(&path).await;
        spoil(&path.join("head"));
        assert_eq!(damage(&path).await, *expected);
        assert_eq!(damage(&path).await, *expected, "at the second start");
    }
}

fn open_file(path: &Path) -> fs::File {
    fs::OpenOptions::new().write(true).open(path).expect("open")
}

#[tokio::test]
async fn a_spoiled_snapshot_of_the_engine_heals() {
    let (_scratch, path) = scratch();
    filled(&path).await;
    open(&path).await;
    let snapshots = snapshots(&path.join("rows"), None).expect("list");
    assert!(!snapshots.is_empty());
    for snapshot in snapshots {
        open_file(&snapshot).write_all_at(&[0xa5; 24], 0).expect("write");
    }
    let store = open(&path).await;
    assert_eq!(store.damaged(), []);
    assert_eq!(store.list(Kind::Record, b"").await.expect("list").len(), 11);
}

#[test]
fn a_row_that_changes_while_the_store_is_open_is_found_when_it_is_read() {
    let (_scratch, path) = scratch();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    runtime.block_on(filled(&path));
    let engine = Engine::open(&path.join("rows")).expect("engine");
    let (table, damage) = Table::load(&engine, &Sealer::new(&KEY), None).expect("table");
    assert_eq!(damage, []);
    let sound = engine.get(&raw(2, "r4")).expect("get").expect("row");
    let mut altered = sound.clone();
    altered[52] ^= 1;
    let cut = sound[..20].to_vec();
    for bad in [None, Some(altered), Some(cut), Some(Vec::new())] {
        engine.write(vec![(raw(2, "r4"), bad.clone())]).expect("write");
        assert!(matches!(table.row(&engine, &key("r4")), Err(RowError::Damaged(_))), "{bad:?}");
        assert!(matches!(table.rows(&engine, Kind::Record, b"r"), Err(RowError::Damaged(_))), "{bad:?}");
    }
    engine.write(vec![(raw(2, "r4"), Some(sound))]).expect("write");
    assert!(matches!(table.row(&engine, &key("r4")), Ok(Some(row)) if row.value == b"value 4"));
}
