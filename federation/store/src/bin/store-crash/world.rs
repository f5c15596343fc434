//! What all campaigns share: numbers from a seed, values that say who wrote them, copies of a store.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
    sync::Arc,
};

use federation_store::{OpenError, Store, open_sled};

/// The key of every store here.
const MAC_KEY: [u8; 32] = [0x2a; 32];

pub(crate) async fn open(path: &Path) -> Result<Arc<dyn Store>, OpenError> {
    open_sled(path, MAC_KEY).await
}

/// Numbers that are the same in each run with the same seed (splitmix64, Steele et al. 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to `bound - 1`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// The value that operation `operation` writes under `name`: most are short, some have many parts.
pub(crate) fn value(operation: u64, name: &str) -> Vec<u8> {
    let mut random =
        Random::new(operation.wrapping_mul(31) ^ name.bytes().fold(7, |sum, byte| sum * 33 + u64::from(byte)));
    let length = match random.below(20) {
        0 => random.below(20_000),
        1 => 4000 + random.below(200),
        _ => random.below(800),
    };
    let mut value = operation.to_be_bytes().to_vec();
    value.extend((0..length).map(|at| (at as u8).wrapping_mul(operation as u8 | 1)));
    value
}

/// Copies a store's directory; `to` is replaced.
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(to)?;
    if !from.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
            fs::set_permissions(&target, fs::Permissions::from_mode(0o600))?;
        }
    }
    Ok(())
}
