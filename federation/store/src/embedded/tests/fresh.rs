//! A store made beside its place.

use std::fs;

use super::{KEY, filled, key, open, scratch};
use crate::{Change, Expect, NewStore, OpenError, Revision};

#[tokio::test]
async fn a_new_store_is_in_its_place_only_once_it_is_whole() {
    let (_directory, path) = scratch();
    for attempt in 0..2 {
        let new = NewStore::begin(&path, KEY).await.expect("begins");
        let changes = (0..500).map(|n| Change::put(key(&format!("r{n}")), vec![attempt; 300]));
        new.store().apply(changes.collect()).await.expect("apply");
        assert!(!path.exists() && NewStore::was_interrupted(&path));
        if attempt == 0 {
            // As if killed: what is left over is no store, and the next attempt begins anew.
            drop(new);
        } else {
            new.finish().expect("finished");
        }
    }
    assert!(!NewStore::was_interrupted(&path));
    let store = open(&path).await;
    assert_eq!(store.damaged(), []);
    let (revision, rows) = store.all().await.expect("rows");
    assert_eq!((revision, rows.len()), (Revision(1), 500));
    assert!(rows.iter().all(|row| row.value == [1; 300]));
    store.apply(vec![Change::put(key("more"), "x").expecting(Expect::Absent)]).await.expect("goes on");
}

#[tokio::test]
async fn nothing_that_is_there_is_touched() {
    let (_directory, path) = scratch();
    filled(&path).await;
    assert!(matches!(NewStore::begin(&path, KEY).await, Err(OpenError::NotEmpty { .. })));
    assert_eq!(open(&path).await.all().await.expect("rows").1.len(), 12);

    let (_directory, path) = scratch();
    fs::write(&path, "a file").expect("written");
    assert!(matches!(NewStore::begin(&path, KEY).await, Err(OpenError::NotEmpty { .. })));

    // It came while the other was made.
    let (_directory, path) = scratch();
    let new = NewStore::begin(&path, KEY).await.expect("begins");
    filled(&path).await;
    assert!(matches!(new.finish(), Err(OpenError::NotEmpty { .. })));
    assert_eq!(open(&path).await.all().await.expect("rows").1.len(), 12);
}

#[tokio::test]
async fn an_empty_directory_is_nothing_and_what_is_given_up_is_gone() {
    let (_directory, path) = scratch();
    fs::create_dir(&path).expect("made");
    NewStore::begin(&path, KEY).await.expect("begins").abandon().expect("given up");
    assert!(path.exists() && !NewStore::was_interrupted(&path));
    let new = NewStore::begin(&path, KEY).await.expect("begins");
    new.store().apply(vec![Change::put(key("a"), "1")]).await.expect("apply");
    new.finish().expect("finished");
    assert_eq!(open(&path).await.all().await.expect("rows").1.len(), 1);
}
