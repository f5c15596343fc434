//! The rotation of this cluster's root: published, acknowledged by every member, signing, and the old one retired.
//!
//! In: an operator's word to start, to leave members out or to give up; what members say they enforce; the time. Out:
//! steps of the signer's keys, trust bundles as records of this cluster, this edge's SVID anew.
//! Never: lets a root sign before every member said that it knows it, but for those that were left out by name.
//!
//! How far a rotation is, the sealed keys say, and they change in one write with the row that tells of it. What follows
//! from them is done again until it shows: the bundle in force lists the roots of the keys, or it is published; the edge
//! shows an SVID by them. So a crash at any point loses nothing, and nothing is done twice.
//!
//! ```text
//! keys settled   --start-->  prepared: bundle old + new is published; wait for members
//!      ^  ^                     |   `--abort--> settled: bundle old is published
//!      |  `---------------------'
//!      |                        |  all but those left out enforce that bundle
//!      `--bundle new published--  turned: the new root signs; wait until the last SVID by the old one has ended
//! ```

mod ground;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use federation_identity::{
    Authority, LiveSvid, RemoteSigner, RotationStage, RotationStep, SignerError, now, sha256, stranger,
};
use federation_model::{ClusterId, Digest, Enforcement, RecordId, SpiffeId, Timestamp};
use federation_store::{Change, Key, Kind, Store};
use gateway_api::{Issued, Kind as Refused, Refusal, Rotation as Told, RotationPhase};
use prost::Message;
use proto::store::Rotation as Row;
use tokio::{
    sync::{Mutex, Notify},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::ground::Ground;
use crate::{keys, svid};

/// Key of the one row that tells of the rotation under way, or of the last one.
const ROW: &[u8] = b"rotation";
/// Author of records that follow from keys, where no row names one.
const AUTHOR: &str = "rotation";
/// Longest wait for a member's word before looking again: one may have been blocked meanwhile.
const LOOK: Duration = Duration::from_secs(1);
/// Wait after what failed.
const RETRY: Duration = Duration::from_secs(1);
/// How much longer than the last SVID by it the old root stays: certificates count whole seconds.
const MARGIN: Duration = Duration::from_secs(1);
/// How often the bundle in force is compared with the keys once the store was restored.
const RECHECK: Duration = Duration::from_secs(2);
/// Longest sleep when nothing is due.
const IDLE: Duration = Duration::from_secs(3600);

/// What a rotation works with.
pub(crate) struct Inputs {
    pub(crate) signer: Arc<RemoteSigner>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) ground: Arc<dyn Ground>,
    pub(crate) live: LiveSvid,
    pub(crate) issued: Issued,
    /// The edge's own identity.
    pub(crate) edge: SpiffeId,
    pub(crate) svid_ttl: Duration,
    /// This cluster's bundles get higher sequences than this: 0, or what was set aside when its store was restored.
    pub(crate) sequence_floor: u64,
}

/// The rotation of the root: one at a time, one step at a time.
pub(crate) struct Rotation {
    inputs: Inputs,
    /// Held while a step is decided and taken.
    step: Mutex<Step>,
    wake: Notify,
    /// Why the bundle in force is left as it is.
    trouble: std::sync::Mutex<Option<String>>,
}

/// What is known between two steps.
#[derive(Default)]
struct Step {
    /// Record of the bundle in force.
    record: Option<RecordId>,
    /// Sealed keys that are in the store, and that the signer has not taken up.
    unopened: Option<Vec<u8>>,
}

impl Rotation {
    pub(crate) fn new(inputs: Inputs) -> Arc<Self> {
        Arc::new(Self { inputs, step: Mutex::default(), wake: Notify::new(), trouble: Default::default() })
    }

    /// Takes every step as it falls due, until `stop`.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut receipts = self.inputs.ground.receipts();
        loop {
            receipts.borrow_and_update();
            let advanced = {
                let mut step = self.step.lock().await;
                self.advance(&mut step).await
            };
            let (pause, waits) = advanced.unwrap_or_else(|error| {
                tracing::warn!(error = format!("{error:#}"), "the rotation of the root waits, and tries again");
                (RETRY, false)
            });
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(pause) => {}
                () = self.wake.notified() => {}
                _ = receipts.changed(), if waits => {}
            }
        }
    }

    /// See [`gateway_api::System::rotate_root`].
    pub(crate) async fn start(&self, without: Vec<ClusterId>, author: String) -> Result<Told, Refusal> {
        let mut step = self.step.lock().await;
        self.start_or_go_on(&mut step, without, author).await?;
        // What is not done now is tried again by itself.
        if let Err(error) = self.advance(&mut step).await {
            tracing::warn!(error = format!("{error:#}"), "the rotation of the root waits, and tries again");
        }
        self.wake.notify_one();
        self.told(&mut step).await?.ok_or_else(none_under_way)
    }

    async fn start_or_go_on(&self, step: &mut Step, without: Vec<ClusterId>, author: String) -> Result<(), Refusal> {
        self.take_up(step).await?;
        let left_out = without.iter().map(|id| id.as_bytes().to_vec());
        // The operator's word stands for whatever the bundle lists and the keys do not know.
        let held = self.row().await.map_err(internal)?.unwrap_or_default();
        let unknown = self.unknown_roots(&held).map_err(internal)?;
        let settled = self.authority().map_err(internal)?.stage() == RotationStage::Settled;
        if !unknown.is_empty() && !settled {
            let removed = held.removed.iter().chain(&unknown).cloned().collect();
            self.keep(&Row { removed, ..held }, None).await.map_err(internal)?;
        }
        match self.authority().map_err(internal)?.stage() {
            RotationStage::Settled => {
                let row = Row {
                    started_at_ms: now().as_millis(),
                    author: author.clone(),
                    without: left_out.collect(),
                    removed: unknown,
                    ..Row::default()
                };
                self.take(step, RotationStep::Prepare, &row).await?;
                tracing::info!(%author, "the rotation of the root began");
            }
            RotationStage::Prepared if !without.is_empty() => {
                let mut row = self.row().await.map_err(internal)?.unwrap_or_default();
                let more: Vec<_> = left_out.filter(|id| !row.without.contains(id)).collect();
                row.without.extend(more);
                self.keep(&row, None).await.map_err(internal)?;
            }
            RotationStage::Turned if !without.is_empty() => {
                let message = "the new root signs already, so the rotation waits for no member: leave out --without";
                return Err(Refusal::new(Refused::State, "already_signing", message));
            }
            RotationStage::Prepared | RotationStage::Turned => {}
        }
        Ok(())
    }

    /// See [`gateway_api::System::abort_rotation`].
    pub(crate) async fn abort(&self, author: &str) -> Result<Told, Refusal> {
        let mut step = self.step.lock().await;
        self.take_up(&mut step).await?;
        match self.authority().map_err(internal)?.stage() {
            RotationStage::Settled => return Err(none_under_way()),
            RotationStage::Turned => {
                let message = "the new root signs already, and the old one's key is gone: the rotation ends by itself \
                               once the last SVID by the old root has ended";
                return Err(Refusal::new(Refused::State, "already_signing", message));
            }
            RotationStage::Prepared => {}
        }
        let row = self.row().await.map_err(internal)?.unwrap_or_default();
        let row = Row { ended_at_ms: now().as_millis(), aborted: true, ..row };
        self.take(&mut step, RotationStep::Abandon, &row).await?;
        tracing::info!(%author, "the rotation of the root was given up");
        if let Err(error) = self.advance(&mut step).await {
            tracing::warn!(error = format!("{error:#}"), "the bundle with the old root alone is not published yet");
        }
        self.wake.notify_one();
        self.told(&mut step).await?.ok_or_else(none_under_way)
    }

    /// See [`gateway_api::System::rotation`].
    pub(crate) async fn status(&self) -> Result<Option<Told>, Refusal> {
        self.told(&mut *self.step.lock().await).await
    }

    /// See [`gateway_api::System::pin`].
    pub(crate) fn pin(&self) -> Result<Digest, Refusal> {
        let not_ready = |message: String| Refusal::new(Refused::NotReady, "no_svid", message);
        let svid = self.inputs.live.get().ok_or_else(|| not_ready("this edge has no SVID yet: try again".into()))?;
        Ok(stranger(svid.chain(), now()).map_err(|error| not_ready(error.to_string()))?.root_pin)
    }

    /// The authority as its keys are.
    pub(crate) fn authority(&self) -> Result<Authority> {
        self.inputs.signer.held().context("the signer was given no keys")
    }

    /// Does what follows from the keys and from what members said. How long nothing else is due, and whether a member's
    /// word may change that.
    async fn advance(&self, step: &mut Step) -> Result<(Duration, bool)> {
        self.take_up(step).await?;
        let authority = self.authority()?;
        if !self.publish(&authority, step).await? {
            return Ok((RECHECK, false));
        }
        match authority.stage() {
            // A bundle that comes back from others after a restore may not be that of the keys.
            RotationStage::Settled => Ok((if self.inputs.sequence_floor > 0 { RECHECK } else { IDLE }, false)),
            RotationStage::Prepared => {
                let row = self.row().await?.context("the row of the rotation is gone")?;
                let id = self.record(step).context("the bundle is published and its record is not there")?;
                let Enforcement { by, behind } = self.inputs.ground.enforcement(&id);
                let waits = |member: &ClusterId| !row.without.iter().any(|left_out| left_out == member.as_bytes());
                if by.is_empty() || behind.iter().any(|(member, _)| waits(member)) {
                    return Ok((LOOK, true));
                }
                self.take(step, RotationStep::TurnOver, &row).await?;
                tracing::info!(members = by.len(), left_out = behind.len(), "the new root signs");
                self.turned(row).await
            }
            RotationStage::Turned => {
                let row = self.row().await?.context("the row of the rotation is gone")?;
                if row.old_until_ms == 0 {
                    return self.turned(row).await;
                }
                let ends = Timestamp::from_millis(row.old_until_ms).after(MARGIN);
                let left = ends.since(now());
                if !left.is_zero() {
                    return Ok((left.min(IDLE), false));
                }
                self.take(step, RotationStep::Retire, &Row { ended_at_ms: now().as_millis(), ..row }).await?;
                self.publish(&self.authority()?, step).await?;
                tracing::info!("the old root is gone");
                Ok((IDLE, false))
            }
        }
    }

    /// Notes until when SVIDs by the old root live. Only now that the new one signs can there be no later one.
    async fn turned(&self, row: Row) -> Result<(Duration, bool)> {
        let longer = keys::svids_until(self.inputs.store.as_ref()).await?;
        let old_until_ms = now().after(self.inputs.svid_ttl).max(longer).as_millis();
        self.keep(&Row { old_until_ms, ..row }, None).await?;
        Ok((Duration::ZERO, false))
    }

    /// Takes a step: the keys and the row in one durable write, then the signer, then this edge's own SVID.
    async fn take(&self, step: &mut Step, next: RotationStep, row: &Row) -> Result<(), Refusal> {
        let Inputs { signer, store, .. } = &self.inputs;
        let before = self.authority().map_err(internal)?.bundle(0).roots;
        let (after, sealed) = blocking(signer, move |signer| signer.rotate(next)).await.map_err(unsigned)?;
        let after = after.bundle(0).roots;
        let mut row = row.clone();
        row.removed.extend(before.iter().filter(|root| !after.contains(root)).map(|root| sha256(root).0.to_vec()));
        let own = keys::resealed(store.as_ref(), sealed.clone()).await.map_err(internal)?;
        self.keep(&row, Some(own)).await.map_err(internal)?;
        step.unopened = Some(sealed);
        self.take_up(step).await
    }

    /// Has the signer take up the keys that the store holds.
    async fn take_up(&self, step: &mut Step) -> Result<(), Refusal> {
        let Some(sealed) = step.unopened.clone() else { return Ok(()) };
        let signer = &self.inputs.signer;
        blocking(signer, move |signer| signer.open(&sealed)).await.map_err(unsigned)?;
        step.unopened = None;
        self.renew_edge().await
    }

    /// See [`gateway_api::System::renew_edge`].
    pub(crate) async fn renew_edge(&self) -> Result<(), Refusal> {
        let Inputs { signer, issued, live, edge, svid_ttl, .. } = &self.inputs;
        let renewed = svid::issue(signer.as_ref(), issued, edge, *svid_ttl, live).await;
        renewed.map_err(|error| internal(error.into()))
    }

    /// See [`gateway_api::System::rotate_intermediate`].
    pub(crate) async fn intermediate(&self) -> Result<(), Refusal> {
        let mut step = self.step.lock().await;
        self.take_up(&mut step).await?;
        let Inputs { signer, store, .. } = &self.inputs;
        let rotated = blocking(signer, |signer| signer.rotate(RotationStep::Intermediate)).await;
        let (_, sealed) = rotated.map_err(unsigned)?;
        let own = keys::resealed(store.as_ref(), sealed.clone()).await.map_err(internal)?;
        store.apply(vec![own]).await.map_err(|error| internal(error.into()))?;
        step.unopened = Some(sealed);
        self.take_up(&mut step).await
    }

    /// Publishes the roots of the keys, unless they are the bundle in force, or that lists a root which these keys do
    /// not know and no rotation took out: then the keys are older than the bundle.
    /// Says whether the bundle in force is that of the keys.
    async fn publish(&self, authority: &Authority, step: &mut Step) -> Result<bool> {
        let held = self.inputs.ground.bundle().context("there is no bundle of this cluster in force")?;
        let next = authority.bundle(held.sequence.max(self.inputs.sequence_floor) + 1);
        let same = next.roots == held.roots;
        let unknown = if same { 0 } else { self.unknown_roots(&self.row().await?.unwrap_or_default())?.len() };
        self.tell(unknown);
        if same || unknown > 0 {
            return Ok(same);
        }
        let author = self.row().await?.map_or_else(|| AUTHOR.to_owned(), |row| row.author);
        let (sequence, roots) = (next.sequence, next.roots.len());
        step.record = Some(self.inputs.ground.publish(next, author).await?);
        tracing::info!(sequence, roots, "trust bundle published");
        match self.inputs.ground.bundle() {
            Some(bundle) if bundle.sequence == sequence => Ok(true),
            _ => bail!("the bundle with sequence {sequence} is written, but not in force"),
        }
    }

    /// SHA-256 of each root in the bundle in force that neither the keys know nor a rotation took out.
    fn unknown_roots(&self, row: &Row) -> Result<Vec<Vec<u8>>> {
        let own = self.authority()?.bundle(0).roots;
        let held = self.inputs.ground.bundle().map(|bundle| bundle.roots).unwrap_or_default();
        let foreign = held.iter().filter(|root| !own.contains(root)).map(|root| sha256(root).0.to_vec());
        Ok(foreign.filter(|digest| !row.removed.contains(digest)).collect())
    }

    /// Says once that the keys are older than the bundle, and that they no longer are.
    fn tell(&self, unknown: usize) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let now = (unknown > 0).then(|| {
            format!(
                "this cluster's keys are older than its trust bundle, which lists {unknown} roots that they do not know: \
                 a backup from before a rotation was restored; the bundle stays as it is until `hanse cert rotate-root` \
                 makes a new root"
            )
        });
        if now != *trouble
            && let Some(text) = &now
        {
            tracing::error!(unknown, "{text}");
        }
        *trouble = now;
    }

    /// What a person should know of it.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The record of the bundle in force.
    fn record(&self, step: &mut Step) -> Option<RecordId> {
        if step.record.is_none() {
            step.record = self.inputs.ground.record();
        }
        step.record
    }

    async fn told(&self, step: &mut Step) -> Result<Option<Told>, Refusal> {
        let Some(row) = self.row().await.map_err(internal)? else { return Ok(None) };
        let authority = self.authority().map_err(internal)?;
        let published = self.inputs.ground.bundle().is_some_and(|held| held.roots == authority.bundle(0).roots);
        let phase = match authority.stage() {
            RotationStage::Prepared if published => RotationPhase::Published,
            RotationStage::Prepared => RotationPhase::Prepared,
            RotationStage::Turned => RotationPhase::Signing,
            RotationStage::Settled if row.aborted => RotationPhase::Aborted,
            RotationStage::Settled => RotationPhase::Retired,
        };
        let waits = matches!(phase, RotationPhase::Published | RotationPhase::Signing);
        let id = self.record(step).filter(|_| waits);
        let some = |millis: u64| Some(millis).filter(|millis| *millis > 0).map(Timestamp::from_millis);
        Ok(Some(Told {
            phase,
            started_at: Timestamp::from_millis(row.started_at_ms),
            author: row.author,
            enforcement: id.map(|id| self.inputs.ground.enforcement(&id)).unwrap_or_default(),
            without: row.without.iter().filter_map(|id| ClusterId::try_from(id.as_slice()).ok()).collect(),
            old_until: some(row.old_until_ms).filter(|_| phase == RotationPhase::Signing),
            ended_at: some(row.ended_at_ms),
        }))
    }

    async fn row(&self) -> Result<Option<Row>> {
        let row = self.inputs.store.get(&Key::new(Kind::Own, ROW)).await?;
        row.map(|row| Row::decode(row.value.as_slice()).context("the row of the rotation")).transpose()
    }

    async fn keep(&self, row: &Row, own: Option<Change>) -> Result<()> {
        let row = Change::put(Key::new(Kind::Own, ROW), row.encode_to_vec());
        self.inputs.store.apply(own.into_iter().chain([row]).collect()).await?;
        Ok(())
    }
}

/// Asks the signer on a thread that may wait.
async fn blocking<T: Send + 'static>(
    signer: &Arc<RemoteSigner>,
    ask: impl FnOnce(&RemoteSigner) -> Result<T, SignerError> + Send + 'static,
) -> Result<T, SignerError> {
    let signer = Arc::clone(signer);
    tokio::task::spawn_blocking(move || ask(&signer)).await.unwrap_or(Err(SignerError::Gone))
}

fn none_under_way() -> Refusal {
    let message = "no rotation is under way: `hanse cert rotate-root` starts one";
    Refusal::new(Refused::State, "no_rotation", message)
}

fn unsigned(error: SignerError) -> Refusal {
    let kind = match &error {
        SignerError::Busy { .. } => Refused::Exhausted,
        SignerError::Refused(_) => Refused::State,
        _ => Refused::NotReady,
    };
    Refusal::new(kind, error.reason(), error.to_string())
}

fn internal(error: anyhow::Error) -> Refusal {
    tracing::error!(error = format!("{error:#}"), "the rotation of the root");
    Refusal::new(Refused::Internal, "internal", "the rotation failed here; the gateway's log says why")
}
