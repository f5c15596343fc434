//! How far a replica has each log.

use std::collections::BTreeSet;

use federation_model::{EPOCHS_MAX, Head, LOGS_MAX, Vector};

use super::{ConvertError, audience, field};
use crate::federation as wire;

impl From<&Vector> for wire::Vector {
    fn from(vector: &Vector) -> Self {
        let logs = vector.0.iter().flat_map(|((writer, audience), epochs)| {
            epochs.iter().map(|(epoch, head)| wire::Log {
                writer: writer.as_bytes().to_vec(),
                audience: Some(audience.into()),
                epoch: *epoch,
                seq: head.seq,
                digest: head.digest.0.to_vec(),
            })
        });
        Self { logs: logs.collect(), more: false, ask: false }
    }
}

impl TryFrom<&wire::Vector> for Vector {
    type Error = ConvertError;
    /// At most [`LOGS_MAX`] logs of at most [`EPOCHS_MAX`] epochs; no epoch twice, none without a record.
    fn try_from(message: &wire::Vector) -> Result<Self, ConvertError> {
        let mut vector = Self::default();
        let mut seen = BTreeSet::new();
        for log in &message.logs {
            let writer = field::cluster("log.writer", &log.writer)?;
            let audience = audience::required("log.audience", log.audience.as_ref())?;
            let digest = field::digest("log.digest", &log.digest)?;
            if log.epoch == 0 || log.seq == 0 {
                return Err(ConvertError::value("log.seq", "epochs and sequence numbers start at 1"));
            }
            if !seen.insert((writer, audience, log.epoch)) {
                return Err(ConvertError::value("log.epoch", "the same epoch stands twice"));
            }
            vector.set(writer, audience, log.epoch, Head { seq: log.seq, digest });
            field::count("vector.logs", vector.0.len(), LOGS_MAX)?;
            let epochs = vector.0.get(&(writer, audience)).map_or(0, |epochs| epochs.len());
            field::count("log.epoch", epochs, EPOCHS_MAX)?;
        }
        Ok(vector)
    }
}
