//! A cluster's private keys as they are sealed: what a store holds of them, and only a signer can open.

use prost::Message;
use zeroize::{Zeroize, Zeroizing};

use crate::{
    AuthorityKeys,
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
}

pub(super) fn seal(kek: &Kek, keys: &AuthorityKeys) -> Result<Vec<u8>, SealError> {
    let mut clear = Keys {
        root_key: keys.root_key.to_vec(),
        root_certificate: keys.root_certificate.clone(),
        intermediate_key: keys.intermediate_key.to_vec(),
        intermediate_certificate: keys.intermediate_certificate.clone(),
        replication_key: keys.replication_key.to_vec(),
        sealing_key: keys.sealing_key.to_vec(),
    };
    let bytes = Zeroizing::new(clear.encode_to_vec());
    for secret in [&mut clear.root_key, &mut clear.intermediate_key, &mut clear.replication_key, &mut clear.sealing_key]
    {
        secret.zeroize();
    }
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
    })
}
