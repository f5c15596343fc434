//! Records between bytes and the replica: signing our own, checking others', and the rows in which they are kept.
//!
//! A row's value is a big-endian `u64`, the order of arrival, and the signed envelope: which of two admissions of one
//! name came first must be the same after a restart.

use std::{collections::HashMap, sync::Arc};

use federation_identity::{Signer, record as signatures};
use federation_model::{Authentic, Body, ClusterId, FederationId, RECORD_BYTES_MAX, Record, ReplicationKey};
use federation_store::{Change, Expect, Row, record_key};
use proto::convert::{Envelope, decode_envelope, encode_envelope, encode_record_checked};

use crate::WriteError;

/// Bytes before the envelope in a row.
const ARRIVAL_BYTES: usize = 8;
/// Fewest envelopes that are worth a thread.
const SHARE_MIN: usize = 64;

/// Signs a record of this cluster.
///
/// # Errors
/// It does not fit its bounds, and the text names the field; or there is no signer to ask.
pub(crate) fn sign(signer: &dyn Signer, key: &ReplicationKey, record: Record) -> Result<Authentic<Record>, WriteError> {
    let bytes = encode_record_checked(&record).map_err(|error| WriteError::Bounds(error.to_string()))?;
    let signature = signatures::sign(signer, &bytes)?;
    let raw: Arc<[u8]> = encode_envelope(&bytes, &signature).into();
    if raw.len() > RECORD_BYTES_MAX {
        let text = format!("record has {} bytes, at most {RECORD_BYTES_MAX} are allowed", raw.len());
        return Err(WriteError::Bounds(text));
    }
    signatures::verify(record, raw, &bytes, &signature, key).map_err(|error| WriteError::Bounds(error.to_string()))
}

/// Why an envelope was not taken, as far as link can tell.
#[derive(Debug)]
pub(crate) enum Unfit {
    /// Nothing admits its writer, as far as is known.
    UnknownWriter(ClusterId),
    /// It founds another federation.
    OtherFederation,
    /// The bytes are no record that this version can read.
    Unreadable(String),
    /// Somebody signed what cannot be: no honest member relays it.
    Forged(String),
}

impl Unfit {
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::UnknownWriter(_) => "unknown_writer",
            Self::OtherFederation => "other_federation",
            Self::Unreadable(_) => "unreadable",
            Self::Forged(_) => "forged",
        }
    }
}

/// An envelope that was read and not checked.
#[derive(Clone)]
pub(crate) struct Unchecked {
    envelope: Envelope,
    raw: Arc<[u8]>,
}

impl Unchecked {
    pub(crate) fn read(raw: Arc<[u8]>) -> Result<Self, Unfit> {
        let envelope = decode_envelope(&raw).map_err(|error| Unfit::Unreadable(error.to_string()))?;
        Ok(Self { envelope, raw })
    }

    pub(crate) fn writer(&self) -> ClusterId {
        self.envelope.record.writer
    }

    /// Whether it says that it founds a federation.
    pub(crate) fn founds(&self) -> bool {
        matches!(self.envelope.record.body, Body::Founding(_))
    }

    /// Checks the signature by a key that may turn out not to be the writer's; what does not fit is as it was.
    fn try_key(self, key: ReplicationKey) -> Piece {
        let as_it_was = self.clone();
        self.check(None, |_| Some(key))
            .map_or_else(|_| Piece::Unchecked(Box::new(as_it_was)), |record| Piece::Good(record, key))
    }

    /// Checks the signature: of a founding record by the key that it brings, and only if it founds `federation`; of any
    /// other by the key that `key` has of its writer.
    pub(crate) fn check(
        self,
        federation: Option<&FederationId>,
        key: impl FnOnce(&ClusterId) -> Option<ReplicationKey>,
    ) -> Result<Authentic<Record>, Unfit> {
        let Self { envelope: Envelope { record_bytes, signature, record }, raw } = self;
        let forged = |error: signatures::RecordError| Unfit::Forged(error.to_string());
        if matches!(record.body, Body::Founding(_)) {
            let (authentic, founded) =
                signatures::verify_founding(record, raw, &record_bytes, &signature).map_err(forged)?;
            return match federation {
                Some(federation) if *federation != founded => Err(Unfit::OtherFederation),
                _ => Ok(authentic),
            };
        }
        let writer = record.writer;
        let key = key(&writer).ok_or(Unfit::UnknownWriter(writer))?;
        signatures::verify(record, raw, &record_bytes, &signature, &key).map_err(forged)
    }
}

/// Checks many envelopes whose order need not be that of the admissions: what is of an unknown writer waits for it.
///
/// Returns the authentic ones in the order given, as far as admissions allow, and what was left over. Takes some 50 µs of
/// a core for each; all cores share it.
pub(crate) async fn check_all(
    federation: FederationId,
    envelopes: Vec<Arc<[u8]>>,
) -> (Vec<Authentic<Record>>, Vec<Unfit>) {
    let checking = tokio::task::spawn_blocking(move || check_in_order(&federation, envelopes));
    // One that panicked brings nothing, and nothing is no federation.
    checking.await.unwrap_or_default()
}

/// An envelope on its way through [`check_all`].
enum Piece {
    /// Good under the key of the first admission of its writer, counted or not.
    Good(Authentic<Record>, ReplicationKey),
    Unchecked(Box<Unchecked>),
}

pub(crate) fn check_in_order(
    federation: &FederationId,
    envelopes: Vec<Arc<[u8]>>,
) -> (Vec<Authentic<Record>>, Vec<Unfit>) {
    let (mut good, mut unfit) = (Vec::with_capacity(envelopes.len()), Vec::new());
    let mut waiting = Vec::with_capacity(envelopes.len());
    for read in beside_each_other(envelopes, Unchecked::read) {
        match read {
            Ok(unchecked) => waiting.push(unchecked),
            Err(error) => unfit.push(error),
        }
    }
    // Which admission counts shows in order; that they agree on the key is the rule, and it lets all cores work.
    let mut likely: HashMap<ClusterId, ReplicationKey> = HashMap::new();
    for (cluster, key) in waiting.iter().filter_map(|unchecked| admits(&unchecked.envelope.record)) {
        likely.entry(cluster).or_insert(key);
    }
    let mut waiting = beside_each_other(waiting, |unchecked: Unchecked| match likely.get(&unchecked.writer()) {
        Some(key) if !unchecked.founds() => unchecked.try_key(*key),
        _ => Piece::Unchecked(Box::new(unchecked)),
    });
    let mut keys: HashMap<ClusterId, ReplicationKey> = HashMap::new();
    loop {
        let (before, mut later) = (good.len(), Vec::new());
        for piece in waiting {
            let checked = match piece {
                Piece::Good(record, key) => match keys.get(&record.value().writer) {
                    Some(counting) if *counting == key => Ok(record),
                    Some(_) => Unchecked::read(record.raw().clone())
                        .and_then(|unchecked| unchecked.check(Some(federation), |writer| keys.get(writer).copied())),
                    None => {
                        later.push(Piece::Good(record, key));
                        continue;
                    }
                },
                Piece::Unchecked(unchecked) if keys.contains_key(&unchecked.writer()) || unchecked.founds() => {
                    unchecked.check(Some(federation), |writer| keys.get(writer).copied())
                }
                unchecked => {
                    later.push(unchecked);
                    continue;
                }
            };
            match checked {
                Ok(record) => {
                    if let Some((cluster, key)) = admits(record.value()) {
                        keys.entry(cluster).or_insert(key);
                    }
                    good.push(record);
                }
                Err(error) => unfit.push(error),
            }
        }
        if good.len() == before || later.is_empty() {
            unfit.extend(later.into_iter().map(|left| Unfit::UnknownWriter(left.writer())));
            return (good, unfit);
        }
        waiting = later;
    }
}

impl Piece {
    fn writer(&self) -> ClusterId {
        match self {
            Self::Good(record, _) => record.value().writer,
            Self::Unchecked(unchecked) => unchecked.writer(),
        }
    }
}

/// What `work` makes of each, in the same order; all cores share it.
fn beside_each_other<T: Send, U: Send>(items: Vec<T>, work: impl Fn(T) -> U + Sync) -> Vec<U> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let each = items.len().div_ceil(cores).max(SHARE_MIN);
    if items.len() <= each {
        return items.into_iter().map(work).collect();
    }
    let (mut items, work) = (items.into_iter(), &work);
    std::thread::scope(|scope| {
        let shares: Vec<Vec<T>> = std::iter::from_fn(|| {
            let share: Vec<T> = items.by_ref().take(each).collect();
            (!share.is_empty()).then_some(share)
        })
        .collect();
        let threads: Vec<_> = shares
            .into_iter()
            .map(|share| scope.spawn(move || share.into_iter().map(work).collect::<Vec<U>>()))
            .collect();
        let done = |thread: std::thread::ScopedJoinHandle<'_, Vec<U>>| match thread.join() {
            Ok(share) => share,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        threads.into_iter().flat_map(done).collect()
    })
}

/// Whose key a record vouches for.
pub(crate) fn admits(record: &Record) -> Option<(ClusterId, ReplicationKey)> {
    match &record.body {
        Body::Founding(candidate) => Some((candidate.id, candidate.replication_key)),
        Body::Admission(admission) => Some((admission.candidate.id, admission.candidate.replication_key)),
        _ => None,
    }
}

/// The row of a record that arrived as the `arrival`-th.
pub(crate) fn put(record: &Authentic<Record>, arrival: u64) -> Change {
    let mut value = Vec::with_capacity(ARRIVAL_BYTES + record.raw().len());
    value.extend_from_slice(&arrival.to_be_bytes());
    value.extend_from_slice(record.raw());
    Change::Put { key: record_key(&record.id()), value, expected: Expect::Any }
}

/// Arrival and envelope of a row; `None` if it is no row of this version.
pub(crate) fn read_row(row: &Row) -> Option<(u64, Arc<[u8]>)> {
    let (arrival, raw) = row.value.split_first_chunk::<ARRIVAL_BYTES>()?;
    Some((u64::from_be_bytes(*arrival), Arc::from(raw)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Cluster;

    /// What a founder with some rules, two members and one that a member sponsored wrote, in order of arrival.
    async fn history() -> (FederationId, Vec<Arc<[u8]>>) {
        let (east, west, north) =
            (Cluster::start("east").await, Cluster::start("west").await, Cluster::start("north").await);
        west.join(&east).await;
        north.join(&west).await;
        for number in 0..40 {
            east.allow(&format!("east{number}")).await;
        }
        north.allow("north").await;
        east.holds("north").await;
        let records = east.link.records().borrow().clone();
        let federation = east.link.snapshot().borrow().as_ref().expect("some").federation;
        (federation, records.iter().map(|record| record.raw().clone()).collect())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whatever_the_order_all_that_is_authentic_is_found() {
        let (federation, mut envelopes) = history().await;
        // Enough for more than one thread.
        assert!(envelopes.len() > SHARE_MIN / 2);
        let (good, unfit) = check_all(federation, envelopes.clone()).await;
        assert!(unfit.is_empty(), "{unfit:?}");
        let order: Vec<_> = good.iter().map(|record| record.raw().clone()).collect();
        assert_eq!(order, envelopes, "an order that was fine stays");
        envelopes.reverse();
        let (good, unfit) = check_all(federation, envelopes.clone()).await;
        assert!(unfit.is_empty(), "{unfit:?}");
        assert_eq!(good.len(), envelopes.len());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_byte_that_was_altered_is_found_whoever_signed() {
        let (federation, envelopes) = history().await;
        for at in 0..envelopes.len() {
            let mut altered = envelopes.clone();
            let mut raw = altered[at].to_vec();
            let last = raw.len() - 1;
            raw[last] ^= 1;
            altered[at] = raw.into();
            let (good, unfit) = check_all(federation, altered).await;
            assert!(!unfit.is_empty(), "record {at}");
            assert!(good.iter().all(|record| envelopes.contains(record.raw())), "record {at}");
        }
        let (good, unfit) = check_all(federation, envelopes[1..].to_vec()).await;
        assert_eq!((good.len(), unfit.len()), (0, envelopes.len() - 1), "nothing without the founding record");
    }

    #[test]
    fn work_that_is_shared_comes_back_in_order() {
        for count in [0, 1, SHARE_MIN, 2 * SHARE_MIN + 1, 1_000] {
            let items: Vec<usize> = (0..count).collect();
            let done = beside_each_other(items.clone(), |item| item * 2);
            assert_eq!(done, items.iter().map(|item| item * 2).collect::<Vec<_>>());
        }
    }
}
