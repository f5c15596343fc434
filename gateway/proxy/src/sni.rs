//! Stage 2: passthrough header and ClientHello, read and taken apart without answering a byte.
//!
//! In: a stream from anybody. Out: what was read, the header's parts, the SNI. Never: more than 16 KiB of either, more
//! than a few seconds (the caller's timeout), or trust: nothing here was verified.

use std::io;

use federation_identity::{
    passthrough::{self, Header, HeaderError},
    tls::ALPN_MESH,
};
use federation_model::ServiceRef;
use rustls::server::{Accepted, Acceptor};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::limits::{HEADER_BYTES_MAX, HELLO_BYTES_MAX};

/// Bytes asked for at once: a header and a hello with a post-quantum share fit.
const READ_BYTES: usize = 4096;

/// What a connection says before anybody answered.
pub(crate) struct Greeting {
    /// Unverified.
    pub(crate) header: Header,
    /// From the SNI, which equals the header's destination.
    pub(crate) service: ServiceRef,
    /// Everything read: header, hello, and what came behind it.
    raw: Vec<u8>,
    hello_start: usize,
    hello_end: usize,
    /// The hello as rustls understood it, to go on with where TLS ends.
    pub(crate) accepted: Accepted,
}

impl Greeting {
    /// The ClientHello's bytes, TLS record headers included: what the header's signature covers.
    pub(crate) fn hello(&self) -> &[u8] {
        self.raw.get(self.hello_start..self.hello_end).unwrap_or_default()
    }

    /// All bytes, to be passed on unchanged.
    pub(crate) fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// Splits into the hello as rustls understood it and the bytes that came behind it.
    pub(crate) fn into_handshake(self) -> (Accepted, Vec<u8>) {
        (self.accepted, self.raw.get(self.hello_end..).unwrap_or_default().to_vec())
    }
}

/// Why a greeting is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum GreetingError {
    #[error("stream ended or broke before its ClientHello")]
    Stream(#[source] io::Error),
    #[error(transparent)]
    Header(HeaderError),
    #[error("ClientHello has over {HELLO_BYTES_MAX} bytes")]
    HelloTooLong,
    #[error("no TLS ClientHello follows the header")]
    NoHello,
    #[error("ClientHello cannot be read: {0}")]
    Hello(rustls::Error),
    #[error("ClientHello does not offer hanse-mesh/1")]
    Alpn,
    #[error("ClientHello names no server (SNI)")]
    NoSni,
    #[error("SNI {0:?} is no service of the mesh")]
    ForeignSni(String),
    #[error("SNI names {sni}, the header {header:?}")]
    Mismatch { sni: ServiceRef, header: String },
}

impl GreetingError {
    /// Short fixed word for the log.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Stream(_) => "stream",
            Self::Header(error) => error.reason(),
            Self::HelloTooLong => "hello_too_long",
            Self::NoHello => "no_hello",
            Self::Hello(_) => "hello_malformed",
            Self::Alpn => "alpn",
            Self::NoSni => "no_sni",
            Self::ForeignSni(_) => "foreign_sni",
            Self::Mismatch { .. } => "sni_mismatch",
        }
    }
}

/// Reads until header and hello are complete. The caller sets the time limit.
pub(crate) async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Greeting, GreetingError> {
    let mut raw = Vec::new();
    let (header, hello_start) = loop {
        match passthrough::parse(&raw).map_err(GreetingError::Header)? {
            Some(found) => break found,
            // The parser refuses a longer one by its length field; this holds whatever it does.
            None if raw.len() > HEADER_BYTES_MAX => {
                return Err(GreetingError::Header(HeaderError::TooLong { bytes: raw.len() }));
            }
            None => more(stream, &mut raw).await?,
        }
    };
    let hello_end = loop {
        match hello_length(raw.get(hello_start..).unwrap_or_default())? {
            Some(length) => break hello_start + length,
            None => more(stream, &mut raw).await?,
        }
    };
    let (accepted, sni) = understand(raw.get(hello_start..hello_end).unwrap_or_default())?;
    let service = ServiceRef::from_dns(&sni).map_err(|_| GreetingError::ForeignSni(sni))?;
    match ServiceRef::from_dns(&header.destination) {
        Ok(destination) if destination == service => {}
        _ => return Err(GreetingError::Mismatch { sni: service, header: shown(&header.destination) }),
    }
    Ok(Greeting { header, service, raw, hello_start, hello_end, accepted })
}

async fn more<S: AsyncRead + Unpin>(stream: &mut S, raw: &mut Vec<u8>) -> Result<(), GreetingError> {
    raw.reserve(READ_BYTES);
    let read = stream.take(READ_BYTES as u64).read_buf(raw).await.map_err(GreetingError::Stream)?;
    if read == 0 { Err(GreetingError::Stream(io::ErrorKind::UnexpectedEof.into())) } else { Ok(()) }
}

/// Where the TLS records that hold the ClientHello end; `None` while more bytes are needed.
///
/// Only this much framing is read here (RFC 8446, 5.1 and 4): a record is type 22, version, u16 length; the message in
/// it type 1 and a u24 length, in as many records as the client likes. Nothing may share the last record with it.
fn hello_length(bytes: &[u8]) -> Result<Option<usize>, GreetingError> {
    let mut end = 0;
    let mut message = 0;
    let mut head = Vec::with_capacity(4);
    loop {
        let Some(record) = bytes.get(end..end + 5) else {
            return if end + 5 > HELLO_BYTES_MAX { Err(GreetingError::HelloTooLong) } else { early(bytes, end) };
        };
        let &[kind, major, _, high, low] = record else { return Err(GreetingError::NoHello) };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if kind != 22 || major != 3 || length == 0 {
            return Err(GreetingError::NoHello);
        }
        end += 5 + length;
        if end > HELLO_BYTES_MAX {
            return Err(GreetingError::HelloTooLong);
        }
        let Some(fragment) = bytes.get(end - length..end) else { return Ok(None) };
        head.extend(fragment.iter().copied().take(4 - head.len()));
        message += length;
        let &[kind, a, b, c] = head.as_slice() else { continue };
        let wanted = 4 + u32::from_be_bytes([0, a, b, c]) as usize;
        match message {
            _ if kind != 1 => return Err(GreetingError::NoHello),
            _ if wanted > HELLO_BYTES_MAX => return Err(GreetingError::HelloTooLong),
            _ if message > wanted => return Err(GreetingError::NoHello),
            _ if message == wanted => return Ok(Some(end)),
            _ => {}
        }
    }
}

/// Refuses what can be no TLS record at its first byte already, so that a stranger's protocol is not waited for.
fn early(bytes: &[u8], end: usize) -> Result<Option<usize>, GreetingError> {
    match bytes.get(end) {
        Some(kind) if *kind != 22 => Err(GreetingError::NoHello),
        _ => Ok(None),
    }
}

fn understand(mut hello: &[u8]) -> Result<(Accepted, String), GreetingError> {
    let mut acceptor = Acceptor::default();
    let accepted = loop {
        let unread = hello.len();
        acceptor.read_tls(&mut hello).map_err(GreetingError::Stream)?;
        match acceptor.accept() {
            Ok(Some(accepted)) => break accepted,
            Ok(None) if hello.len() < unread => {}
            Ok(None) => return Err(GreetingError::NoHello),
            Err((error, _)) => return Err(GreetingError::Hello(error)),
        }
    };
    let client = accepted.client_hello();
    if !client.alpn().is_some_and(|mut offered| offered.any(|alpn| alpn == ALPN_MESH)) {
        return Err(GreetingError::Alpn);
    }
    let sni = client.server_name().ok_or(GreetingError::NoSni)?.to_owned();
    Ok((accepted, sni))
}

fn shown(text: &str) -> String {
    text.chars().take(254).collect()
}

#[cfg(test)]
mod tests;
