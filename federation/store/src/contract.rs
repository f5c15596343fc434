//! What every store promises, as one battery that each of them passes.
//!
//! A store in another room runs [`run`] in its own tests (feature `contract`).

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    CHANGES_MAX, Change, Expect, Key, Kind, NAME_BYTES_MAX, Revision, Row, Store, StoreError, VALUE_BYTES_MAX,
};

type Shared = Arc<dyn Store>;

/// Runs every case, each on a store that `make` made and that is empty.
///
/// # Panics
/// A promise is broken.
pub async fn run(make: impl AsyncFn() -> Shared) {
    a_new_store_is_empty(make().await).await;
    rows_are_read_back_and_listed_in_order(make().await).await;
    kinds_and_prefixes_do_not_mix(make().await).await;
    a_revision_is_that_of_the_apply_that_wrote(make().await).await;
    expectations_hold_or_nothing_changes(make().await).await;
    bounds_are_refused_and_change_nothing(make().await).await;
    values_of_every_length_come_back(make().await).await;
    thousands_of_changes_are_one_apply(make().await).await;
    of_many_that_swap_one_wins(make().await).await;
    concurrent_writers_lose_nothing(make().await).await;
    any_history_gives_what_a_map_would(make().await).await;
    all_rows_are_of_one_moment(make().await).await;
}

fn key(name: impl Into<Vec<u8>>) -> Key {
    Key::new(Kind::Local, name)
}

async fn value(store: &Shared, key: &Key) -> Option<Vec<u8>> {
    store.get(key).await.expect("get").map(|row| row.value)
}

async fn list(store: &Shared, kind: Kind, prefix: &[u8]) -> Vec<Row> {
    store.list(kind, prefix).await.expect("list")
}

async fn a_new_store_is_empty(store: Shared) {
    for kind in Kind::ALL {
        assert_eq!(list(&store, kind, b"").await, [], "{kind}");
    }
    assert_eq!(store.get(&key("a")).await, Ok(None));
    assert_eq!(store.apply(Vec::new()).await, Ok(Revision(0)));
    assert_eq!(store.damaged(), []);
}

async fn rows_are_read_back_and_listed_in_order(store: Shared) {
    let names: [&[u8]; 9] = [b"\0", b"\0\0", b"a", b"a\0", b"a\0b", b"aa", b"b", b"\xff", b"\xff\xff"];
    for name in names.iter().rev() {
        store.apply(vec![Change::put(key(*name), *name)]).await.expect("apply");
    }
    let rows = list(&store, Kind::Local, b"").await;
    assert_eq!(rows.iter().map(|row| &row.key.name[..]).collect::<Vec<_>>(), names);
    assert!(rows.iter().all(|row| row.key.name == row.value));
    for name in names {
        assert_eq!(value(&store, &key(name)).await.as_deref(), Some(name));
    }
    store.apply(vec![Change::delete(key("a"))]).await.expect("delete");
    assert_eq!(value(&store, &key("a")).await, None);
    assert_eq!(list(&store, Kind::Local, b"").await.len(), names.len() - 1);
    assert_eq!(value(&store, &key("a\0")).await.as_deref(), Some(&b"a\0"[..]));
}

async fn kinds_and_prefixes_do_not_mix(store: Shared) {
    let changes = Kind::ALL.map(|kind| Change::put(Key::new(kind, "same"), kind.name()));
    store.apply(changes.to_vec()).await.expect("apply");
    for kind in Kind::ALL {
        let rows = list(&store, kind, b"").await;
        assert_eq!(rows.len(), 1, "{kind}");
        assert_eq!(rows[0].value, kind.name().as_bytes());
        assert_eq!(rows[0].key, Key::new(kind, "same"));
    }
    store.apply(vec![Change::delete(Key::new(Kind::Record, "same"))]).await.expect("delete");
    assert!(value(&store, &Key::new(Kind::Own, "same")).await.is_some());

    for name in ["p", "p/1", "p/2", "p0", "q"] {
        store.apply(vec![Change::put(key(name), "x")]).await.expect("apply");
    }
    for name in [&b"\xff"[..], b"\xff\x01"] {
        store.apply(vec![Change::put(key(name), "x")]).await.expect("apply");
    }
    let named = |rows: Vec<Row>| rows.into_iter().map(|row| row.key.name).collect::<Vec<_>>();
    assert_eq!(named(list(&store, Kind::Local, b"p/").await), [b"p/1", b"p/2"]);
    assert_eq!(named(list(&store, Kind::Local, b"p").await).len(), 4);
    assert_eq!(named(list(&store, Kind::Local, b"\xff").await).len(), 2);
    assert_eq!(list(&store, Kind::Local, b"none").await, []);
}

async fn a_revision_is_that_of_the_apply_that_wrote(store: Shared) {
    let one = store.apply(vec![Change::put(key("a"), "1"), Change::put(key("b"), "1")]).await.expect("apply");
    let two = store.apply(vec![Change::put(key("b"), "2")]).await.expect("apply");
    assert_eq!((one, two), (Revision(1), Revision(2)));
    let revisions: Vec<_> = list(&store, Kind::Local, b"").await.iter().map(|row| row.revision).collect();
    assert_eq!(revisions, [one, two]);
    assert_eq!(store.apply(Vec::new()).await, Ok(two));
    let conflict = store.apply(vec![Change::put(key("c"), "3").expecting(Expect::Is(two))]).await;
    assert!(matches!(conflict, Err(StoreError::Conflict { found: None, .. })), "{conflict:?}");
    assert_eq!(store.apply(Vec::new()).await, Ok(two), "a refused apply takes no revision");
    assert_eq!(store.apply(vec![Change::delete(key("gone"))]).await, Ok(Revision(3)));
}

async fn expectations_hold_or_nothing_changes(store: Shared) {
    let put = |name: &str, value: &str, expected| Change::put(key(name), value).expecting(expected);
    let first = store.apply(vec![put("a", "1", Expect::Absent)]).await.expect("absent");
    let conflict = store.apply(vec![put("b", "1", Expect::Absent), put("a", "2", Expect::Absent)]).await;
    let expected = StoreError::Conflict { key: key("a"), expected: Expect::Absent, found: Some(first) };
    assert_eq!(conflict, Err(expected));
    assert_eq!(value(&store, &key("b")).await, None, "the first change of a refused apply was made");

    let second = store.apply(vec![put("a", "2", Expect::Is(first))]).await.expect("as expected");
    for stale in [Expect::Is(first), Expect::Is(Revision(0)), Expect::Is(Revision(u64::MAX)), Expect::Absent] {
        let refused = store.apply(vec![put("a", "3", stale), Change::delete(key("a2"))]).await;
        assert!(matches!(refused, Err(StoreError::Conflict { .. })), "{stale:?}");
        let refused = store.apply(vec![Change::delete(key("a")).expecting(stale)]).await;
        assert!(matches!(refused, Err(StoreError::Conflict { .. })), "{stale:?}");
    }
    assert_eq!(value(&store, &key("a")).await.as_deref(), Some(&b"2"[..]));
    store.apply(vec![Change::delete(key("a")).expecting(Expect::Is(second))]).await.expect("delete as expected");
    store.apply(vec![Change::delete(key("a")).expecting(Expect::Absent)]).await.expect("absent again");
    let third = store.apply(vec![put("a", "4", Expect::Absent)]).await.expect("absent again");
    assert!(third > second, "a row that comes back has a new revision");
}

async fn bounds_are_refused_and_change_nothing(store: Shared) {
    let good = || Change::put(key("good"), "x");
    let cases = [
        (vec![good(), Change::put(key(""), "x")], "unnamed"),
        (vec![good(), Change::put(key(vec![b'n'; NAME_BYTES_MAX + 1]), "x")], "too_long"),
        (vec![good(), Change::put(key("v"), vec![0; VALUE_BYTES_MAX + 1])], "too_long"),
        (vec![good(), Change::put(key("t"), "1"), Change::delete(key("t"))], "twice"),
        (vec![good(); CHANGES_MAX + 1], "too_many"),
    ];
    for (changes, reason) in cases {
        assert_eq!(store.apply(changes).await.expect_err(reason).reason(), reason);
    }
    assert_eq!(value(&store, &key("good")).await, None);
    assert_eq!(store.get(&key("")).await, Err(StoreError::Unnamed));
    assert_eq!(store.apply(Vec::new()).await, Ok(Revision(0)));

    let widest = key(vec![b'n'; NAME_BYTES_MAX]);
    store.apply(vec![Change::put(widest.clone(), vec![7; VALUE_BYTES_MAX])]).await.expect("the bound itself");
    assert_eq!(value(&store, &widest).await, Some(vec![7; VALUE_BYTES_MAX]));
}

async fn values_of_every_length_come_back(store: Shared) {
    // Around the places where a store may cut values into parts.
    let lengths: Vec<usize> =
        (0..3).chain(4030..4110).chain(8120..8200).chain([20_000, 65_535, 65_536, 200_001]).collect();
    let filled = |length: usize| (0..length).map(|at| (at * 31 + length) as u8).collect::<Vec<_>>();
    for round in 0..2 {
        for length in &lengths {
            let change = Change::put(key(format!("{length:06}")), filled(length + round));
            store.apply(vec![change]).await.expect("apply");
        }
        let rows = list(&store, Kind::Local, b"").await;
        assert_eq!(rows.len(), lengths.len());
        for (row, length) in rows.iter().zip(&lengths) {
            assert_eq!(row.value, filled(length + round), "length {length}");
        }
    }
    let all = lengths.iter().map(|length| Change::delete(key(format!("{length:06}")))).collect();
    store.apply(all).await.expect("delete");
    assert_eq!(list(&store, Kind::Local, b"").await, []);
}

async fn thousands_of_changes_are_one_apply(store: Shared) {
    let name = |number: u32| key(number.to_be_bytes());
    let changes: Vec<_> = (0..5000).map(|number| Change::put(name(number), vec![number as u8; 300])).collect();
    let revision = store.apply(changes.clone()).await.expect("apply");
    let rows = list(&store, Kind::Local, b"").await;
    assert_eq!(rows.len(), 5000);
    assert!(rows.iter().all(|row| row.revision == revision));

    let mut late = changes;
    late.push(Change::put(key("late"), "x").expecting(Expect::Is(Revision(77))));
    assert!(store.apply(late).await.is_err());
    assert!(list(&store, Kind::Local, b"").await.iter().all(|row| row.revision == revision), "a part was made");
}

/// Runs `work` at once for each number.
async fn at_once<T, F>(store: &Shared, count: u32, work: impl Fn(Shared, u32) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let tasks: Vec<_> = (0..count).map(|number| tokio::spawn(work(Arc::clone(store), number))).collect();
    let mut outcomes = Vec::new();
    for task in tasks {
        outcomes.push(task.await.expect("task"));
    }
    outcomes
}

async fn of_many_that_swap_one_wins(store: Shared) {
    for round in 0..20 {
        let token = key(format!("token {round}"));
        let open = store.apply(vec![Change::put(token.clone(), "open")]).await.expect("open");
        let redeem = |store: Shared, number: u32| {
            let token = token.clone();
            async move {
                let used = Change::put(token, number.to_be_bytes()).expecting(Expect::Is(open));
                let member = Change::put(Key::new(Kind::Record, format!("{round} {number}")), "member");
                store.apply(vec![member, used]).await
            }
        };
        let outcomes = at_once(&store, 32, redeem).await;
        let winners: Vec<_> = (0..32_u32).filter(|number| outcomes[*number as usize].is_ok()).collect();
        assert_eq!(winners.len(), 1, "{outcomes:?}");
        assert_eq!(value(&store, &token).await, Some(winners[0].to_be_bytes().to_vec()));
        let members = list(&store, Kind::Record, format!("{round} ").as_bytes()).await;
        assert_eq!(members.len(), 1, "losers left something");
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(_) | Err(StoreError::Conflict { .. }))));
    }
}

async fn concurrent_writers_lose_nothing(store: Shared) {
    let revisions = at_once(&store, 8, |store, writer| async move {
        let mut revisions = Vec::new();
        for number in 0..25_u32 {
            let own = key([writer.to_be_bytes(), number.to_be_bytes()].concat());
            revisions.push(store.apply(vec![Change::put(own.clone(), "x")]).await.expect("apply"));
            assert!(store.get(&own).await.expect("get").is_some(), "a reader does not see what was applied");
        }
        revisions
    })
    .await;
    assert_eq!(list(&store, Kind::Local, b"").await.len(), 200);
    assert!(revisions.iter().all(|own| own.is_sorted()));
    let mut all = revisions.concat();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 200, "two applies had one revision");
}

async fn all_rows_are_of_one_moment(store: Shared) {
    assert_eq!(store.all().await, Ok((Revision(0), Vec::new())));
    // Each apply writes its number under every kind: rows of two moments would differ.
    let writer = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for number in 0..200_u32 {
                let changes = Kind::ALL.map(|kind| Change::put(Key::new(kind, "n"), number.to_be_bytes()));
                store.apply(changes.to_vec()).await.expect("apply");
            }
        })
    };
    while !writer.is_finished() {
        let (revision, rows) = store.all().await.expect("all");
        assert!(rows.iter().all(|row| row.value == rows[0].value && row.revision == revision), "{rows:?}");
        tokio::task::yield_now().await;
    }
    writer.await.expect("writer");
    let (revision, rows) = store.all().await.expect("all");
    assert_eq!(revision, Revision(200));
    assert_eq!(rows.iter().map(|row| row.key.kind).collect::<Vec<_>>(), Kind::ALL);
    for (row, kind) in rows.iter().zip(Kind::ALL) {
        assert_eq!(list(&store, kind, b"").await, std::slice::from_ref(row));
    }
}

async fn any_history_gives_what_a_map_would(store: Shared) {
    let mut random = Random(0x5eed_0001);
    let mut model: BTreeMap<Key, Row> = BTreeMap::new();
    let mut revision = Revision(0);
    for step in 0..400 {
        let mut changes: BTreeMap<Key, Change> = BTreeMap::new();
        let mut holds = true;
        for _ in 0..random.below(6) {
            let key = Key::new(Kind::ALL[random.below(5)], format!("k{}", random.below(12)));
            let found = model.get(&key).map(|row| row.revision);
            let change = match random.below(3) {
                0 => Change::delete(key.clone()),
                _ => Change::put(key.clone(), vec![random.below(256) as u8; random.below(6000)]),
            };
            let expected = match (random.below(8), found) {
                (0, _) => Expect::Is(Revision(random.below(40) as u64)),
                (1, _) => Expect::Absent,
                (2 | 3, Some(found)) => Expect::Is(found),
                _ => Expect::Any,
            };
            if changes.contains_key(&key) {
                continue;
            }
            holds &= expected.holds(found);
            changes.insert(key, change.expecting(expected));
        }
        let outcome = store.apply(changes.values().cloned().collect()).await;
        assert_eq!(outcome.is_ok(), holds, "step {step}: {outcome:?}");
        if holds && !changes.is_empty() {
            revision.0 += 1;
            for (key, change) in changes {
                match change {
                    Change::Put { value, .. } => _ = model.insert(key.clone(), Row { key, value, revision }),
                    Change::Delete { .. } => _ = model.remove(&key),
                }
            }
        }
        if holds {
            assert_eq!(outcome, Ok(revision), "step {step}");
        }
        let kind = Kind::ALL[random.below(5)];
        let expected: Vec<_> = model.values().filter(|row| row.key.kind == kind).cloned().collect();
        assert_eq!(list(&store, kind, b"").await, expected, "step {step}");
    }
}

/// Numbers that are the same in each run (xorshift64*, Vigna 2016).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// From 0 to `bound - 1`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound
    }
}
