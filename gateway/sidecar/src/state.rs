//! What a sidecar keeps on disk, so that it serves while its edge is away: identity, records, addresses.
//!
//! In: bytes. Out: the same bytes after a restart, or nothing. Never: trusts what it reads; callers verify it again.

use std::{
    fs,
    io::{self, Read, Write},
    net::Ipv4Addr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use federation_model::ServiceRef;
use prost::Message;
use proto::workload::Identity;

/// Largest file that is read back.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The sidecar's folder, mode 0700, files 0600.
#[derive(Debug, Clone)]
pub(crate) struct State(PathBuf);

impl State {
    /// Opens the folder, making it if it is not there.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let shown = folder.display();
        match fs::symlink_metadata(folder) {
            Ok(found) if !found.is_dir() => bail!("state_dir {shown} is no folder"),
            Ok(found) if found.permissions().mode() & 0o077 != 0 => {
                bail!("state_dir {shown} is open to other users: run `chmod 700 {shown}`, it holds a private key")
            }
            Ok(_) => {}
            Err(_) => fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .with_context(|| format!("making state_dir {shown}"))?,
        }
        Ok(Self(folder.to_owned()))
    }

    /// The private key (PKCS#8 DER) and the identity that goes with it.
    pub(crate) fn identity(&self) -> Option<(Vec<u8>, Option<Identity>)> {
        let key = self.read("key").ok().filter(|key| !key.is_empty())?;
        let identity = self.read("identity").ok().and_then(|bytes| Identity::decode(bytes.as_slice()).ok());
        Some((key, identity))
    }

    /// Keeps the key before it is used to enrol, so that a retry uses the same one.
    pub(crate) fn keep_key(&self, key: &[u8]) -> Result<()> {
        self.write("key", key)
    }

    /// The key with which a token was used: the token works again for it, and for no other.
    pub(crate) fn enrolled_key(&self) -> Option<Vec<u8>> {
        self.read("enrolled-key").ok().filter(|key| !key.is_empty())
    }

    pub(crate) fn keep_enrolled_key(&self, key: &[u8]) -> Result<()> {
        self.write("enrolled-key", key)
    }

    pub(crate) fn keep_identity(&self, identity: &Identity) -> Result<()> {
        self.write("identity", &identity.encode_to_vec())
    }

    /// Envelopes of the last feed.
    pub(crate) fn records(&self) -> Vec<Vec<u8>> {
        let held = self.read("records").unwrap_or_default();
        proto::workload::Records::decode(held.as_slice()).map(|records| records.added).unwrap_or_default()
    }

    pub(crate) fn keep_records(&self, added: Vec<Vec<u8>>) -> Result<()> {
        let records = proto::workload::Records { added, removed: Vec::new(), synced: true, federation: Vec::new() };
        self.write("records", &records.encode_to_vec())
    }

    /// Loopback addresses given out before: a line each, name and address.
    pub(crate) fn addresses(&self) -> Vec<(ServiceRef, Ipv4Addr)> {
        let text = String::from_utf8(self.read("addresses").unwrap_or_default()).unwrap_or_default();
        let parse = |line: &str| {
            let (name, address) = line.split_once(' ')?;
            Some((name.parse().ok()?, address.parse().ok()?))
        };
        text.lines().filter_map(parse).collect()
    }

    pub(crate) fn keep_addresses(&self, addresses: &[(ServiceRef, Ipv4Addr)]) -> Result<()> {
        let text: String = addresses.iter().map(|(name, address)| format!("{name} {address}\n")).collect();
        self.write("addresses", text.as_bytes())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        fs::File::open(self.0.join(name))?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Whole or not at all: written beside and renamed over.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let (path, beside) = (self.0.join(name), self.0.join(format!("{name}.new")));
        let write = || {
            let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&beside)?;
            file.write_all(bytes)?;
            file.sync_data()?;
            fs::rename(&beside, &path)
        };
        write().with_context(|| format!("writing {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_it_was_given_and_closes_the_folder() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("state");
        let state = State::open(&path).expect("open");
        assert!(state.identity().is_none());
        state.keep_key(b"key").expect("key");
        state.keep_records(vec![b"a".to_vec()]).expect("records");
        let name: ServiceRef = "pay.billing.west".parse().expect("name");
        state.keep_addresses(&[(name.clone(), Ipv4Addr::new(127, 64, 0, 1))]).expect("addresses");
        let again = State::open(&path).expect("again");
        assert_eq!(again.identity().map(|(key, _)| key), Some(b"key".to_vec()));
        assert_eq!(again.records(), [b"a".to_vec()]);
        assert_eq!(again.addresses(), [(name, Ipv4Addr::new(127, 64, 0, 1))]);
        assert_eq!(fs::metadata(&path).expect("folder").permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(path.join("key")).expect("key").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn refuses_a_folder_that_others_can_read() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("mode");
        let message = State::open(folder.path()).expect_err("open to others").to_string();
        assert!(message.contains("chmod 700"), "{message}");
    }

    #[test]
    fn damaged_files_read_as_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).expect("mode");
        let state = State::open(folder.path()).expect("open");
        for name in ["records", "addresses", "identity"] {
            fs::write(folder.path().join(name), [0xff; 100]).expect("write");
        }
        assert!(state.records().is_empty() && state.addresses().is_empty() && state.identity().is_none());
    }
}
