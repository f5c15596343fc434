//! Single fields: fixed lengths, bounds and texts, each error with the field's name.

use std::str::FromStr;

use federation_model::{ClusterId, Digest, Label};
use prost::Message;

use super::ConvertError;

/// Parses a message of at most `max` bytes; longer ones are refused before anything is allocated for them.
pub(super) fn message<M: Message + Default>(field: &'static str, bytes: &[u8], max: usize) -> Result<M, ConvertError> {
    at_most(field, bytes.len(), max)?;
    M::decode(bytes).map_err(|error| ConvertError::Protobuf { field, detail: error.to_string() })
}

pub(super) fn at_most(field: &'static str, bytes: usize, max: usize) -> Result<(), ConvertError> {
    if bytes > max { Err(ConvertError::TooLong { field, bytes, max }) } else { Ok(()) }
}

pub(super) fn count(field: &'static str, count: usize, max: usize) -> Result<(), ConvertError> {
    if count > max { Err(ConvertError::TooMany { field, count, max }) } else { Ok(()) }
}

pub(super) fn fixed<const N: usize>(field: &'static str, bytes: &[u8]) -> Result<[u8; N], ConvertError> {
    if bytes.is_empty() {
        return Err(ConvertError::Missing { field });
    }
    bytes.try_into().map_err(|_| ConvertError::Length { field, bytes: bytes.len(), expected: N })
}

pub(super) fn digest(field: &'static str, bytes: &[u8]) -> Result<Digest, ConvertError> {
    fixed(field, bytes).map(Digest)
}

/// A digest that may be left out, which the model writes as zero. Zero itself is refused: it would be a second way to say
/// that there is none, and what asks whether one is there would be deceived.
pub(super) fn digest_or_zero(field: &'static str, bytes: &[u8]) -> Result<Digest, ConvertError> {
    match bytes {
        [] => Ok(Digest::ZERO),
        bytes if bytes.iter().all(|byte| *byte == 0) => Err(ConvertError::value(field, "a digest of zeros")),
        bytes => digest(field, bytes),
    }
}

/// The wire form of [`digest_or_zero`].
pub(super) fn empty_if_zero(digest: &Digest) -> Vec<u8> {
    if *digest == Digest::ZERO { Vec::new() } else { digest.0.to_vec() }
}

pub(super) fn cluster(field: &'static str, bytes: &[u8]) -> Result<ClusterId, ConvertError> {
    digest(field, bytes).map(ClusterId::from_digest)
}

/// Parses a text by the model's own rules, which bound its length.
pub(super) fn text<T>(field: &'static str, text: &str) -> Result<T, ConvertError>
where
    T: FromStr,
    T::Err: ToString,
{
    if text.is_empty() {
        return Err(ConvertError::Missing { field });
    }
    text.parse().map_err(|error: T::Err| ConvertError::value(field, error))
}

/// `*` or a name.
pub(super) fn label<T>(field: &'static str, value: &str) -> Result<Label<T>, ConvertError>
where
    T: FromStr,
    T::Err: ToString,
{
    if value == "*" { Ok(Label::Any) } else { text(field, value).map(Label::Is) }
}

/// A port that can be dialled: 1 to 65535.
pub(super) fn port(field: &'static str, value: u32) -> Result<u16, ConvertError> {
    match u16::try_from(value) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(ConvertError::Value { field, detail: format!("{value} is no port, 1 to 65535 are") }),
    }
}
