//! The messages between an edge and its signer, in protobuf. Both are one executable, so there is no negotiation; still
//! a changed shape is a new field, because an executable may be replaced between two starts of its parts.

use federation_model::{ReplicationKey, SealingKey, Timestamp};
use prost::Message;
use zeroize::Zeroizing;

use super::Verb;
use crate::{
    Authority, Issued, RotationStep,
    authority::{Above, Roots},
};

/// What is asked, and the number by which the answer is found.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct Request {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(oneof = "Ask", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11")]
    pub(super) ask: Option<Ask>,
}

/// One for each [`Verb`].
#[derive(Clone, PartialEq, prost::Oneof)]
#[prost(skip_debug)]
pub(super) enum Ask {
    #[prost(message, tag = "2")]
    Start(Nothing),
    #[prost(message, tag = "3")]
    Make(Nothing),
    /// The sealed keys.
    #[prost(bytes, tag = "4")]
    Open(Vec<u8>),
    #[prost(message, tag = "5")]
    SignSvid(SvidRequest),
    /// The serialized record.
    #[prost(bytes, tag = "6")]
    SignRecord(Vec<u8>),
    #[prost(message, tag = "7")]
    Unseal(Sealed),
    #[prost(message, tag = "8")]
    Ping(Nothing),
    /// The serialized receipt.
    #[prost(bytes, tag = "9")]
    SignReceipt(Vec<u8>),
    /// Answered by [`Answer::Made`].
    #[prost(message, tag = "10")]
    Rotate(Rotate),
    /// The digest of a backup.
    #[prost(bytes, tag = "11")]
    SignBackup(Vec<u8>),
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Nothing {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SvidRequest {
    #[prost(string, tag = "1")]
    pub(super) spiffe_id: String,
    /// PKCS #10 DER.
    #[prost(bytes, tag = "2")]
    pub(super) csr: Vec<u8>,
    #[prost(uint64, tag = "3")]
    pub(super) ttl_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Sealed {
    #[prost(bytes, tag = "1")]
    pub(super) aad: Vec<u8>,
    #[prost(bytes, tag = "2")]
    pub(super) sealed: Vec<u8>,
}

/// Sealed keys, and the step that they shall take.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Rotate {
    #[prost(bytes, tag = "1")]
    pub(super) sealed: Vec<u8>,
    #[prost(enumeration = "Step", tag = "2")]
    pub(super) step: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(super) enum Step {
    /// None of this version.
    Unknown = 0,
    Prepare = 1,
    TurnOver = 2,
    Retire = 3,
    Abandon = 4,
    Intermediate = 5,
}

impl From<RotationStep> for Step {
    fn from(step: RotationStep) -> Self {
        match step {
            RotationStep::Prepare => Self::Prepare,
            RotationStep::TurnOver => Self::TurnOver,
            RotationStep::Retire => Self::Retire,
            RotationStep::Abandon => Self::Abandon,
            RotationStep::Intermediate => Self::Intermediate,
        }
    }
}

impl Step {
    pub(super) fn known(self) -> Option<RotationStep> {
        match self {
            Self::Unknown => None,
            Self::Prepare => Some(RotationStep::Prepare),
            Self::TurnOver => Some(RotationStep::TurnOver),
            Self::Retire => Some(RotationStep::Retire),
            Self::Abandon => Some(RotationStep::Abandon),
            Self::Intermediate => Some(RotationStep::Intermediate),
        }
    }
}

/// The answer to the request of the same number.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct Reply {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(oneof = "Answer", tags = "2, 3, 4, 5, 6, 7, 8, 9")]
    pub(super) answer: Option<Answer>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
#[prost(skip_debug)]
pub(super) enum Answer {
    #[prost(message, tag = "2")]
    Started(Derived),
    #[prost(message, tag = "3")]
    Made(Made),
    #[prost(message, boxed, tag = "4")]
    Opened(Box<Public>),
    #[prost(message, tag = "5")]
    Svid(Svid),
    #[prost(bytes, tag = "6")]
    Signature(Vec<u8>),
    #[prost(bytes, tag = "7")]
    Value(Vec<u8>),
    #[prost(message, tag = "8")]
    Pong(Nothing),
    #[prost(message, tag = "9")]
    Refused(Refused),
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct Derived {
    #[prost(bytes, tag = "1")]
    pub(super) store_mac: Vec<u8>,
    #[prost(bytes, tag = "2")]
    pub(super) token_seal: Vec<u8>,
    #[prost(bytes, tag = "3")]
    pub(super) backup: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Made {
    #[prost(bytes, tag = "1")]
    pub(super) sealed: Vec<u8>,
    #[prost(message, optional, boxed, tag = "2")]
    pub(super) public: Option<Box<Public>>,
}

/// The authority; name and trust domain both sides know.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Public {
    #[prost(bytes, tag = "1")]
    pub(super) root: Vec<u8>,
    #[prost(bytes, tag = "2")]
    pub(super) intermediate: Vec<u8>,
    #[prost(bytes, tag = "3")]
    pub(super) replication_key: Vec<u8>,
    #[prost(bytes, tag = "4")]
    pub(super) sealing_key: Vec<u8>,
    /// Each empty if there is none.
    #[prost(bytes, tag = "5")]
    pub(super) first_root: Vec<u8>,
    #[prost(bytes, tag = "6")]
    pub(super) next_root: Vec<u8>,
    #[prost(bytes, tag = "7")]
    pub(super) cross: Vec<u8>,
    #[prost(bytes, tag = "8")]
    pub(super) old_root: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Svid {
    #[prost(bytes, repeated, tag = "1")]
    pub(super) chain: Vec<Vec<u8>>,
    #[prost(bytes, tag = "2")]
    pub(super) root: Vec<u8>,
    #[prost(uint64, tag = "3")]
    pub(super) not_before_ms: u64,
    #[prost(uint64, tag = "4")]
    pub(super) not_after_ms: u64,
    #[prost(bytes, tag = "5")]
    pub(super) serial: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Refused {
    #[prost(enumeration = "Why", tag = "1")]
    pub(super) why: i32,
    /// For people.
    #[prost(string, tag = "2")]
    pub(super) message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(super) enum Why {
    /// What was asked for cannot be done; the message says why.
    Denied = 0,
    /// Too often.
    Busy = 1,
    /// No keys were opened.
    Locked = 2,
    /// Not a request of this version.
    Unreadable = 3,
}

impl Ask {
    pub(super) fn verb(&self) -> Verb {
        match self {
            Self::Start(_) => Verb::Start,
            Self::Make(_) => Verb::Make,
            Self::Open(_) => Verb::Open,
            Self::SignSvid(_) => Verb::SignSvid,
            Self::SignRecord(_) => Verb::SignRecord,
            Self::SignReceipt(_) => Verb::SignReceipt,
            Self::Unseal(_) => Verb::Unseal,
            Self::Ping(_) => Verb::Ping,
            Self::Rotate(_) => Verb::Rotate,
            Self::SignBackup(_) => Verb::SignBackup,
        }
    }
}

impl Answer {
    pub(super) fn refused(why: Why, message: impl Into<String>) -> Self {
        Self::Refused(Refused { why: why.into(), message: message.into() })
    }

    /// The bytes of the reply to request `id`, wiped when dropped: they may hold a value that was unsealed.
    pub(super) fn into_reply(self, id: u64) -> Zeroizing<Vec<u8>> {
        let mut reply = Reply { id, answer: Some(self) };
        let bytes = Zeroizing::new(reply.encode_to_vec());
        match &mut reply.answer {
            Some(Self::Value(value)) => drop(Zeroizing::new(std::mem::take(value))),
            Some(Self::Started(derived)) => {
                drop(Zeroizing::new(std::mem::take(&mut derived.store_mac)));
                drop(Zeroizing::new(std::mem::take(&mut derived.token_seal)));
                drop(Zeroizing::new(std::mem::take(&mut derived.backup)));
            }
            _ => {}
        }
        bytes
    }
}

impl From<&Authority> for Public {
    fn from(authority: &Authority) -> Self {
        let (candidate, roots) = (authority.candidate(), authority.roots().clone());
        let (cross, old_root) = roots.above.map(|above| (above.cross, above.root)).unwrap_or_default();
        Self {
            root: roots.root,
            intermediate: roots.intermediate,
            replication_key: candidate.replication_key.0.to_vec(),
            sealing_key: candidate.sealing_key.0.to_vec(),
            first_root: roots.first,
            next_root: roots.next.unwrap_or_default(),
            cross,
            old_root,
        }
    }
}

impl Public {
    /// Replication and sealing key, if they have their lengths.
    pub(super) fn keys(&self) -> Option<(ReplicationKey, SealingKey)> {
        let replication = self.replication_key.as_slice().try_into().ok()?;
        let sealing = self.sealing_key.as_slice().try_into().ok()?;
        Some((ReplicationKey(replication), SealingKey(sealing)))
    }

    pub(super) fn into_roots(self) -> Roots {
        let some = |der: Vec<u8>| Some(der).filter(|der| !der.is_empty());
        let above = some(self.cross).zip(some(self.old_root));
        Roots {
            root: self.root,
            intermediate: self.intermediate,
            first: self.first_root,
            next: some(self.next_root),
            above: above.map(|(cross, root)| Above { cross, root }),
        }
    }
}

impl From<Issued> for Svid {
    fn from(issued: Issued) -> Self {
        Self {
            chain: issued.chain,
            root: issued.root,
            not_before_ms: issued.not_before.as_millis(),
            not_after_ms: issued.not_after.as_millis(),
            serial: issued.serial,
        }
    }
}

impl From<Svid> for Issued {
    fn from(svid: Svid) -> Self {
        Self {
            chain: svid.chain,
            root: svid.root,
            not_before: Timestamp::from_millis(svid.not_before_ms),
            not_after: Timestamp::from_millis(svid.not_after_ms),
            serial: svid.serial,
        }
    }
}
