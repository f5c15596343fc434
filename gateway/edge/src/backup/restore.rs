//! The way back: a backup into a store that is not there, and what a backup says of itself.
//!
//! In: a configuration, a file. Out: a store that is whole, in which this cluster writes on in an epoch that none of its
//! earlier lives used; or nothing at all, and why. Never: touches a store that is there, believes a byte of the file before
//! its signature was found good, or brings a one-time token back that may have been used since.
//!
//! This process has the file and the store, its child the key file, as in a gateway: `hanse signer` derives the keys and
//! opens those of the cluster.

use std::{collections::BTreeMap, fmt, fs::File, io::BufReader, path::Path, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use federation_identity::{
    Authority, RemoteSigner,
    backup::{Head, Reader, verify_whole},
    now, sha256,
};
use federation_model::{ClusterId, EPOCHS_MAX, Timestamp};
use federation_store::{Change, Key, Kind, NewStore, Store, record_epoch};
use gateway_admin::telemetry;
use prost::Message;
use proto::store::{BackupManifest, IssuedWorkloadToken, OwnCluster, Restored as Row};
use rand::RngExt;
use serde::Serialize;

use super::{
    content::{Decoder, Item},
    ledger::{Ledger, Row as LedgerRow},
};
use crate::{
    config::{Settings, StoreKind},
    keys,
    supervise::with_signer,
};

/// Name of the row that says that this store was restored.
const ROW: &[u8] = b"restored";
/// Rows in one apply.
const BATCH_ROWS: usize = 4096;
/// Bytes of values in one apply, about.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// A restore opens the epoch after the highest known, and leaves out up to so many more, at random: two restores of one
/// backup that know nothing of each other then rarely take the same. An epoch's number is at most 256, so not more.
const EPOCHS_SKIPPED_MAX: u64 = 8;
/// So many sequences of the own trust bundle are left out, at random: at least this, less than twice this.
const SEQUENCES_SKIPPED: u64 = 1 << 20;

/// What a restore brought about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    pub cluster: String,
    pub id: ClusterId,
    /// The moment that the store shows now.
    pub as_of: Timestamp,
    pub rows: u64,
    /// Join tokens, used ones too: which were used since, nobody here knows.
    pub join_tokens: u64,
    /// Workload tokens that were open.
    pub workload_tokens: u64,
    /// In which this cluster writes on.
    pub epoch: u64,
}

impl fmt::Display for Restored {
    /// What a person should know, and do next.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, id, rows, join_tokens, workload_tokens, epoch, .. } = self;
        writeln!(f, "Restored {cluster} ({id}) as of {}: {rows} rows.", moment(self.as_of.as_millis()))?;
        writeln!(f, "It writes on in epoch {epoch}; what it wrote after the backup comes back from other members.")?;
        if *join_tokens + *workload_tokens > 0 {
            writeln!(
                f,
                "Tokens were left out, since they may have been used: {join_tokens} of `hanse link token`, {workload_tokens} \
                 of `hanse workload token`."
            )?;
        }
        writeln!(f, "Start the gateway: hanse gateway --config FILE")
    }
}

fn moment(millis: u64) -> String {
    let at = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(millis);
    humantime::format_rfc3339_seconds(at).to_string()
}

/// The row of a store that was restored.
///
/// # Errors
/// The store or the row cannot be read.
pub(crate) async fn restored(store: &dyn Store) -> Result<Option<Row>> {
    let row = store.get(&Key::new(Kind::Local, ROW)).await?;
    row.map(|row| Row::decode(row.value.as_slice()).context("the row of the restore")).transpose()
}

/// Nothing is to be founded where a restore was under way.
///
/// # Errors
/// One was interrupted here.
pub(crate) fn check_interrupted(settings: &Settings) -> Result<()> {
    let store = settings.data_dir.join("store");
    if !store.exists() && NewStore::was_interrupted(&store) {
        bail!(
            "a restore into data_dir {} was interrupted, and nothing is there yet: run `hanse backup restore` again, or \
             remove {}.restoring to start as a new cluster",
            settings.data_dir.display(),
            store.display()
        );
    }
    Ok(())
}

/// Restores a backup into the empty `data_dir` of a gateway that does not run.
///
/// # Errors
/// Anything about the configuration, the key file, the backup or the store; nothing has changed then.
pub async fn restore(config: &Path, file: &Path) -> Result<Restored> {
    let settings = Settings::load(config)?;
    let _log = telemetry::init(settings.log.format.parse()?, &settings.log.level)?;
    ensure!(
        settings.store == StoreKind::Sled,
        "store = \"memory\" forgets everything at exit: there is no restore into it"
    );
    with_signer(config, &settings, true, async |signer| into_place(&settings, &signer, file).await).await
}

async fn into_place(settings: &Settings, signer: &Arc<RemoteSigner>, file: &Path) -> Result<Restored> {
    let shown = file.display();
    let derived = started(signer).await?;
    let ledger = Ledger::new(&settings.kek_file, *derived.backup);
    let mut reader = open(file)?;
    reader.unlock(&derived.backup).with_context(|| format!("backup {shown}"))?;
    let path = settings.data_dir.join("store");
    let new = NewStore::begin(&path, *derived.store_mac).await?;
    match fill(new.store(), reader, settings, signer, &ledger).await {
        Ok((restored, row)) => {
            // First what must not go back: a restore that ends here has used an epoch up, and no more.
            if let Err(error) = ledger.write(&row) {
                tracing::warn!(error = format!("{error:#}"), "a later restore relies on what other members say");
            }
            new.finish()?;
            Ok(restored)
        }
        Err(error) => {
            if let Err(left) = new.abandon() {
                tracing::warn!(error = %left, "what was made of the store is left over");
            }
            Err(error.context(format!("backup {shown}; nothing was restored")))
        }
    }
}

/// Fills a store and judges what it was filled with. Returns what was done, and what the ledger shall say.
async fn fill(
    store: &dyn Store,
    reader: Reader<BufReader<File>>,
    settings: &Settings,
    signer: &Arc<RemoteSigner>,
    ledger: &Ledger,
) -> Result<(Restored, LedgerRow)> {
    let head = reader.head().clone();
    let mut filled = Filled { own: Some(head.cluster), ..Filled::default() };
    read(reader, settings, async |batch| filled.take(store, batch).await).await?;
    let keys = filled.keys.context("it does not say whose it is: the row with the cluster's keys is missing")?;
    ensure!(
        keys.cluster == settings.cluster.as_str() && keys.trust_domain == settings.trust_domain.as_str(),
        "its rows are of cluster {} ({}): it was put together by somebody",
        keys.cluster,
        keys.trust_domain
    );
    let held = Arc::clone(signer);
    let authority = tokio::task::spawn_blocking(move || held.open(&keys.keys)).await?;
    let authority =
        authority.with_context(|| format!("kek_file {} does not open the keys in it", settings.kek_file.display()))?;
    ensure!(
        authority.candidate().id == head.cluster && authority.candidate().replication_key == head.replication_key,
        "it is signed by cluster {}, and holds the keys of another",
        head.cluster
    );
    let known = ledger.read(&head.cluster);
    let known = known.with_context(|| format!("if it is lost for good, remove {}", ledger.path().display()))?;
    let known = known.unwrap_or_default();
    not_rotated_since(&authority, &known, ledger)?;
    let row = Row {
        epoch: next_epoch(filled.epoch.max(known.epoch))?,
        bundle_sequence: known
            .bundle_sequence
            .saturating_add(rand::rng().random_range(SEQUENCES_SKIPPED..2 * SEQUENCES_SKIPPED)),
        at_ms: now().as_millis(),
        backup_at_ms: head.created_at.as_millis(),
    };
    store.apply(vec![Change::put(Key::new(Kind::Local, ROW), row.encode_to_vec())]).await?;
    let restored = Restored {
        cluster: settings.cluster.to_string(),
        id: head.cluster,
        as_of: head.created_at,
        rows: filled.rows,
        join_tokens: filled.join_tokens,
        workload_tokens: filled.workload_tokens,
        epoch: row.epoch,
    };
    let known = LedgerRow { cluster_id: head.cluster.as_bytes().to_vec(), epoch: row.epoch, ..known };
    Ok((restored, known))
}

/// The epoch in which a cluster writes on that may have written in `highest`.
fn next_epoch(highest: u64) -> Result<u64> {
    let most = EPOCHS_MAX as u64;
    let left = most.saturating_sub(highest);
    ensure!(
        left > 0,
        "this cluster has used up its {most} epochs, each restore takes some: it cannot write on as it is; evict it and let a \
         new cluster join in its place"
    );
    Ok(highest + 1 + rand::rng().random_range(0..EPOCHS_SKIPPED_MAX.min(left)))
}

/// Members believe this cluster by its newest bundle: keys from before that one's roots speak to nobody.
fn not_rotated_since(authority: &Authority, known: &LedgerRow, ledger: &Ledger) -> Result<()> {
    let signing = sha256(authority.root_der()).0;
    ensure!(
        known.roots.is_empty() || known.roots.iter().any(|root| *root == signing),
        "the root of this cluster was rotated after the backup was made (ledger {}): its keys sign with a root that no \
         member believes any more; restore a backup from after the rotation, or evict the cluster and join anew",
        ledger.path().display()
    );
    Ok(())
}

/// What was put into the store.
#[derive(Default)]
struct Filled {
    own: Option<ClusterId>,
    keys: Option<OwnCluster>,
    rows: u64,
    join_tokens: u64,
    workload_tokens: u64,
    /// Highest in which the own cluster wrote, or was to write.
    epoch: u64,
}

impl Filled {
    async fn take(&mut self, store: &dyn Store, rows: Vec<(Key, Vec<u8>)>) -> Result<()> {
        let mut changes = Vec::with_capacity(rows.len());
        for (key, value) in rows {
            if self.keeps(&key, &value)? {
                self.rows += 1;
                changes.push(Change::put(key, value));
            }
        }
        if !changes.is_empty() {
            store.apply(changes).await?;
        }
        Ok(())
    }

    /// Looks at a row, and says whether it is restored.
    fn keeps(&mut self, key: &Key, value: &[u8]) -> Result<bool> {
        match key.kind {
            Kind::Own if key.name == keys::SELF => {
                self.keys = Some(OwnCluster::decode(value).context("the row with the cluster's keys")?);
            }
            Kind::Own => {}
            Kind::Record => {
                if let Some((writer, epoch)) = record_epoch(&key.name)
                    && Some(writer) == self.own
                {
                    self.epoch = self.epoch.max(epoch);
                }
            }
            // Whoever used one since would use it again.
            Kind::JoinToken => {
                self.join_tokens += 1;
                return Ok(false);
            }
            // One that was used works for the key that used it, and for no other.
            Kind::WorkloadToken => {
                if IssuedWorkloadToken::decode(value).map_or(true, |token| token.used_by.is_empty()) {
                    self.workload_tokens += 1;
                    return Ok(false);
                }
            }
            Kind::Local if key.name == ROW => {
                let row = Row::decode(value).context("the row of an earlier restore")?;
                self.epoch = self.epoch.max(row.epoch);
            }
            Kind::Local => {}
        }
        Ok(true)
    }
}

/// Reads a backup to its end, and hands its rows on in batches. They are good only if this returns `Ok`.
async fn read(
    mut reader: Reader<BufReader<File>>,
    settings: &Settings,
    mut take: impl AsyncFnMut(Vec<(Key, Vec<u8>)>) -> Result<()>,
) -> Result<BackupManifest> {
    let (mut decoder, mut manifest) = (Decoder::default(), None);
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while let Some(chunk) = reader.next_chunk()? {
        decoder.feed(&chunk);
        for item in decoder.items()? {
            match item {
                Item::Manifest(found) => {
                    is_of(&found, settings)?;
                    manifest = Some(found);
                }
                Item::Row(key, value) => {
                    bytes += value.len();
                    batch.push((key, value));
                }
            }
        }
        if batch.len() >= BATCH_ROWS || bytes >= BATCH_BYTES {
            take(std::mem::take(&mut batch)).await?;
            bytes = 0;
        }
    }
    decoder.end()?;
    take(batch).await?;
    manifest.context("it has no manifest")
}

fn is_of(manifest: &BackupManifest, settings: &Settings) -> Result<()> {
    let BackupManifest { cluster, trust_domain, .. } = manifest;
    ensure!(
        cluster == settings.cluster.as_str() && trust_domain == settings.trust_domain.as_str(),
        "it is of cluster {cluster} ({trust_domain}), and the configuration says {} ({}): give the configuration of that \
         cluster",
        settings.cluster,
        settings.trust_domain
    );
    Ok(())
}

fn open(file: &Path) -> Result<Reader<BufReader<File>>> {
    let opened = File::open(file).with_context(|| format!("backup {}", file.display()))?;
    Reader::open(BufReader::new(opened)).with_context(|| format!("backup {}", file.display()))
}

async fn started(signer: &Arc<RemoteSigner>) -> Result<federation_identity::signer::DerivedKeys> {
    let signer = Arc::clone(signer);
    tokio::task::spawn_blocking(move || signer.start()).await?.context("the signer")
}

/// What a backup says of itself.
#[derive(Clone, Debug, Serialize)]
pub struct Shown {
    pub file: String,
    pub format: u32,
    pub cluster_id: String,
    pub created_at_ms: u64,
    /// Of the key file under whose key it is sealed.
    pub key_id: String,
    /// Under the seal; none without the key file.
    pub content: Option<Content>,
}

/// What lies under the seal.
#[derive(Clone, Debug, Serialize)]
pub struct Content {
    pub cluster: String,
    pub trust_domain: String,
    /// Of the program that made it.
    pub version: String,
    /// Of the store.
    pub revision: u64,
    /// By kind.
    pub rows: BTreeMap<String, u64>,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "file        {}", self.file)?;
        writeln!(f, "cluster id  {}", self.cluster_id)?;
        writeln!(f, "made        {}", moment(self.created_at_ms))?;
        writeln!(f, "format      {}", self.format)?;
        writeln!(f, "key id      {}", self.key_id)?;
        writeln!(f, "state       whole, and signed by that cluster")?;
        let Some(content) = &self.content else {
            return writeln!(f, "content     sealed: give the gateway's --config to look into it");
        };
        writeln!(f, "cluster     {}", content.cluster)?;
        writeln!(f, "domain      {}", content.trust_domain)?;
        writeln!(f, "version     {}", content.version)?;
        for (kind, rows) in &content.rows {
            writeln!(f, "rows        {rows} {kind}")?;
        }
        Ok(())
    }
}

/// Reads a whole backup and says what it is; with a configuration, whose signer opens it, also what lies under its seal.
///
/// # Errors
/// It is not whole, not what it says, or of another key file.
pub async fn show(file: &Path, config: Option<&Path>) -> Result<Shown> {
    let Some(config) = config else {
        let head = {
            let opened = File::open(file).with_context(|| format!("backup {}", file.display()))?;
            verify_whole(BufReader::new(opened)).with_context(|| format!("backup {}", file.display()))?
        };
        return Ok(shown(file, &head, None));
    };
    let settings = Settings::load(config)?;
    with_signer(config, &settings, false, async |signer| {
        let derived = started(&signer).await?;
        let mut reader = open(file)?;
        let head = reader.head().clone();
        let found = async {
            reader.unlock(&derived.backup)?;
            read(reader, &settings, async |_| Ok(())).await
        };
        let manifest = found.await.with_context(|| format!("backup {}", file.display()))?;
        let content = Content {
            cluster: manifest.cluster,
            trust_domain: manifest.trust_domain,
            version: manifest.version,
            revision: manifest.revision,
            rows: manifest.counts.into_iter().map(|count| (count.kind, count.rows)).collect(),
        };
        Ok(shown(file, &head, Some(content)))
    })
    .await
}

fn shown(file: &Path, head: &Head, content: Option<Content>) -> Shown {
    Shown {
        file: file.display().to_string(),
        format: head.format,
        cluster_id: head.cluster.to_string(),
        created_at_ms: head.created_at.as_millis(),
        key_id: head.key_id.iter().map(|byte| format!("{byte:02x}")).collect(),
        content,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_epoch_is_above_all_that_is_known_and_within_the_bound() {
        for highest in [0, 1, 7, 200, 250, 254, 255] {
            for _ in 0..200 {
                let next = next_epoch(highest).expect("an epoch");
                assert!(next > highest && next <= EPOCHS_MAX as u64 && next <= highest + EPOCHS_SKIPPED_MAX, "{next}");
            }
        }
        let error = next_epoch(256).expect_err("an epoch past the bound");
        assert!(error.to_string().contains("256 epochs"), "{error}");
    }
}
