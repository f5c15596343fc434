//! Every signature and every proof: who a peer is, who wrote a record, who may read a value.
//!
//! In: certificates, headers, proofs and records as bytes, trust bundles, keys. Out: [`VerifiedPeer`] and
//! [`Authentic`], the only values of their kind; TLS configurations that check what this crate checks; signatures.
//! Never: decides who may talk to whom, opens a socket (a signer apart is asked over one that is given), or keeps a store. No cryptography but that of aws-lc-rs.
//!
//! [`VerifiedPeer`]: federation_model::VerifiedPeer
//! [`Authentic`]: federation_model::Authentic

mod authority;
pub mod backup;
mod certificate;
mod csr;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod join;
pub mod passthrough;
pub mod receipt;
pub mod record;
pub mod seal;
pub mod signer;
mod svid;
#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(not(test), allow(dead_code, clippy::unwrap_used, reason = "fuzzers use a part of it"))]
mod testing;
#[cfg(any(test, feature = "fuzzing"))]
mod testing_vectors;
pub mod tls;
pub mod token;
mod verifier;

use std::time::SystemTime;

use aws_lc_rs::digest;
use federation_model::{ClusterId, Digest, FederationId, ReplicationKey, Timestamp};

pub use authority::{
    Above, Authority, AuthorityError, AuthorityKeys, CERTIFICATE_BACKDATE, CertificateSummary, IssueError, Issued,
    LocalSigner, NextKeys, ROOT_LIFETIME, RotationError, RotationStage, RotationStep, SVID_TTL_DEFAULT, SVID_TTL_MAX,
    SVID_TTL_MIN, Signer,
};
pub use csr::{CSR_BYTES_MAX, CsrError, csr_key_digest};
pub use error::SvidError;
pub use signer::{RemoteSigner, SignerError};
pub use svid::{LiveSvid, Svid, SvidKey, renewal_due};
pub use verifier::{
    CACHE_CHAINS_MAX, CERTIFICATE_BYTES_MAX, CHAIN_LENGTH_MAX, IgnoredRoot, LEAF_LIFETIME_MAX, Stranger, Verifier,
    stranger,
};

/// The wall clock, for rooms that do IO. A clock set before 1970 reads as 1970.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::ZERO.after(since)
}

/// SHA-256 (FIPS 180-4).
pub fn sha256(bytes: &[u8]) -> Digest {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(bytes);
    finish(context)
}

/// SHA-256 of the parts one after another; the caller sees to it that no two lists of parts read alike.
fn sha256_of(parts: &[&[u8]]) -> Digest {
    let mut context = digest::Context::new(&digest::SHA256);
    parts.iter().for_each(|part| context.update(part));
    finish(context)
}

fn finish(context: digest::Context) -> Digest {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    Digest(bytes)
}

/// Who a cluster is: SHA-256("hanse-cluster-v1" ‖ 0x00 ‖ SHA-256(root DER) ‖ replication key).
pub fn cluster_id(root_der: &[u8], key: &ReplicationKey) -> ClusterId {
    cluster_id_of(&sha256(root_der), key)
}

/// The same from the digest of the root.
fn cluster_id_of(root: &Digest, key: &ReplicationKey) -> ClusterId {
    ClusterId::from_digest(sha256_of(&[b"hanse-cluster-v1\0", &root.0, &key.0]))
}

/// The federation that a founding record founds: the digest of that record's bytes.
pub fn federation_id(founding_record_bytes_digest: Digest) -> FederationId {
    FederationId::from_digest(founding_record_bytes_digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_of_the_empty_text_is_the_known_one() {
        assert_eq!(sha256(b"").to_string(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(sha256(b"ab"), sha256_of(&[b"a", b"b"]));
    }

    #[test]
    fn cluster_id_changes_with_root_and_with_key() {
        let id = cluster_id(b"root", &ReplicationKey([1; 32]));
        assert_ne!(id, cluster_id(b"toor", &ReplicationKey([1; 32])));
        assert_ne!(id, cluster_id(b"root", &ReplicationKey([2; 32])));
    }

    #[test]
    fn proofs_are_made_in_one_file_each() {
        fn sources(folder: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
            for entry in std::fs::read_dir(folder).expect("folder") {
                let path = entry.expect("entry").path();
                if path.is_dir() { sources(&path, found) } else { found.push(path) }
            }
        }
        let mut files = Vec::new();
        sources(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
        for (noun, home) in [("VerifiedPeer", "verifier.rs"), ("Authentic", "record.rs")] {
            let call = format!("{noun}::{}(", "assertion");
            let users = files.iter().filter(|file| std::fs::read_to_string(file).expect("source").contains(&call));
            let users: Vec<_> = users.filter_map(|file| file.file_name()?.to_str()).collect();
            assert_eq!(users, [home], "{call}");
        }
    }

    #[test]
    fn the_clock_reads_this_century() {
        assert!(now() > Timestamp::from_secs(1_700_000_000));
    }
}
