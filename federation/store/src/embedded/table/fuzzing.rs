//! Rows, manifest and head as they may lie on a damaged disk: nothing is read that this store's key did not seal.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, Write},
    sync::LazyLock,
};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{
    super::head::{Found, Head},
    EngineError, FIRST_BYTES, KINDS, MANIFEST_KEY, Manifest, PART, PART_BYTES, ROW, RowFault, Sealer, StoreId, Sum,
    Table, raw_key, row_key,
};
use crate::{Key, Kind, Revision};

const STORE: StoreId = StoreId([3; 16]);

static SEALER: LazyLock<Sealer> = LazyLock::new(|| Sealer::new(&[7; 32]));

/// A store of three rows, of which the last has further parts: what lies in its engine.
static WRITTEN: LazyLock<BTreeMap<Vec<u8>, Vec<u8>>> = LazyLock::new(|| {
    let table = table();
    let mut staged = table.stage();
    staged.next();
    for (position, value) in values().into_iter().enumerate() {
        table.change(&mut staged, key(position), Some(value), position as u32);
    }
    table.writes(&mut staged).into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
});

fn table() -> Table {
    Table {
        store: STORE,
        sealer: SEALER.clone(),
        revision: Revision(4),
        index: BTreeMap::new(),
        sums: [Sum::default(); KINDS],
    }
}

fn key(number: usize) -> Key {
    Key::new(Kind::Local, format!("row {number}"))
}

fn values() -> [Vec<u8>; 3] {
    [Vec::new(), b"its value".to_vec(), vec![9; FIRST_BYTES + PART_BYTES + 5]]
}

/// Inputs from which each target starts.
pub(crate) fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "store_row" => {
            WRITTEN.iter().filter(|(raw, _)| raw.first() != Some(&PART)).map(|(_, value)| value.clone()).collect()
        }
        "store_head" => {
            let mut file = in_memory(&[]);
            let copy = file.try_clone().expect("a second handle");
            drop(Head::create(copy, STORE, Revision(5), &SEALER).expect("made"));
            let mut bytes = Vec::new();
            file.rewind().expect("rewound");
            file.read_to_end(&mut bytes).expect("read");
            vec![bytes[..200].to_vec(), bytes]
        }
        _ => Vec::new(),
    }
}

/// One value of the engine, read as a row of each key and as the manifest; and as a raw key.
pub(crate) fn row(data: &[u8]) {
    let written = &*WRITTEN;
    let table = table();
    for (number, value) in values().into_iter().enumerate() {
        let mut asked = 0;
        let read = table.check_row(&key(number), data, &mut |part: &[u8]| {
            asked += 1;
            Ok::<_, EngineError>(written.get(part).cloned())
        });
        match read {
            Ok((entry, found)) => {
                assert_eq!(
                    Some(data),
                    written.get(&raw_key(&key(number))).map(Vec::as_slice),
                    "nobody sealed this row"
                );
                assert_eq!((found, entry.revision), (value, Revision(5)));
            }
            Err(RowFault::Engine(_)) => panic!("the engine did not fail"),
            // Of a row that lies about its length no more is read than there is.
            Err(RowFault::Parts | RowFault::Altered(_)) => assert!(asked <= 3, "{asked} parts were read"),
        }
    }
    if Manifest::parse(data, &SEALER).is_ok() {
        assert_eq!(Some(data), written.get(&MANIFEST_KEY[..]).map(Vec::as_slice), "nobody sealed this manifest");
    }
    if data.first() == Some(&ROW)
        && let Some(key) = row_key(data)
    {
        assert_eq!(raw_key(&key), data, "two keys are one row");
    }
}

/// A head file: what it says, it was once told.
pub(crate) fn head(data: &[u8]) {
    match Head::read(in_memory(data), &SEALER).expect("a file in memory is read") {
        Found::Sound(mut head) => {
            assert_eq!((head.store(), head.revision()), (STORE, Revision(5)), "nobody wrote this head");
            // The next one is believed in its place, whatever lay in the other slot.
            head.write(Revision(6), &SEALER).expect("written");
            let Found::Sound(next) = head.reread(&SEALER) else { panic!("a head that was just written is lost") };
            assert_eq!(next.revision(), Revision(6));
        }
        Found::Unreadable(_) | Found::OtherKey => {}
    }
}

fn in_memory(bytes: &[u8]) -> File {
    let mut file: File = memfd_create(c"head", MFdFlags::MFD_CLOEXEC).expect("a file in memory").into();
    file.write_all(bytes).expect("written");
    file
}
