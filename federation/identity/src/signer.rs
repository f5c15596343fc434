//! The signer apart: the process that holds a cluster's private keys, and how it is asked.
//!
//! In: one end of a socket pair ([`channel`]) for each side. Out: [`RemoteSigner`], which an edge uses like any other
//! [`Signer`](crate::Signer), and [`Server`], which answers a closed list of [`Verb`]s at a bounded rate. The keys are
//! made, sealed and opened in the signer alone; what goes over the socket of them is sealed or public.
//! Never: opens a socket or a file, starts or confines a process; the programs do that.
//!
//! The pair is of type SOCK_SEQPACKET, so that a message is whole or not there at all: either process may die at any
//! instant, and its successor takes up the same end. Requests are numbered from a random number on; an answer to
//! nobody's request is dropped. A request may come twice, since one that is not answered is sent again: no verb does
//! harm by that.

mod client;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod keys;
mod server;
#[cfg(test)]
mod tests;
mod wire;

use std::{fmt, io, os::fd::OwnedFd, time::Duration};

use nix::{
    sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt},
    time::{ClockId, clock_gettime},
};

pub use client::{DerivedKeys, RemoteSigner};
pub use server::Server;

/// Most bytes of a request or an answer.
pub const MESSAGE_BYTES_MAX: usize = 128 * 1024;
/// Longest wait for an answer.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// Longest wait for the first answers, while the signer's process starts.
pub const START_LIMIT: Duration = Duration::from_secs(10);

/// What a signer can be asked for. There is nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verb {
    /// The keys that an edge itself needs, derived from the key-encryption key.
    Start,
    /// New keys for the cluster, given back sealed.
    Make,
    /// Takes up sealed keys.
    Open,
    /// An SVID.
    SignSvid,
    /// A signature over a record.
    SignRecord,
    /// A signature over a receipt.
    SignReceipt,
    /// Opens what another cluster sealed to this one.
    Unseal,
    /// Nothing but an answer.
    Ping,
    /// Sealed keys in, the same after a step of a rotation out; they are taken up by opening them.
    Rotate,
    /// A signature over a backup.
    SignBackup,
}

impl Verb {
    /// Every verb, in the order of its number.
    pub const ALL: [Self; 10] = [
        Self::Start,
        Self::Make,
        Self::Open,
        Self::SignSvid,
        Self::SignRecord,
        Self::SignReceipt,
        Self::Unseal,
        Self::Ping,
        Self::Rotate,
        Self::SignBackup,
    ];

    /// Short fixed word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Make => "make",
            Self::Open => "open",
            Self::SignSvid => "sign_svid",
            Self::SignRecord => "sign_record",
            Self::SignReceipt => "sign_receipt",
            Self::Unseal => "unseal",
            Self::Ping => "ping",
            Self::Rotate => "rotate",
            Self::SignBackup => "sign_backup",
        }
    }

    /// How often it is answered in a second on average. An edge stays far below: it makes, opens and starts once in
    /// its life, its disk takes fewer records than it may sign, and 100,000 workloads with SVIDs of one hour renew 56
    /// in a second.
    pub const fn per_second(self) -> u32 {
        match self {
            Self::Start | Self::Make | Self::Open | Self::Rotate | Self::SignBackup => 5,
            Self::SignSvid | Self::SignReceipt | Self::Unseal => 1_000,
            Self::SignRecord => 20_000,
            Self::Ping => 100,
        }
    }

    /// How many are answered at once after a pause: four seconds' worth.
    pub const fn burst(self) -> u32 {
        4 * self.per_second()
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a signer did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignerError {
    #[error("the signer does not answer; it is started again if it died: try again in a second")]
    Silent,
    #[error("the signer's socket is closed: the gateway is ending")]
    Gone,
    #[error("the signer answers at most {} {verb} requests a second: try again in a second", verb.per_second())]
    Busy { verb: Verb },
    #[error("a request of {bytes} bytes is too long for the signer, at most 131072 are taken")]
    TooLong { bytes: usize },
    #[error("the signer holds no keys: it is opened with the cluster's sealed keys first")]
    Locked,
    #[error("the signer's answer is none to this request: are both of one version?")]
    Unreadable,
    #[error("the signer refuses: {0}")]
    Refused(String),
}

impl SignerError {
    /// Short fixed word for metrics and audit.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Silent => "signer_silent",
            Self::Gone => "signer_gone",
            Self::Busy { .. } => "signer_busy",
            Self::TooLong { .. } => "signer_too_long",
            Self::Locked => "signer_locked",
            Self::Unreadable => "signer_unreadable",
            Self::Refused(_) => "signer_refused",
        }
    }
}

/// The two ends of a signer's socket: the edge's, then the signer's. Neither is inherited by a process unless it is
/// handed over.
///
/// # Errors
/// The process may open no more files.
pub fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    let (edge, signer) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    for end in [&edge, &signer] {
        // Room for one message of the greatest length; the kernel takes less than asked where it is told to.
        setsockopt(end, sockopt::SndBuf, &(2 * MESSAGE_BYTES_MAX))?;
    }
    Ok((edge, signer))
}

/// Time since the machine started, for limits and rates.
fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}
