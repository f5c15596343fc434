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
/// Returns the authentic ones in the order given, as far as admissions allow, and what was left over.
pub(crate) fn check_all(federation: &FederationId, envelopes: Vec<Arc<[u8]>>) -> (Vec<Authentic<Record>>, Vec<Unfit>) {
    let mut keys: HashMap<ClusterId, ReplicationKey> = HashMap::new();
    let (mut good, mut unfit) = (Vec::with_capacity(envelopes.len()), Vec::new());
    let mut waiting = Vec::new();
    for raw in envelopes {
        match Unchecked::read(raw) {
            Ok(unchecked) => waiting.push(unchecked),
            Err(error) => unfit.push(error),
        }
    }
    loop {
        let (before, mut later) = (good.len(), Vec::new());
        for unchecked in waiting {
            let known = keys.contains_key(&unchecked.writer());
            if !known && !matches!(unchecked.envelope.record.body, Body::Founding(_)) {
                later.push(unchecked);
                continue;
            }
            match unchecked.check(Some(federation), |writer| keys.get(writer).copied()) {
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
