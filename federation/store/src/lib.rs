//! Where a cluster keeps what it must not forget: records, tokens, its own keys (sealed).
//!
//! In: rows under keys, changed all or nothing, each change bound to what its writer believes to replace. Out: the
//! same rows, or an error; a row that was altered, lost or put back is damage and is never passed over.
//! Never: what a value means; plaintext secrets (callers seal them); a type of sled's.
//!
//! [`memory`] and [`open_sled`] pass the same battery (`contract`). Damage makes a store read-only: see [`Damage`].

mod error;
mod key;
mod memory;
mod metrics;
mod store;

#[cfg(feature = "sled")]
mod embedded;

#[cfg(any(test, feature = "contract"))]
pub mod contract;

#[cfg(feature = "fuzzing")]
pub mod fuzzing;

#[cfg(feature = "sled")]
pub use embedded::{NewStore, open_sled};
pub use error::{Damage, OpenError, StoreError};
pub use key::{Change, Expect, Key, Kind, Revision, Row, record_epoch, record_key, record_prefix};
pub use memory::memory;
pub use metrics::describe as describe_metrics;
pub use store::{APPLY_BYTES_MAX, CHANGES_MAX, NAME_BYTES_MAX, VALUE_BYTES_MAX};
pub use store::{BoxFuture, Store};
