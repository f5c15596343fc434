//! Who may read a log, and which record is meant.

use federation_model::{Audience, RecordId};

use super::{ConvertError, field};
use crate::record as wire;

impl From<&Audience> for wire::Audience {
    fn from(audience: &Audience) -> Self {
        let to = match audience {
            Audience::Law => wire::audience::To::Law(true),
            Audience::All => wire::audience::To::All(true),
            Audience::Member(id) => wire::audience::To::Member(id.as_bytes().to_vec()),
        };
        Self { to: Some(to) }
    }
}

impl TryFrom<&wire::Audience> for Audience {
    type Error = ConvertError;
    fn try_from(message: &wire::Audience) -> Result<Self, ConvertError> {
        match &message.to {
            Some(wire::audience::To::Law(true)) => Ok(Self::Law),
            Some(wire::audience::To::All(true)) => Ok(Self::All),
            Some(wire::audience::To::Member(id)) => field::cluster("audience.member", id).map(Self::Member),
            Some(_) => Err(ConvertError::value("audience.to", "it is chosen and false at once")),
            // Also an audience from a later version: a log of which we know nothing.
            None => Err(ConvertError::Missing { field: "audience.to" }),
        }
    }
}

/// An audience that must be there, whichever message it stands in.
pub(super) fn required(field: &'static str, message: Option<&wire::Audience>) -> Result<Audience, ConvertError> {
    message.ok_or(ConvertError::Missing { field }).and_then(Audience::try_from)
}

impl From<&RecordId> for wire::RecordId {
    fn from(id: &RecordId) -> Self {
        Self {
            writer: id.writer.as_bytes().to_vec(),
            audience: Some((&id.audience).into()),
            epoch: id.epoch,
            seq: id.seq,
            digest: id.digest.0.to_vec(),
        }
    }
}

impl TryFrom<&wire::RecordId> for RecordId {
    type Error = ConvertError;
    fn try_from(message: &wire::RecordId) -> Result<Self, ConvertError> {
        Ok(Self {
            writer: field::cluster("record_id.writer", &message.writer)?,
            audience: required("record_id.audience", message.audience.as_ref())?,
            epoch: message.epoch,
            seq: message.seq,
            digest: field::digest("record_id.digest", &message.digest)?,
        })
    }
}
