//! A cluster's private keys as they are sealed: what a store holds of them, and only a signer can open.

use prost::Message;
use zeroize::{Zeroize, Zeroizing};

use crate::{
    AuthorityKeys,
    authority::{Above, NextKeys},
    seal::{Kek, SealError},
};

/// What the sealed keys are bound to.
const SEALED_AS: &[u8] = b"hanse-cluster-keys-v1";

/// The clear text under the seal.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct Keys {
    /// PKCS #8 DER.
    #[prost(bytes, tag = "1")]
    root_key: Vec<u8>,
    /// DER.
    #[prost(bytes, tag = "2")]
    root_certificate: Vec<u8>,
    /// PKCS #8 DER.
    #[prost(bytes, tag = "3")]
    intermediate_key: Vec<u8>,
    /// DER.
    #[prost(bytes, tag = "4")]
    intermediate_certificate: Vec<u8>,
    /// Ed25519, PKCS #8 DER.
    #[prost(bytes, tag = "5")]
    replication_key: Vec<u8>,
    /// X25519 private key, 32 bytes.
    #[prost(bytes, tag = "6")]
    sealing_key: Vec<u8>,
    /// DER; empty before the first rotation.
    #[prost(bytes, tag = "7")]
    first_root: Vec<u8>,
    #[prost(message, optional, tag = "8")]
    next: Option<Next>,
    #[prost(message, optional, tag = "9")]
    above: Option<OldRoot>,
}

/// Keys that wait to sign.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct Next {
    /// PKCS #8 DER.
    #[prost(bytes, tag = "1")]
    root_key: Vec<u8>,
    /// DER.
    #[prost(bytes, tag = "2")]
    root_certificate: Vec<u8>,
    /// PKCS #8 DER.
    #[prost(bytes, tag = "3")]
    intermediate_key: Vec<u8>,
    /// DER.
    #[prost(bytes, tag = "4")]
    intermediate_certificate: Vec<u8>,
    /// DER.
    #[prost(bytes, tag = "5")]
    cross: Vec<u8>,
}

/// The root before the one that signs.
#[derive(Clone, PartialEq, Message)]
struct OldRoot {
    /// DER.
    #[prost(bytes, tag = "1")]
    cross: Vec<u8>,
    /// DER.
    #[prost(bytes, tag = "2")]
    root: Vec<u8>,
}

pub(super) fn seal(kek: &Kek, keys: &AuthorityKeys) -> Result<Vec<u8>, SealError> {
    let mut clear = Keys {
        root_key: keys.root_key.to_vec(),
        root_certificate: keys.root_certificate.clone(),
        intermediate_key: keys.intermediate_key.to_vec(),
        intermediate_certificate: keys.intermediate_certificate.clone(),
        replication_key: keys.replication_key.to_vec(),
        sealing_key: keys.sealing_key.to_vec(),
        first_root: keys.first_root.clone(),
        next: keys.next.as_ref().map(|next| Next {
            root_key: next.root_key.to_vec(),
            root_certificate: next.root_certificate.clone(),
            intermediate_key: next.intermediate_key.to_vec(),
            intermediate_certificate: next.intermediate_certificate.clone(),
            cross: next.cross.clone(),
        }),
        above: keys.above.as_ref().map(|above| OldRoot { cross: above.cross.clone(), root: above.root.clone() }),
    };
    let bytes = Zeroizing::new(clear.encode_to_vec());
    let next = clear.next.iter_mut().flat_map(|next| [&mut next.root_key, &mut next.intermediate_key]);
    let secrets =
        [&mut clear.root_key, &mut clear.intermediate_key, &mut clear.replication_key, &mut clear.sealing_key];
    secrets.into_iter().chain(next).for_each(Zeroize::zeroize);
    kek.seal(SEALED_AS, &bytes)
}

pub(super) fn open(kek: &Kek, sealed: &[u8]) -> Result<AuthorityKeys, SealError> {
    let bytes = kek.open(SEALED_AS, sealed)?;
    let keys = Keys::decode(bytes.as_slice()).map_err(|_| SealError::Malformed)?;
    Ok(AuthorityKeys {
        root_key: Zeroizing::new(keys.root_key),
        root_certificate: keys.root_certificate,
        intermediate_key: Zeroizing::new(keys.intermediate_key),
        intermediate_certificate: keys.intermediate_certificate,
        replication_key: Zeroizing::new(keys.replication_key),
        sealing_key: Zeroizing::new(keys.sealing_key),
        first_root: keys.first_root,
        next: keys.next.map(|next| NextKeys {
            root_key: Zeroizing::new(next.root_key),
            root_certificate: next.root_certificate,
            intermediate_key: Zeroizing::new(next.intermediate_key),
            intermediate_certificate: next.intermediate_certificate,
            cross: next.cross,
        }),
        above: keys.above.map(|above| Above { cross: above.cross, root: above.root }),
    })
}
