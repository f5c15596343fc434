//! What authorization gives: the only things that let a stream be dialled.
//!
//! Neither can be made outside this crate:
//!
//! ```compile_fail,E0451
//! let permit = federation_model::Permit { source: unreachable!(), service: unreachable!(), rule: unreachable!(), deadline: unreachable!(), policy: 0 };
//! ```
//!
//! ```compile_fail,E0451
//! let passage = federation_model::Passage { source: unreachable!(), service: unreachable!(), rule: unreachable!(), deadline: unreachable!(), policy: 0 };
//! ```
//!
//! ```compile_fail,E0451
//! let peer = federation_model::VerifiedPeer { id: unreachable!(), proof: unreachable!(), issuer: unreachable!(), leaf: unreachable!(), not_after: unreachable!() };
//! ```

use crate::{RecordId, ServiceId, SpiffeId, Timestamp};

/// Leave for one identity to reach one service, judged where its mTLS ends.
///
/// Needs a peer proved by `Tls` or `Own`.
#[derive(Clone, Debug)]
pub struct Permit {
    pub(crate) source: SpiffeId,
    pub(crate) service: ServiceId,
    pub(crate) rule: RecordId,
    pub(crate) deadline: Timestamp,
    pub(crate) policy: u64,
}

/// Leave for sealed bytes of one identity to pass on toward one service.
///
/// Needs a peer proved by `Signed`, and when it comes from another member, that member's `Session` too.
#[derive(Clone, Debug)]
pub struct Passage {
    pub(crate) source: SpiffeId,
    pub(crate) service: ServiceId,
    pub(crate) rule: RecordId,
    pub(crate) deadline: Timestamp,
    pub(crate) policy: u64,
}

macro_rules! accessors {
    ($name:ident) => {
        impl $name {
            pub fn source(&self) -> &SpiffeId {
                &self.source
            }

            pub fn service(&self) -> &ServiceId {
                &self.service
            }

            /// The allow that decided.
            pub fn rule(&self) -> &RecordId {
                &self.rule
            }

            /// When the credential it stands on ends.
            pub fn deadline(&self) -> Timestamp {
                self.deadline
            }

            /// The snapshot revision under which it was given.
            pub fn policy(&self) -> u64 {
                self.policy
            }
        }
    };
}

accessors!(Permit);
accessors!(Passage);
