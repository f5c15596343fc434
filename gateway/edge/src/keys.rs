//! Who this cluster is: its keys, made once, sealed by the signer before any store sees them.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use federation_identity::{Authority, RemoteSigner, SVID_TTL_MAX, now};
use federation_model::Timestamp;
use federation_store::{Change, Expect, Key, Kind, Revision, Store};
use prost::Message;
use proto::store::OwnCluster as Row;

use crate::config::Settings;

/// Key of the one row that says who we are.
pub(crate) const SELF: &[u8] = b"self";

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
        let authority = signer
            .open(&row.keys)
            .with_context(|| format!("kek_file {} does not open this store's keys", settings.kek_file.display()))?;
        if let Some(row) = with_ttl(row, settings.svid_ttl) {
            store.apply(vec![Change::put(key, row.encode_to_vec())]).await?;
        }
        return Ok(authority);
    }
    let (authority, sealed) = signer.make().context("making the keys of this cluster")?;
    let id = authority.candidate().id;
    let row = Row {
        cluster: settings.cluster.to_string(),
        trust_domain: settings.trust_domain.to_string(),
        cluster_id: id.as_bytes().to_vec(),
        keys: sealed,
        svid_ttl_ms: millis(settings.svid_ttl),
        ..Row::default()
    };
    store.apply(vec![Change::Put { key, value: row.encode_to_vec(), expected: Expect::Absent }]).await?;
    tracing::info!(cluster = %settings.cluster, cluster_id = %id, "made the keys of this cluster");
    Ok(authority)
}

/// The row with the life of SVIDs as it is now, and until when those of a longer life may live; none if it is the same.
fn with_ttl(row: Row, ttl: Duration) -> Option<Row> {
    if row.svid_ttl_ms == millis(ttl) {
        return None;
    }
    // A store from before this was noted may have issued any.
    let before = if row.svid_ttl_ms == 0 { SVID_TTL_MAX } else { Duration::from_millis(row.svid_ttl_ms) };
    let svids_until_ms = row.svids_until_ms.max(now().after(before).as_millis());
    Some(Row { svid_ttl_ms: millis(ttl), svids_until_ms, ..row })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// This cluster's row with other sealed keys, for the same write that says why they changed.
///
/// # Errors
/// The row cannot be read.
pub(crate) async fn resealed(store: &dyn Store, sealed: Vec<u8>) -> Result<Change> {
    let (row, revision) = read(store).await?;
    let row = Row { keys: sealed, ..row };
    Ok(Change::put(Key::new(Kind::Own, SELF), row.encode_to_vec()).expecting(Expect::Is(revision)))
}

/// When SVIDs of a longer life than is issued now have all ended.
///
/// # Errors
/// The row cannot be read.
pub(crate) async fn svids_until(store: &dyn Store) -> Result<Timestamp> {
    Ok(Timestamp::from_millis(read(store).await?.0.svids_until_ms))
}

async fn read(store: &dyn Store) -> Result<(Row, Revision)> {
    let row = store.get(&Key::new(Kind::Own, SELF)).await?.context("the row that says who this cluster is, is gone")?;
    Ok((Row::decode(row.value.as_slice()).context("the row that says who this cluster is")?, row.revision))
}
