//! The store on disk: what survives, who is kept out, and what is found when files were changed.

use std::{
    fs,
    os::unix::fs::{FileExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
};

use tempfile::TempDir;
use tokio::sync::{Semaphore, oneshot};

use super::{
    engine::Engine,
    open::{HeadState, Session},
    open_sled,
    seal::Sealer,
    table::Table,
    writer::{Request, SharedDamage, What, Writer},
};
use crate::{Change, Damage, Expect, Key, Kind, OpenError, Revision, Store, StoreError, contract};

const KEY: [u8; 32] = [0x4b; 32];

fn scratch() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("store");
    (directory, path)
}

async fn open(path: &Path) -> Arc<dyn Store> {
    open_sled(path, KEY).await.expect("opens")
}

async fn refused(path: &Path) -> OpenError {
    open_sled(path, KEY).await.err().expect("refused")
}

fn key(name: &str) -> Key {
    Key::new(Kind::Record, name)
}

/// A closed store of ten records, one token, and a value of many parts.
async fn filled(path: &Path) {
    let store = open(path).await;
    for number in 0..10 {
        store.apply(vec![Change::put(key(&format!("r{number}")), format!("value {number}"))]).await.expect("apply");
    }
    let token = Change::put(Key::new(Kind::JoinToken, "t"), "token");
    store.apply(vec![token, Change::put(key("long"), vec![3; 30_000])]).await.expect("apply");
}

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

#[tokio::test(flavor = "multi_thread")]
async fn passes_the_battery() {
    let scratch = tempfile::tempdir().expect("temporary directory");
    let count = std::sync::atomic::AtomicU32::new(0);
    let make = async || {
        let number = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        open(&scratch.path().join(number.to_string())).await
    };
    contract::run(make).await;
}

#[tokio::test]
async fn what_was_applied_is_there_after_each_start() {
    let (_scratch, path) = scratch();
    let mut random = contract::Random(77);
    let mut model = std::collections::BTreeMap::new();
    for start in 0..12_u64 {
        let store = open(&path).await;
        assert_eq!(store.damaged(), [], "start {start}");
        let rows = store.list(Kind::Record, b"").await.expect("list");
        let found: std::collections::BTreeMap<_, _> = rows.into_iter().map(|row| (row.key, row.value)).collect();
        assert_eq!(found, model, "start {start}");
        for _ in 0..20 {
            let key = key(&random.below(30).to_string());
            if random.below(4) == 0 {
                store.apply(vec![Change::delete(key.clone())]).await.expect("delete");
                model.remove(&key);
            } else {
                let value = vec![random.below(256) as u8; random.below(9000)];
                store.apply(vec![Change::put(key.clone(), value.clone())]).await.expect("put");
                model.insert(key, value);
            }
        }
        assert_eq!(store.apply(Vec::new()).await, Ok(Revision(20 * (start + 1))), "revisions go on");
    }
}

#[tokio::test]
async fn revisions_hold_across_starts() {
    let (_scratch, path) = scratch();
    let revision = open(&path).await.apply(vec![Change::put(key("a"), "1")]).await.expect("apply");
    let store = open(&path).await;
    assert_eq!(store.get(&key("a")).await.expect("get").expect("row").revision, revision);
    let swap = |to: &str| Change::put(key("a"), to).expecting(Expect::Is(revision));
    store.apply(vec![swap("2")]).await.expect("as expected");
    assert!(matches!(store.apply(vec![swap("3")]).await, Err(StoreError::Conflict { .. })));
}

#[test]
fn applies_that_wait_share_one_flush() {
    let (_scratch, path) = scratch();
    let mut session = Session::begin(&path, &KEY).expect("session");
    let attached = session.attach().expect("engine");
    let HeadState::Sound(head) = &session.head else { panic!("no head") };
    let before = head.turn();
    let writer = Writer::new(session, attached, SharedDamage::default());

    let places = Arc::new(Semaphore::new(100));
    let (requests, queue) = mpsc::channel();
    let answers: Vec<_> = (0..50)
        .map(|number| {
            let (reply, answer) = oneshot::channel();
            let what = What::Apply(vec![Change::put(key(&number.to_string()), "x")], reply);
            let _permit = Arc::clone(&places).try_acquire_owned().expect("place");
            requests.send(Request { what, _permit }).expect("queued");
            answer
        })
        .collect();
    drop(requests);
    writer.run(&queue);
    for (number, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.blocking_recv().expect("answer"), Ok(Revision(number as u64 + 1)));
    }

    let session = Session::begin(&path, &KEY).expect("session");
    let HeadState::Sound(head) = &session.head else { panic!("no head") };
    assert_eq!((head.turn() - before, head.revision()), (1, Revision(50)), "one flush, fifty revisions");
}

#[tokio::test]
async fn a_second_opener_is_told_who_holds_the_store() {
    let (_scratch, path) = scratch();
    let store = open(&path).await;
    let error = refused(&path).await;
    assert_eq!(error, OpenError::Locked { path: path.clone(), holder: Some(std::process::id()) });
    assert!(error.to_string().contains("in use by another process (pid "), "{error}");
    drop(store);
    open(&path).await;
}

#[tokio::test]
async fn another_key_is_refused_and_changes_nothing() {
    let (_scratch, path) = scratch();
    filled(&path).await;
    let error = open_sled(&path, [0x4c; 32]).await.err().expect("refused");
    assert_eq!(error, OpenError::WrongKey { path: path.clone() });
    assert_eq!(damage(&path).await, [""; 0]);
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("metadata").permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

#[tokio::test]
async fn only_the_owner_can_read_what_is_made() {
    let (_scratch, path) = scratch();
    filled(&path).await;
    let store = open(&path).await;
    let mut files = 0;
    let mut waiting = vec![path];
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            assert_eq!(mode(&path), 0o700, "{}", path.display());
            waiting.extend(fs::read_dir(path).expect("list").map(|entry| entry.expect("entry").path()));
        } else {
            assert_eq!(mode(&path), 0o600, "{}", path.display());
            files += 1;
        }
    }
    assert!(files >= 4, "{files}");
    drop(store);
}

#[tokio::test]
async fn wide_modes_and_links_are_refused_by_name() {
    type Spoil = fn(&Path) -> PathBuf;
    let mode_of = |name: &'static str, mode: u32| {
        move |path: &Path| {
            let spoiled = path.join(name);
            set_mode(&spoiled, mode);
            spoiled
        }
    };
    let link_of = |name: &'static str| {
        move |path: &Path| {
            let spoiled = path.join(name);
            let real = path.with_file_name("real");
            fs::rename(&spoiled, &real).expect("rename");
            symlink(&real, &spoiled).expect("link");
            spoiled
        }
    };
    let mut cases: Vec<Box<dyn Fn(&Path) -> PathBuf>> = Vec::new();
    for mode in [0o750, 0o701, 0o777] {
        cases.push(Box::new(mode_of("", mode)));
        cases.push(Box::new(mode_of("rows", mode)));
    }
    for mode in [0o640, 0o604, 0o666] {
        cases.push(Box::new(mode_of("head", mode)));
        cases.push(Box::new(mode_of("lock", mode)));
    }
    for name in ["head", "lock", "rows", "rows/db"] {
        cases.push(Box::new(link_of(name)));
    }
    let hard_link: Spoil = |path| {
        fs::hard_link(path.join("head"), path.join("head2")).expect("link");
        path.join("head")
    };
    cases.push(Box::new(hard_link));
    for (number, spoil) in cases.iter().enumerate() {
        let (_scratch, path) = scratch();
        filled(&path).await;
        let spoiled = spoil(&path);
        let OpenError::Permissions { path: named, .. } = refused(&path).await else { panic!("case {number}") };
        assert_eq!(named.components().collect::<PathBuf>(), spoiled.components().collect::<PathBuf>(), "{number}");
    }
}

#[tokio::test]
async fn a_link_to_the_directory_and_a_file_in_its_place_are_refused() {
    let (scratch, path) = scratch();
    filled(&path).await;
    let link = scratch.path().join("link");
    symlink(&path, &link).expect("link");
    assert_eq!(refused(&link).await.reason(), "permissions");
    let file = scratch.path().join("file");
    fs::write(&file, "x").expect("write");
    assert_eq!(refused(&file).await.reason(), "permissions");
}

#[tokio::test]
async fn a_directory_of_another_user_is_refused() {
    let (_scratch, path) = scratch();
    filled(&path).await;
    if std::os::unix::fs::chown(&path, Some(4242), None).is_err() {
        return; // Only root can give a directory away.
    }
    let error = refused(&path).await;
    assert!(error.to_string().contains("belongs to uid 4242"), "{error}");
}

#[tokio::test]
async fn a_start_that_was_killed_is_done_again() {
    // What can be left behind by a kill between any two steps of making or opening a store.
    let (_scratch, path) = scratch();
    filled(&path).await;
    let whole = path.with_file_name("whole");
    copy(&path, &whole);

    let fresh = path.with_file_name("fresh");
    open(&fresh).await;
    let leftovers: [(&str, fn(&Path)); 7] = [
        ("directory only", |path| {
            fs::remove_dir_all(path.join("rows")).expect("remove");
            fs::remove_file(path.join("head")).expect("remove");
            fs::remove_file(path.join("lock")).expect("remove");
        }),
        ("empty rows.new", |path| {
            fs::rename(path.join("rows"), path.join("rows.new")).expect("rename");
            fs::remove_file(path.join("head")).expect("remove");
            fs::remove_file(path.join("rows.new/db")).expect("remove");
            fs::remove_file(path.join("rows.new/conf")).expect("remove");
        }),
        ("whole rows.new", |path| {
            fs::rename(path.join("rows"), path.join("rows.new")).expect("rename");
            fs::remove_file(path.join("head")).expect("remove");
        }),
        ("rows without head", |path| fs::remove_file(path.join("head")).expect("remove")),
        ("rows with half a head", |path| {
            fs::rename(path.join("head"), path.join("head.new")).expect("rename");
            fs::OpenOptions::new().write(true).open(path.join("head.new")).expect("open").set_len(10).expect("cut");
        }),
        ("both heads", |path| {
            fs::copy(path.join("head"), path.join("head.new")).expect("copy");
        }),
        ("engine's leftovers", |path| {
            fs::write(path.join("rows/snap.00000000000000AA.generating"), "half").expect("write");
            set_mode(&path.join("rows/db"), 0o644);
        }),
    ];
    for (name, leave) in leftovers {
        let path = path.with_file_name(name.replace(' ', "-"));
        copy(&fresh, &path);
        leave(&path);
        for start in 0..2 {
            let store = open(&path).await;
            assert_eq!(store.damaged(), [], "{name}, start {start}");
            store.apply(vec![Change::put(key("x"), "x")]).await.expect(name);
        }
    }
    // The same leftovers beside rows that were written to: nothing may be begun anew.
    for (name, leave) in leftovers.iter().skip(1).take(4) {
        let path = path.with_file_name(format!("written-{}", name.replace(' ', "-")));
        copy(&whole, &path);
        leave(&path);
        match open_sled(&path, KEY).await {
            // Without rows and head there is nothing left to tell that there ever was a store.
            Ok(store) if name.ends_with("rows.new") => assert_eq!(store.damaged(), []),
            Ok(store) => assert!(!store.damaged().is_empty(), "{name}"),
            Err(error) => assert_eq!(error.reason(), "damaged", "{name}"),
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("mkdir");
    set_mode(to, 0o700);
    for entry in fs::read_dir(from).expect("list") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).expect("copy");
            set_mode(&target, 0o600);
        }
    }
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
async fn an_old_version_of_a_row_is_found_at_the_start_and_while_running() {
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
    let spoil: [(fn(&Path), &[&str]); 4] = [
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
    let snapshots = super::engine::snapshots(&path.join("rows"), None).expect("list");
    assert!(!snapshots.is_empty());
    for snapshot in snapshots {
        open_file(&snapshot).write_all_at(&[0xa5; 24], 0).expect("write");
    }
    let store = open(&path).await;
    assert_eq!(store.damaged(), []);
    assert_eq!(store.list(Kind::Record, b"").await.expect("list").len(), 11);
}

#[tokio::test]
async fn no_value_makes_the_engine_use_a_file_of_its_own() {
    // Such files are never synced by the engine: see engine.rs.
    let (_scratch, path) = scratch();
    let store = open(&path).await;
    for round in 0..4_u8 {
        let changes = (0..60).map(|number| Change::put(key(&format!("{number:0>400}")), vec![round; 66_000]));
        store.apply(changes.collect()).await.expect("apply");
    }
    drop(store);
    open(&path).await;
    assert_eq!(fs::read_dir(path.join("rows/blobs")).expect("list").count(), 0);
}

#[tokio::test]
async fn overwriting_does_not_grow_the_file_without_end() {
    let (_scratch, path) = scratch();
    let store = open(&path).await;
    for round in 0..300_u32 {
        let changes = (0..100).map(|number| Change::put(key(&number.to_string()), round.to_be_bytes().repeat(64)));
        store.apply(changes.collect()).await.expect("apply");
    }
    let bytes = fs::metadata(path.join("rows/db")).expect("metadata").len();
    assert!(bytes <= 16 * 1024 * 1024, "{bytes} bytes for 100 rows of 256 bytes");
}

#[test]
fn a_store_that_was_never_written_to_has_a_manifest() {
    let (_scratch, path) = scratch();
    drop(Session::begin(&path, &KEY).expect("session"));
    let engine = Engine::open(&path.join("rows")).expect("engine");
    let (table, damage) = Table::load(&engine, &Sealer::new(&KEY), None).expect("table");
    assert_eq!((table.revision(), damage), (Revision(0), Vec::new()));
    let (_, damage) = Table::load(&engine, &Sealer::new(&[1; 32]), None).expect("table");
    assert_eq!(damage[0].reason(), "manifest");
}

/// A small disk of its own, while it lives; `None` where nothing can be mounted.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs"]).arg(directory.path());
        mount.output().is_ok_and(|output| output.status.success()).then_some(Self(directory))
    }

    /// Leaves about `free` bytes.
    fn fill(&self, free: u64) -> PathBuf {
        let stat = nix::sys::statvfs::statvfs(self.0.path()).expect("statvfs");
        let bytes = (stat.blocks_available() * stat.fragment_size()).saturating_sub(free);
        let path = self.0.path().join("ballast");
        fs::write(&path, vec![1; bytes as usize]).expect("ballast");
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

#[tokio::test]
async fn without_room_a_write_is_refused_and_taken_again_when_there_is_room() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("skipped: nothing can be mounted here");
        return;
    };
    let path = disk.0.path().join("store");
    filled(&path).await;
    let store = open(&path).await;
    let ballast = disk.fill(256 * 1024);
    let refused = store.apply(vec![Change::put(key("more"), "more")]).await;
    assert!(matches!(refused, Err(StoreError::Full { .. })), "{refused:?}");
    assert_eq!(store.list(Kind::Record, b"").await.expect("reads go on").len(), 11);
    fs::remove_file(ballast).expect("room");
    store.apply(vec![Change::put(key("more"), "more")]).await.expect("room again");
    assert_eq!(store.damaged(), []);
}

#[test]
fn when_the_disk_itself_refuses_nothing_acknowledged_is_lost() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("skipped: nothing can be mounted here");
        return;
    };
    for free in [0, 100_000, 600_000, 1_200_000] {
        let path = disk.0.path().join(free.to_string());
        let mut session = Session::begin(&path, &KEY).expect("session");
        let attached = session.attach().expect("engine");
        let damage = SharedDamage::default();
        let mut writer = Writer::new(session, attached, Arc::clone(&damage));
        writer.room_is_checked = false;
        let (requests, queue) = mpsc::channel();
        let thread = std::thread::spawn(move || writer.run(&queue));
        let places = Arc::new(Semaphore::new(10));
        let apply = |number: u32| {
            let (reply, answer) = oneshot::channel();
            let rows = (0..40).map(|row| Change::put(key(&format!("{number}/{row}")), vec![number as u8; 1000]));
            let _permit = Arc::clone(&places).try_acquire_owned().expect("place");
            requests.send(Request { what: What::Apply(rows.collect(), reply), _permit }).expect("queued");
            answer.blocking_recv().expect("answer")
        };
        let mut acknowledged: Vec<u32> = (0..5).filter(|number| apply(*number).is_ok()).collect();
        assert_eq!(acknowledged.len(), 5);
        let ballast = disk.fill(free);
        let mut refused = 0;
        for number in 5..60 {
            match apply(number) {
                Ok(_) => acknowledged.push(number),
                Err(error) => {
                    assert!(matches!(error.reason(), "unavailable" | "uncertain"), "{error}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 0, "the disk had room for all");
        fs::remove_file(ballast).expect("room");
        // The engine is tried anew once a second.
        let again = (0..50).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(100));
            apply(100).is_ok()
        });
        assert!(again, "it did not recover within 5 s");
        acknowledged.push(100);
        drop(requests);
        thread.join().expect("writer");
        assert_eq!(*damage.lock().expect("damage"), []);

        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        runtime.block_on(async {
            let store = open(&path).await;
            assert_eq!(store.damaged(), []);
            for number in acknowledged {
                let rows = store.list(Kind::Record, format!("{number}/").as_bytes()).await.expect("list");
                assert_eq!(rows.len(), 40, "apply {number} with {free} bytes free");
            }
        });
        fs::remove_dir_all(&path).expect("next");
    }
}
