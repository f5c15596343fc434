//! Receipts: what a member signed of what it enforces.

use std::{collections::BTreeMap, time::Duration};

use federation_model::{FederationId, RECEIPT_LOGS_MAX, RECEIPT_NEIGHBOURS_MAX, Receipt, Timestamp};
use prost::Message;

use super::{ConvertError, field};
use crate::federation as wire;

/// Longest serialized receipt in bytes: the most statements and neighbours, and room for what a later version adds.
pub const RECEIPT_BYTES_MAX: usize = 30 * 1024;

/// The bytes that a member signs.
pub fn encode_receipt(receipt: &Receipt) -> Vec<u8> {
    let log = |((writer, epoch), seq): (&(federation_model::ClusterId, u64), &u64)| wire::EnforcedLog {
        writer: writer.as_bytes().to_vec(),
        epoch: *epoch,
        seq: *seq,
    };
    let message = wire::Enforced {
        federation: receipt.federation.as_bytes().to_vec(),
        member: receipt.member.as_bytes().to_vec(),
        number: receipt.number,
        at_ms: receipt.at.as_millis(),
        whole: receipt.whole,
        law: receipt.law.iter().map(log).collect(),
        neighbours: receipt
            .neighbours
            .iter()
            .map(|(id, rtt)| wire::Neighbour {
                cluster: id.as_bytes().to_vec(),
                rtt_us: u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX),
            })
            .collect(),
    };
    message.encode_to_vec()
}

/// Reads the bytes that a member signed.
///
/// # Errors
/// Too long, no protobuf, or a field that is missing, wrong or past its bound.
pub fn decode_receipt(bytes: &[u8]) -> Result<Receipt, ConvertError> {
    let message: wire::Enforced = field::message("receipt", bytes, RECEIPT_BYTES_MAX)?;
    field::count("receipt.law", message.law.len(), RECEIPT_LOGS_MAX)?;
    field::count("receipt.neighbours", message.neighbours.len(), RECEIPT_NEIGHBOURS_MAX)?;
    let mut law = BTreeMap::new();
    for log in &message.law {
        let writer = field::cluster("receipt.law.writer", &log.writer)?;
        if law.insert((writer, log.epoch), log.seq).is_some() {
            return Err(ConvertError::value("receipt.law.epoch", format!("epoch {} stands twice", log.epoch)));
        }
    }
    let neighbour = |neighbour: &wire::Neighbour| {
        Ok((field::cluster("receipt.neighbours", &neighbour.cluster)?, Duration::from_micros(neighbour.rtt_us)))
    };
    Ok(Receipt {
        federation: field::digest("receipt.federation", &message.federation).map(FederationId::from_digest)?,
        member: field::cluster("receipt.member", &message.member)?,
        number: message.number,
        at: Timestamp::from_millis(message.at_ms),
        whole: message.whole,
        law,
        neighbours: message.neighbours.iter().map(neighbour).collect::<Result<_, ConvertError>>()?,
    })
}

#[cfg(test)]
mod tests {
    use federation_model::{ClusterId, Digest};

    use super::*;

    fn id(byte: u8) -> ClusterId {
        ClusterId::from_digest(Digest([byte; 32]))
    }

    fn receipt() -> Receipt {
        Receipt {
            federation: FederationId::from_digest(Digest([9; 32])),
            member: id(1),
            number: 7,
            at: Timestamp::from_millis(8),
            whole: true,
            law: [((id(1), 1), 4), ((id(1), 2), 1), ((id(2), 1), 900)].into(),
            neighbours: [(id(2), Duration::from_micros(7)), (id(3), Duration::ZERO)].into(),
        }
    }

    #[test]
    fn a_receipt_comes_back_as_it_was_written_and_the_longest_fits() {
        assert_eq!(decode_receipt(&encode_receipt(&receipt())).expect("read"), receipt());
        let longest = Receipt {
            law: (0..RECEIPT_LOGS_MAX as u64).map(|at| ((id(1), u64::MAX - at), u64::MAX)).collect(),
            neighbours: (0..=255).map(|byte| (id(byte), Duration::from_micros(u64::MAX))).collect(),
            ..receipt()
        };
        assert_eq!(decode_receipt(&encode_receipt(&longest)).expect("read"), longest);
    }

    #[test]
    fn a_wrong_field_is_named() {
        let changed = |change: fn(&mut wire::Enforced)| {
            let mut message = wire::Enforced::decode(encode_receipt(&receipt()).as_slice()).expect("own bytes");
            change(&mut message);
            let error = decode_receipt(&message.encode_to_vec()).expect_err("wrong");
            (error.field(), error.reason())
        };
        assert_eq!(changed(|r| r.member.clear()), ("receipt.member", "missing"));
        assert_eq!(changed(|r| r.federation.truncate(3)), ("receipt.federation", "length"));
        assert_eq!(changed(|r| r.law.push(r.law[0].clone())), ("receipt.law.epoch", "value"));
        assert_eq!(changed(|r| r.law[0].writer.clear()), ("receipt.law.writer", "missing"));
        assert_eq!(changed(|r| r.neighbours = vec![r.neighbours[0].clone(); 257]), ("receipt.neighbours", "too_many"));
        let many = |r: &mut wire::Enforced| r.law = vec![r.law[0].clone(); RECEIPT_LOGS_MAX + 1];
        assert_eq!(changed(many), ("receipt.law", "too_many"));
        let long = vec![0; RECEIPT_BYTES_MAX + 1];
        assert_eq!(decode_receipt(&long).expect_err("long").reason(), "too_long");
    }
}
