//! Who this cluster is: its keys, made once, sealed by the signer before any store sees them.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use federation_identity::{Authority, RemoteSigner};
use federation_store::{Change, Expect, Key, Kind, Store};
use prost::Message;
use proto::store::OwnCluster as Row;

use crate::config::Settings;

/// Key of the one row that says who we are.
const SELF: &[u8] = b"self";

/// Has the signer take up this cluster's keys, or make them for a new store.
///
/// # Errors
/// The store belongs to another cluster or trust domain, or the signer cannot open its keys.
pub(crate) async fn load_or_make(
    store: &Arc<dyn Store>,
    settings: &Settings,
    signer: &RemoteSigner,
) -> Result<Authority> {
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
        return signer
            .open(&row.keys)
            .with_context(|| format!("kek_file {} does not open this store's keys", settings.kek_file.display()));
    }
    let (authority, sealed) = signer.make().context("making the keys of this cluster")?;
    let id = authority.candidate().id;
    let row = Row {
        cluster: settings.cluster.to_string(),
        trust_domain: settings.trust_domain.to_string(),
        cluster_id: id.as_bytes().to_vec(),
        keys: sealed,
        ..Row::default()
    };
    store.apply(vec![Change::Put { key, value: row.encode_to_vec(), expected: Expect::Absent }]).await?;
    tracing::info!(cluster = %settings.cluster, cluster_id = %id, "made the keys of this cluster");
    Ok(authority)
}
