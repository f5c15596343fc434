//! Refusals: what went wrong, a fixed word for it, and what to do; and how that looks on the wire.

use std::fmt;

use federation_identity::{IssueError, SignerError};
use federation_model::{NameError, ReferenceError};
use tonic::{Code, Status, metadata::MetadataValue};

/// The metadata key that carries [`Refusal::reason`].
pub(crate) const REASON_KEY: &str = "hanse-reason";

/// Who is at fault, and so whether trying again may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request makes no sense.
    Invalid,
    /// What it names is not there.
    NotFound,
    /// It is there already, as something else.
    Exists,
    /// Whoever asks may not.
    NotPermitted,
    /// Whoever asks did not prove who they are.
    NotProved,
    /// The state of things forbids it; trying again without changing that does not help.
    State,
    /// A bound was reached.
    Exhausted,
    /// Not yet: try again.
    NotReady,
    /// A fault of ours.
    Internal,
}

impl Kind {
    const fn code(self) -> Code {
        match self {
            Self::Invalid => Code::InvalidArgument,
            Self::NotFound => Code::NotFound,
            Self::Exists => Code::AlreadyExists,
            Self::NotPermitted => Code::PermissionDenied,
            Self::NotProved => Code::Unauthenticated,
            Self::State => Code::FailedPrecondition,
            Self::Exhausted => Code::ResourceExhausted,
            Self::NotReady => Code::Unavailable,
            Self::Internal => Code::Internal,
        }
    }
}

/// Why a request was refused. `Display` says it in one line that ends in what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub kind: Kind,
    /// Short fixed word for programs: `token_expired`.
    pub reason: &'static str,
    /// Lower case, without a final stop.
    pub message: String,
}

impl Refusal {
    pub fn new(kind: Kind, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, reason, message: message.into() }
    }

    pub(crate) fn invalid(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, reason, message)
    }

    pub(crate) fn not_ready() -> Self {
        Self::new(
            Kind::NotReady,
            "no_snapshot",
            "the gateway has no readable picture of the federation yet: try again, and see `hanse status`",
        )
    }

    /// A fault of ours: the cause goes to the log, not to whoever asked.
    pub(crate) fn internal(what: &'static str, cause: &dyn fmt::Display) -> Self {
        tracing::error!(error = %cause, what, "request failed");
        Self::new(Kind::Internal, "internal", format!("{what} failed; the gateway's log says why"))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let mut status = Self::new(refusal.kind.code(), refusal.message);
        status.metadata_mut().insert(REASON_KEY, MetadataValue::from_static(refusal.reason));
        status
    }
}

impl From<ReferenceError> for Refusal {
    fn from(error: ReferenceError) -> Self {
        Self::invalid("bad_reference", error.to_string())
    }
}

impl From<NameError> for Refusal {
    fn from(error: NameError) -> Self {
        Self::invalid("bad_name", error.to_string())
    }
}

impl From<IssueError> for Refusal {
    fn from(error: IssueError) -> Self {
        match &error {
            IssueError::Csr(_) => Self::invalid(error.reason(), error.to_string()),
            IssueError::Signer(SignerError::Busy { .. }) => {
                Self::new(Kind::Exhausted, error.reason(), error.to_string())
            }
            IssueError::Signer(_) => Self::new(Kind::NotReady, error.reason(), error.to_string()),
            _ => Self::internal("signing an SVID", &error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_its_word_and_its_message_on_the_wire() {
        let status = Status::from(Refusal::new(Kind::State, "token_used", "it was used"));
        assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "it was used"));
        assert_eq!(status.metadata().get(REASON_KEY).and_then(|word| word.to_str().ok()), Some("token_used"));
    }

    #[test]
    fn a_fault_of_ours_tells_no_details() {
        let refusal = Refusal::internal("reading the store", &"/var/lib/hanse/db: bad block");
        assert!(!refusal.message.contains("bad block"), "{refusal}");
    }
}
