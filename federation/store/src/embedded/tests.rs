//! The store on disk: what survives, who is kept out, and what is found when files were changed.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
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
use crate::{Change, Expect, Key, Kind, OpenError, Revision, Store, StoreError, contract};

mod damaged;
mod fresh;
mod room;

const KEY: [u8; 32] = [0x4b; 32];

/// Does something to a file or directory.
type Spoil = fn(&Path);
/// The same, and says which one.
type SpoilAndName = Box<dyn Fn(&Path) -> PathBuf>;

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
    assert_eq!(open(&path).await.damaged(), []);
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
    let mut cases: Vec<SpoilAndName> = Vec::new();
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
    let hard_link = |path: &Path| {
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
    let leftovers: [(&str, Spoil); 7] = [
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
