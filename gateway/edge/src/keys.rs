//! Who this cluster is: its keys, made once, sealed before any store sees them.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result, bail};
use federation_identity::{AuthorityKeys, LocalSigner, now, seal::Kek};
use federation_model::Candidate;
use federation_store::{Change, Expect, Key, Kind, Store};
use prost::Message;
use proto::store::{Keys, OwnCluster as Row};
use zeroize::Zeroizing;

use crate::config::Settings;

/// Key of the one row that says who we are.
const SELF: &[u8] = b"self";
/// What the sealed keys are bound to.
const SEALED_AS: &[u8] = b"hanse-cluster-keys-v1";

/// Opens the file of the key-encryption key, or makes it if the store is new.
pub(crate) fn kek(path: &Path, store_is_new: bool) -> Result<Kek> {
    let shown = path.display();
    if path.exists() {
        return Kek::load(path).with_context(|| format!("kek_file {shown}"));
    }
    if !store_is_new {
        bail!(
            "kek_file {shown} is gone, and the store in data_dir was sealed with it: put it back from where you keep it"
        );
    }
    let kek = Kek::create(path).with_context(|| format!("making kek_file {shown}"))?;
    tracing::info!(
        path = %shown,
        "made a key that seals private keys in the store; keep a copy apart from the data. It guards copies of the \
         data, not a host that was broken into"
    );
    Ok(kek)
}

/// Loads this cluster's keys, or makes them in a new store.
///
/// # Errors
/// The store belongs to another cluster or trust domain, or its keys cannot be opened with this `kek`.
pub(crate) async fn load_or_make(store: &Arc<dyn Store>, settings: &Settings, kek: &Kek) -> Result<LocalSigner> {
    let key = Key::new(Kind::Own, SELF.to_vec());
    if let Some(row) = store.get(&key).await? {
        let row = Row::decode(row.value.as_slice()).context("the row that says which cluster this store is of")?;
        if row.cluster != settings.cluster.as_str() || row.trust_domain != settings.trust_domain.as_str() {
            bail!(
                "data_dir {} is the store of cluster {} ({}), and the configuration says {} ({}): names and trust \
                 domains never change; give the other cluster a data_dir of its own",
                settings.data_dir.display(),
                row.cluster,
                row.trust_domain,
                settings.cluster,
                settings.trust_domain
            );
        }
        let sealed = kek
            .open(SEALED_AS, &row.keys)
            .with_context(|| format!("kek_file {} does not open this store's keys", settings.kek_file.display()))?;
        let keys = Keys::decode(sealed.as_slice()).context("this cluster's keys")?;
        return Ok(LocalSigner::from_keys(&settings.trust_domain, &settings.cluster, from_row(keys))?);
    }
    let (signer, keys) = LocalSigner::generate(&settings.trust_domain, &settings.cluster, now())?;
    let plain = Zeroizing::new(to_row(&keys).encode_to_vec());
    let Candidate { id, .. } = signer.candidate();
    let row = Row {
        cluster: settings.cluster.to_string(),
        trust_domain: settings.trust_domain.to_string(),
        cluster_id: id.as_bytes().to_vec(),
        keys: kek.seal(SEALED_AS, &plain)?,
        ..Row::default()
    };
    store.apply(vec![Change::Put { key, value: row.encode_to_vec(), expected: Expect::Absent }]).await?;
    tracing::info!(cluster = %settings.cluster, cluster_id = %id, "made the keys of this cluster");
    Ok(signer)
}

fn to_row(keys: &AuthorityKeys) -> Keys {
    Keys {
        root_key: keys.root_key.to_vec(),
        root_certificate: keys.root_certificate.clone(),
        intermediate_key: keys.intermediate_key.to_vec(),
        intermediate_certificate: keys.intermediate_certificate.clone(),
        replication_key: keys.replication_key.to_vec(),
        sealing_key: keys.sealing_key.to_vec(),
    }
}

fn from_row(keys: Keys) -> AuthorityKeys {
    AuthorityKeys {
        root_key: Zeroizing::new(keys.root_key),
        root_certificate: keys.root_certificate,
        intermediate_key: Zeroizing::new(keys.intermediate_key),
        intermediate_certificate: keys.intermediate_certificate,
        replication_key: Zeroizing::new(keys.replication_key),
        sealing_key: Zeroizing::new(keys.sealing_key),
    }
}
