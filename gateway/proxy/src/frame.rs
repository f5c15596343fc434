//! The frames of `hanse-mesh/1`: one each way after the TLS handshake, raw bytes behind them.
//!
//! In: bytes of a peer that TLS proved. Out: [`Opening`] and [`Answer`]. Never: allocates before a length was checked,
//! panics, or takes a field twice.
//!
//! ```text
//! frame  = length: u16 (of what follows, 1 to 4,096) ‖ kind: u8 ‖ field*
//! field  = type: u8 ‖ length: u16 ‖ value
//!
//! kind 1, opening (client)                  kind 2, permit (server)        kind 3, denial (server)
//!   1 versions    min: u8 ‖ max: u8           1 version    u8                8 reason   word, 1 to 32 bytes
//!   2 service     DNS name, at most 254       6 instance   16 bytes          9 detail   text, at most 1,024 bytes
//!   3 connection  16 bytes                    4 features   u64              10 audit    16 bytes
//!   4 features    u64, default 0              7 renewed    u64, default 0
//!   5 renews      0 to 64 × 32 bytes
//! ```
//!
//! An unknown type below 128 is refused; one from 128 on is skipped, so that a later version may say more.

use std::io;

use federation_model::{ConnectionId, InstanceId, ServiceRef};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The only version that this build speaks.
pub const VERSION: u8 = 1;
/// Longest body of a frame in bytes.
pub const FRAME_BYTES_MAX: usize = 4096;
/// Most exporter values in one renewal.
pub const RENEWS_MAX: usize = 64;
/// Longest detail of a denial in bytes.
pub const DETAIL_BYTES_MAX: usize = 1024;
/// Longest reason word of a denial in bytes.
pub const REASON_BYTES_MAX: usize = 32;
/// Longest DNS name in bytes, with a final dot (RFC 1035, 2.3.4).
const NAME_BYTES_MAX: usize = 254;

const OPENING: u8 = 1;
const PERMIT: u8 = 2;
const DENIAL: u8 = 3;

const VERSIONS: u8 = 1;
const SERVICE: u8 = 2;
const CONNECTION: u8 = 3;
const FEATURES: u8 = 4;
const RENEWS: u8 = 5;
const INSTANCE: u8 = 6;
const RENEWED: u8 = 7;
const REASON: u8 = 8;
const DETAIL: u8 = 9;
const AUDIT: u8 = 10;
/// Types from here on may be skipped by who does not know them.
const OPTIONAL: u8 = 128;

/// A value that a TLS connection exports on both ends (RFC 8446, 7.5): names that connection in a renewal.
pub type Exporter = [u8; 32];

/// What the client says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Lowest and highest version that it speaks.
    pub versions: (u8, u8),
    /// The service that it wants; the same as in SNI and header.
    pub service: ServiceRef,
    /// The same as in the header.
    pub connection: ConnectionId,
    /// Bits of later features; unknown ones are ignored.
    pub features: u64,
    /// Live connections whose deadlines move to this one's, at most [`RENEWS_MAX`]. Empty for a connection that carries bytes.
    pub renews: Vec<Exporter>,
}

/// What the server says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Permit {
        version: u8,
        /// The process that answered: a renewal must reach the same.
        instance: InstanceId,
        features: u64,
        /// Bit *i* is set if the *i*-th of `renews` was moved.
        renewed: u64,
    },
    Denial {
        /// A word of [`federation_model::DenialReason`], or one of a later version.
        reason: String,
        /// A sentence for a person; no control characters.
        detail: String,
        /// Where the destination's audit log has it.
        audit: [u8; 16],
    },
}

/// Why bytes are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    #[error("frame is empty")]
    Empty,
    #[error("frame has {0} bytes, at most 4096 are allowed")]
    TooLong(usize),
    #[error("frame is of kind {0}, which is not expected here")]
    Kind(u8),
    #[error("frame ends within a field")]
    Truncated,
    #[error("field {0} stands twice")]
    Duplicate(u8),
    #[error("field {0} is not known to version 1, and not one that may be skipped")]
    Unknown(u8),
    #[error("field {0} is missing")]
    Missing(u8),
    #[error("field {field} has {bytes} bytes, which is not a length that it may have")]
    Length { field: u8, bytes: usize },
    #[error("field {0} is not text of the kind that it holds")]
    Text(u8),
    #[error("versions {0} to {1}: the lowest is above the highest")]
    Versions(u8, u8),
}

impl FrameError {
    /// Short fixed word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Empty => "frame_empty",
            Self::TooLong(_) => "frame_too_long",
            Self::Kind(_) => "frame_kind",
            Self::Truncated => "frame_truncated",
            Self::Duplicate(_) => "frame_duplicate_field",
            Self::Unknown(_) => "frame_unknown_field",
            Self::Missing(_) => "frame_missing_field",
            Self::Length { .. } => "frame_field_length",
            Self::Text(_) => "frame_field_text",
            Self::Versions(..) => "frame_versions",
        }
    }
}

impl From<FrameError> for io::Error {
    fn from(error: FrameError) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

impl Opening {
    /// The frame, length first.
    pub fn encode(&self) -> Vec<u8> {
        let mut frame = Writer::new(OPENING);
        frame.field(VERSIONS, &[self.versions.0, self.versions.1]);
        frame.field(SERVICE, self.service.dns().as_bytes());
        frame.field(CONNECTION, &self.connection.0);
        if self.features != 0 {
            frame.field(FEATURES, &self.features.to_be_bytes());
        }
        if !self.renews.is_empty() {
            // More than fit are left out; they go into another renewal.
            let renews: Vec<u8> = self.renews.iter().take(RENEWS_MAX).flatten().copied().collect();
            frame.field(RENEWS, &renews);
        }
        frame.finish()
    }

    /// Reads a body, the length having been taken off.
    ///
    /// # Errors
    /// Anything that the table above does not allow.
    pub fn decode(body: &[u8]) -> Result<Self, FrameError> {
        let fields = Fields::read(body, &[OPENING])?;
        let [lowest, highest] = *fields.exact::<2>(VERSIONS)?;
        if lowest > highest {
            return Err(FrameError::Versions(lowest, highest));
        }
        let name = fields.required(SERVICE)?;
        if name.len() > NAME_BYTES_MAX {
            return Err(FrameError::Length { field: SERVICE, bytes: name.len() });
        }
        let name = std::str::from_utf8(name).map_err(|_| FrameError::Text(SERVICE))?;
        let renews = fields.get(RENEWS).unwrap_or_default();
        let (values, rest) = renews.as_chunks::<32>();
        if !rest.is_empty() || values.len() > RENEWS_MAX {
            return Err(FrameError::Length { field: RENEWS, bytes: renews.len() });
        }
        Ok(Self {
            versions: (lowest, highest),
            service: ServiceRef::from_dns(name).map_err(|_| FrameError::Text(SERVICE))?,
            connection: ConnectionId(*fields.exact(CONNECTION)?),
            features: fields.number(FEATURES)?,
            renews: values.to_vec(),
        })
    }
}

impl Answer {
    /// The frame, length first. Reason and detail are cut to their bounds, control characters become spaces.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Permit { version, instance, features, renewed } => {
                let mut frame = Writer::new(PERMIT);
                frame.field(VERSIONS, &[*version]);
                frame.field(INSTANCE, &instance.0);
                for (field, value) in [(FEATURES, features), (RENEWED, renewed)] {
                    if *value != 0 {
                        frame.field(field, &value.to_be_bytes());
                    }
                }
                frame.finish()
            }
            Self::Denial { reason, detail, audit } => {
                let mut frame = Writer::new(DENIAL);
                frame.field(REASON, clean(reason, REASON_BYTES_MAX).as_bytes());
                frame.field(DETAIL, clean(detail, DETAIL_BYTES_MAX).as_bytes());
                frame.field(AUDIT, audit);
                frame.finish()
            }
        }
    }

    /// Reads a body, the length having been taken off.
    ///
    /// # Errors
    /// Anything that the table above does not allow.
    pub fn decode(body: &[u8]) -> Result<Self, FrameError> {
        let fields = Fields::read(body, &[PERMIT, DENIAL])?;
        if fields.kind == PERMIT {
            let [version] = *fields.exact::<1>(VERSIONS)?;
            return Ok(Self::Permit {
                version,
                instance: InstanceId(*fields.exact(INSTANCE)?),
                features: fields.number(FEATURES)?,
                renewed: fields.number(RENEWED)?,
            });
        }
        let reason = fields.required(REASON)?;
        let word = |byte: &u8| byte.is_ascii_lowercase() || *byte == b'_';
        if reason.is_empty() || reason.len() > REASON_BYTES_MAX {
            return Err(FrameError::Length { field: REASON, bytes: reason.len() });
        }
        if !reason.iter().all(word) {
            return Err(FrameError::Text(REASON));
        }
        let detail = fields.get(DETAIL).unwrap_or_default();
        if detail.len() > DETAIL_BYTES_MAX {
            return Err(FrameError::Length { field: DETAIL, bytes: detail.len() });
        }
        let text = |bytes, field| std::str::from_utf8(bytes).map_err(|_| FrameError::Text(field));
        Ok(Self::Denial {
            reason: text(reason, REASON)?.to_owned(),
            // It ends in log lines and on terminals.
            detail: clean(text(detail, DETAIL)?, DETAIL_BYTES_MAX),
            audit: *fields.exact(AUDIT)?,
        })
    }
}

/// Reads one frame's body. Takes not one byte more than the frame has.
///
/// # Errors
/// The stream's own, or a length out of bounds.
pub async fn read_body<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).await?;
    let mut body = vec![0; body_length(length)?];
    stream.read_exact(&mut body).await?;
    Ok(body)
}

/// The length of the body that these two bytes announce.
pub(crate) fn body_length(bytes: [u8; 2]) -> Result<usize, FrameError> {
    match usize::from(u16::from_be_bytes(bytes)) {
        0 => Err(FrameError::Empty),
        length if length > FRAME_BYTES_MAX => Err(FrameError::TooLong(length)),
        length => Ok(length),
    }
}

/// `text` without control characters, cut at a character's border to at most `bytes`.
pub(crate) fn clean(text: &str, bytes: usize) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let c = if c.is_control() { ' ' } else { c };
        if out.len() + c.len_utf8() > bytes {
            break;
        }
        out.push(c);
    }
    out
}

struct Writer(Vec<u8>);

impl Writer {
    fn new(kind: u8) -> Self {
        Self(vec![0, 0, kind])
    }

    /// Appends a field. Every caller above keeps values under 2,049 bytes, so the lengths fit.
    fn field(&mut self, field: u8, value: &[u8]) {
        let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
        self.0.push(field);
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(value);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u16::try_from(self.0.len().saturating_sub(2)).unwrap_or(u16::MAX);
        if let Some(place) = self.0.first_chunk_mut::<2>() {
            *place = length.to_be_bytes();
        }
        self.0
    }
}

struct Fields<'a> {
    kind: u8,
    /// By type; at most one each, so never more than there are known types.
    held: Vec<(u8, &'a [u8])>,
}

impl<'a> Fields<'a> {
    fn read(body: &'a [u8], kinds: &[u8]) -> Result<Self, FrameError> {
        if body.len() > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong(body.len()));
        }
        let (&kind, mut rest) = body.split_first().ok_or(FrameError::Empty)?;
        if !kinds.contains(&kind) {
            return Err(FrameError::Kind(kind));
        }
        let known: &[u8] = match kind {
            OPENING => &[VERSIONS, SERVICE, CONNECTION, FEATURES, RENEWS],
            PERMIT => &[VERSIONS, INSTANCE, FEATURES, RENEWED],
            _ => &[REASON, DETAIL, AUDIT],
        };
        let mut held = Vec::new();
        while !rest.is_empty() {
            let (head, after) = rest.split_first_chunk::<3>().ok_or(FrameError::Truncated)?;
            let [field, high, low] = *head;
            let length = usize::from(u16::from_be_bytes([high, low]));
            let (value, after) = after.split_at_checked(length).ok_or(FrameError::Truncated)?;
            rest = after;
            if !known.contains(&field) {
                if field < OPTIONAL {
                    return Err(FrameError::Unknown(field));
                }
                continue;
            }
            if held.iter().any(|(held, _)| *held == field) {
                return Err(FrameError::Duplicate(field));
            }
            held.push((field, value));
        }
        Ok(Self { kind, held })
    }

    fn get(&self, field: u8) -> Option<&'a [u8]> {
        self.held.iter().find(|(held, _)| *held == field).map(|(_, value)| *value)
    }

    fn required(&self, field: u8) -> Result<&'a [u8], FrameError> {
        self.get(field).ok_or(FrameError::Missing(field))
    }

    fn exact<const N: usize>(&self, field: u8) -> Result<&'a [u8; N], FrameError> {
        let value = self.required(field)?;
        value.try_into().map_err(|_| FrameError::Length { field, bytes: value.len() })
    }

    fn number(&self, field: u8) -> Result<u64, FrameError> {
        match self.get(field) {
            None => Ok(0),
            Some(_) => self.exact(field).map(|bytes| u64::from_be_bytes(*bytes)),
        }
    }
}

#[cfg(test)]
mod tests;
