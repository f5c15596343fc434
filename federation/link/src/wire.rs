//! Frames between edges: a big-endian `u32` length and a serialized `Frame` (`proto/hanse/federation.proto`).
//!
//! In: any byte stream. Out: one frame, or an error that says what was wrong with the bytes.
//! Never: allocates what a length claims before the length was held against its bound; panics, whatever the bytes are.

use bytes::BytesMut;
use federation_model::Vector;
use prost::Message;
pub(crate) use proto::federation::frame::Frame;
use proto::federation::{self as wire, Refusal};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest frame on any stream.
pub(crate) const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// Longest `Hello`, `HelloAck` or `Refusal`: what a peer may make us hold before it was greeted.
pub(crate) const HELLO_BYTES_MAX: usize = 16 * 1024;
/// Longest first frame of a stream (`OpenReplication`, `OpenTunnel`).
pub(crate) const OPEN_BYTES_MAX: usize = 256;
/// Longest frame of a control stream: an `Extend` carries a passthrough header of at most 16 KiB.
pub(crate) const CONTROL_BYTES_MAX: usize = 32 * 1024;
/// Longest `JoinRequest`: a candidate with the longest root, and its proof.
pub(crate) const JOIN_BYTES_MAX: usize = 32 * 1024;
/// Most envelopes in one `Records` frame.
pub(crate) const ENVELOPES_MAX: usize = 1_000;
/// Where a `Records` frame is cut, so that it stays below [`FRAME_BYTES_MAX`] with its longest envelope and framing.
pub(crate) const RECORDS_BYTES_SOFT_MAX: usize = 768 * 1024;
/// Most logs in one `Vector` frame: some half a megabyte.
pub(crate) const VECTOR_LOGS_MAX: usize = 4_096;
/// Most epochs of logs that all frames of one vector may name.
pub(crate) const VECTOR_ENTRIES_MAX: usize = 4 * federation_model::LOGS_MAX;
/// Most characters of a text from a peer that go into a message or a log line.
const TEXT_CHARS_MAX: usize = 200;

/// Why no frame could be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    #[error("frame claims {bytes} bytes, at most {max} are allowed here")]
    Oversized { bytes: usize, max: usize },
    #[error("stream ended {missing} bytes before the end of a frame")]
    Truncated { missing: usize },
    #[error("frame of {bytes} bytes is no valid message: {detail}")]
    Malformed { bytes: usize, detail: String },
    #[error("frame of {bytes} bytes is of a kind that this version does not know")]
    UnknownKind { bytes: usize },
    #[error("a {got} frame is not allowed here")]
    Unexpected { got: &'static str },
    #[error("stream was closed")]
    Closed,
    #[error("stream was lost")]
    Lost(#[source] std::io::Error),
    #[error("nothing came within {0:?}")]
    TimedOut(std::time::Duration),
}

impl WireError {
    /// Short fixed word for metrics, close frames and audit.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Oversized { .. } => "frame_oversized",
            Self::Truncated { .. } => "frame_truncated",
            Self::Malformed { .. } => "frame_malformed",
            Self::UnknownKind { .. } => "frame_unknown",
            Self::Unexpected { .. } => "frame_unexpected",
            Self::Closed => "stream_closed",
            Self::Lost(_) => "stream_lost",
            Self::TimedOut(_) => "timed_out",
        }
    }

    /// Whether the bytes themselves were wrong, rather than the path that they came on.
    pub fn is_fault_of_peer(&self) -> bool {
        !matches!(self, Self::Closed | Self::Lost(_) | Self::TimedOut(_))
    }
}

/// Reads one frame of at most `max` bytes.
///
/// # Errors
/// [`WireError::Closed`] if the stream ends between frames; anything else is a fault of bytes or path.
pub(crate) async fn read<R: AsyncRead + Unpin>(stream: &mut R, max: usize) -> Result<Frame, WireError> {
    let mut length = [0_u8; 4];
    let mut have = 0;
    while have < length.len() {
        let Some(rest) = length.get_mut(have..) else { break };
        match stream.read(rest).await.map_err(WireError::Lost)? {
            0 if have == 0 => return Err(WireError::Closed),
            0 => return Err(WireError::Truncated { missing: length.len() - have }),
            read => have += read,
        }
    }
    let bytes = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if bytes > max.min(FRAME_BYTES_MAX) {
        return Err(WireError::Oversized { bytes, max: max.min(FRAME_BYTES_MAX) });
    }
    // Grows with what really comes: a peer that claims a megabyte and sends nothing costs a page.
    let mut body = BytesMut::with_capacity(bytes.min(4096));
    let mut limited = stream.take(u64::from(u32::from_be_bytes(length)));
    while body.len() < bytes {
        if limited.read_buf(&mut body).await.map_err(WireError::Lost)? == 0 {
            return Err(WireError::Truncated { missing: bytes - body.len() });
        }
    }
    let message = wire::Frame::decode(body.freeze())
        .map_err(|error| WireError::Malformed { bytes, detail: printable(&error.to_string()) })?;
    message.frame.ok_or(WireError::UnknownKind { bytes })
}

/// Reads one frame within `limit`.
///
/// # Errors
/// Those of [`read`], and [`WireError::TimedOut`].
pub(crate) async fn read_within<R: AsyncRead + Unpin>(
    stream: &mut R,
    max: usize,
    limit: std::time::Duration,
) -> Result<Frame, WireError> {
    tokio::time::timeout(limit, read(stream, max)).await.unwrap_or(Err(WireError::TimedOut(limit)))
}

/// Writes one frame.
///
/// # Errors
/// The frame is longer than [`FRAME_BYTES_MAX`], or the stream is gone.
pub(crate) async fn write<W: AsyncWrite + Unpin>(stream: &mut W, frame: Frame) -> Result<(), WireError> {
    let bytes = encode(frame)?;
    stream.write_all(&bytes).await.map_err(WireError::Lost)
}

/// Writes one frame within `limit`, so that a peer that stopped reading cannot hold the writer.
///
/// # Errors
/// Those of [`write`], and [`WireError::TimedOut`].
pub(crate) async fn write_within<W: AsyncWrite + Unpin>(
    stream: &mut W,
    frame: Frame,
    limit: std::time::Duration,
) -> Result<(), WireError> {
    tokio::time::timeout(limit, write(stream, frame)).await.unwrap_or(Err(WireError::TimedOut(limit)))
}

/// The bytes of a frame with its length.
pub(crate) fn encode(frame: Frame) -> Result<Vec<u8>, WireError> {
    let message = wire::Frame { frame: Some(frame) };
    let bytes = message.encoded_len();
    let length = u32::try_from(bytes).ok().filter(|_| bytes <= FRAME_BYTES_MAX);
    let length = length.ok_or(WireError::Oversized { bytes, max: FRAME_BYTES_MAX })?;
    let mut out = Vec::with_capacity(bytes + 4);
    out.extend_from_slice(&length.to_be_bytes());
    message.encode_raw(&mut out);
    Ok(out)
}

/// The kind of a frame, for messages.
pub(crate) fn name(frame: &Frame) -> &'static str {
    match frame {
        Frame::Hello(_) => "hello",
        Frame::HelloAck(_) => "hello_ack",
        Frame::Refusal(_) => "refusal",
        Frame::Heartbeat(_) => "heartbeat",
        Frame::HeartbeatAck(_) => "heartbeat_ack",
        Frame::Denied(_) => "denied",
        Frame::Extend(_) => "extend",
        Frame::OpenReplication(_) => "open_replication",
        Frame::Vector(_) => "vector",
        Frame::Records(_) => "records",
        Frame::OpenTunnel(_) => "open_tunnel",
        Frame::JoinRequest(_) => "join_request",
        Frame::JoinAnswer(_) => "join_answer",
        Frame::Receipt(_) => "receipt",
        Frame::Leaving(_) => "leaving",
        Frame::Receipts(_) => "receipts",
        Frame::VectorDigest(_) => "vector_digest",
    }
}

/// A refusal with its fixed word and a sentence for a person.
pub(crate) fn refusal(reason: &str, detail: impl Into<String>) -> Frame {
    Frame::Refusal(Refusal { reason: reason.to_owned(), detail: detail.into() })
}

/// A text from a peer, cut and without control characters, fit for a message or a log line.
pub(crate) fn printable(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A vector cut into frames of at most [`VECTOR_LOGS_MAX`] logs.
pub(crate) fn vector_frames(vector: &Vector, ask: bool) -> Vec<Frame> {
    let mut rest = wire::Vector::from(vector).logs;
    let mut frames = Vec::new();
    loop {
        let next = rest.split_off(rest.len().min(VECTOR_LOGS_MAX));
        let more = !next.is_empty();
        frames.push(Frame::Vector(wire::Vector { logs: std::mem::replace(&mut rest, next), more, ask: ask && !more }));
        if !more {
            return frames;
        }
    }
}

/// A vector that comes in frames.
#[derive(Default)]
pub(crate) struct Parts(Vec<wire::Log>);

impl Parts {
    /// Adds a frame; the whole vector, and whether one is asked for in return, with the last.
    ///
    /// # Errors
    /// More logs than [`VECTOR_LOGS_MAX`] in the frame or [`VECTOR_ENTRIES_MAX`] in all, or what a vector must not say.
    pub(crate) fn add(&mut self, frame: wire::Vector) -> Result<Option<(Vector, bool)>, String> {
        let (logs, all) = (frame.logs.len(), self.0.len() + frame.logs.len());
        if logs > VECTOR_LOGS_MAX || all > VECTOR_ENTRIES_MAX {
            return Err(format!(
                "{logs} logs in one frame, {all} in all; at most {VECTOR_LOGS_MAX} and {VECTOR_ENTRIES_MAX} are allowed"
            ));
        }
        self.0.extend(frame.logs);
        if frame.more {
            return Ok(None);
        }
        let logs = std::mem::take(&mut self.0);
        let vector =
            Vector::try_from(&wire::Vector { logs, more: false, ask: false }).map_err(|error| error.to_string())?;
        Ok(Some((vector, frame.ask)))
    }

    /// Whether a vector has begun and not ended.
    pub(crate) fn is_open(&self) -> bool {
        !self.0.is_empty()
    }
}

/// Envelopes cut into frames: at most [`ENVELOPES_MAX`] and about [`RECORDS_BYTES_SOFT_MAX`] bytes each.
pub(crate) fn records_frames(envelopes: &[std::sync::Arc<[u8]>]) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut batch: Vec<Vec<u8>> = Vec::new();
    let mut bytes = 0;
    for envelope in envelopes {
        if batch.len() >= ENVELOPES_MAX || (!batch.is_empty() && bytes + envelope.len() > RECORDS_BYTES_SOFT_MAX) {
            frames.push(Frame::Records(wire::Records { envelopes: std::mem::take(&mut batch) }));
            bytes = 0;
        }
        bytes += envelope.len() + 8;
        batch.push(envelope.to_vec());
    }
    if !batch.is_empty() {
        frames.push(Frame::Records(wire::Records { envelopes: batch }));
    }
    frames
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn heartbeat() -> Frame {
        Frame::Heartbeat(wire::Heartbeat { number: 7, now_ms: 1 })
    }

    #[tokio::test]
    async fn a_frame_comes_back_as_it_was_written() {
        let mut bytes = Vec::new();
        write(&mut bytes, heartbeat()).await.expect("fits");
        write(&mut bytes, refusal("word", "a sentence")).await.expect("fits");
        let mut stream = bytes.as_slice();
        assert_eq!(read(&mut stream, CONTROL_BYTES_MAX).await.expect("first"), heartbeat());
        assert_eq!(read(&mut stream, CONTROL_BYTES_MAX).await.expect("second"), refusal("word", "a sentence"));
        assert!(matches!(read(&mut stream, CONTROL_BYTES_MAX).await, Err(WireError::Closed)));
    }

    #[tokio::test]
    async fn a_length_past_the_bound_is_refused_before_its_bytes_are_read() {
        for claimed in [u32::MAX, 0x0010_0001, 257] {
            let bytes = claimed.to_be_bytes();
            let error = read(&mut bytes.as_slice(), OPEN_BYTES_MAX).await.expect_err("oversized");
            assert_eq!(error.reason(), "frame_oversized", "{error}");
            assert!(error.is_fault_of_peer());
        }
    }

    #[tokio::test]
    async fn a_stream_that_ends_within_a_frame_is_truncated() {
        let whole = encode(heartbeat()).expect("fits");
        for cut in 1..whole.len() {
            let mut stream = whole.get(..cut).expect("within");
            let error = read(&mut stream, CONTROL_BYTES_MAX).await.expect_err("truncated");
            assert_eq!(error.reason(), "frame_truncated", "cut at {cut}");
        }
    }

    #[tokio::test]
    async fn bytes_that_are_no_message_are_malformed_and_unknown_kinds_are_named() {
        let garbage = [0, 0, 0, 3, 0xff, 0xff, 0xff];
        assert_eq!(read(&mut garbage.as_slice(), 64).await.expect_err("garbage").reason(), "frame_malformed");
        // Field 100, length-delimited, empty: a kind from the future.
        let future = [0, 0, 0, 3, 0xa2, 0x06, 0x00];
        assert_eq!(read(&mut future.as_slice(), 64).await.expect_err("future").reason(), "frame_unknown");
        let empty = [0, 0, 0, 0];
        assert_eq!(read(&mut empty.as_slice(), 64).await.expect_err("empty").reason(), "frame_unknown");
    }

    #[tokio::test]
    async fn no_bytes_panic_the_reader() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for round in 0..20_000_usize {
            let mut bytes = vec![0, 0, 0, u8::try_from(round % 40).expect("small")];
            for _ in 0..(round % 40) {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                bytes.push(seed.to_le_bytes()[0]);
            }
            let _ = read(&mut bytes.as_slice(), 64).await;
        }
    }

    #[test]
    fn a_frame_past_the_bound_is_not_written() {
        let frame = Frame::Records(wire::Records { envelopes: vec![vec![0; FRAME_BYTES_MAX]] });
        assert_eq!(encode(frame).expect_err("too long").reason(), "frame_oversized");
    }

    #[test]
    fn records_are_cut_into_frames_that_fit() {
        let envelopes: Vec<Arc<[u8]>> = (0..2_500).map(|_| Arc::from(vec![1_u8; 1_000])).collect();
        let frames = records_frames(&envelopes);
        let mut count = 0;
        for frame in frames {
            let Frame::Records(records) = &frame else { panic!("records") };
            assert!(records.envelopes.len() <= ENVELOPES_MAX);
            count += records.envelopes.len();
            encode(frame).expect("fits");
        }
        assert_eq!(count, 2_500);
    }

    #[test]
    fn a_long_vector_travels_in_frames_and_comes_back_whole() {
        for logs in [0, 1, VECTOR_LOGS_MAX, VECTOR_LOGS_MAX + 1, 3 * VECTOR_LOGS_MAX + 7] {
            let mut vector = Vector::default();
            for number in 0..logs {
                let mut id = [0; 32];
                id[..8].copy_from_slice(&(number as u64).to_be_bytes());
                let head = federation_model::Head { seq: 1, digest: federation_model::Digest([7; 32]) };
                vector.set(
                    federation_model::ClusterId::from_digest(federation_model::Digest(id)),
                    federation_model::Audience::Law,
                    1,
                    head,
                );
            }
            let (mut parts, mut whole) = (Parts::default(), None);
            for frame in vector_frames(&vector, true) {
                assert!(whole.is_none(), "nothing follows the last");
                encode(frame.clone()).expect("fits a frame");
                let Frame::Vector(frame) = frame else { panic!("vector") };
                whole = parts.add(frame).expect("within the bounds");
            }
            assert_eq!(whole, Some((vector, true)), "{logs}");
        }
    }

    #[test]
    fn a_vector_without_end_is_refused() {
        let log = wire::Log { writer: vec![1; 32], seq: 1, epoch: 1, ..Default::default() };
        let frame = |logs| wire::Vector { logs: vec![log.clone(); logs], more: true, ask: false };
        let mut parts = Parts::default();
        assert!(parts.add(frame(VECTOR_LOGS_MAX + 1)).is_err());
        for _ in 0..VECTOR_ENTRIES_MAX / VECTOR_LOGS_MAX {
            assert_eq!(parts.add(frame(VECTOR_LOGS_MAX)).expect("so far"), None);
        }
        let error = parts.add(frame(1)).expect_err("one too many");
        assert!(error.contains("65537 in all"), "{error}");
    }

    #[test]
    fn a_text_from_a_peer_is_cut_and_made_harmless() {
        let text = format!("a\n\u{1b}[31m{}", "x".repeat(1_000));
        let shown = printable(&text);
        assert!(shown.chars().count() <= 200 && !shown.contains('\n') && !shown.contains('\u{1b}'));
    }
}
