//! The border: generated messages, and the way from them into the model.
//!
//! In: bytes from peers, files and operators. Out: model values, or an error that names the field.
//! Never: stores, TLS, signatures. Generated types stop here, in `gateway/api` and in `federation/link`'s wire.

pub mod convert;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;

/// Generated code, nested as the packages are: it refers to itself by `super`.
#[allow(unreachable_pub, reason = "generated items are public; what leaves the crate is re-exported below")]
mod hanse {
    pub mod record {
        pub mod v1 {
            tonic::include_proto!("hanse.record.v1");
        }
    }
    pub mod federation {
        pub mod v1 {
            tonic::include_proto!("hanse.federation.v1");
        }
    }
    pub mod token {
        pub mod v1 {
            tonic::include_proto!("hanse.token.v1");
        }
    }
    pub mod workload {
        pub mod v1 {
            tonic::include_proto!("hanse.workload.v1");
        }
    }
    pub mod manage {
        pub mod v1 {
            tonic::include_proto!("hanse.manage.v1");
        }
    }
    pub mod store {
        pub mod v1 {
            tonic::include_proto!("hanse.store.v1");
        }
    }
}

/// Frames between edges (`hanse/federation.proto`).
pub use hanse::federation::v1 as federation;
/// Operator and gateway (`hanse/manage.proto`).
pub use hanse::manage::v1 as manage;
/// Records and envelopes (`hanse/record.proto`).
pub use hanse::record::v1 as record;
/// Rows of the store (`hanse/store.proto`).
pub use hanse::store::v1 as store;
/// Token texts (`hanse/token.proto`).
pub use hanse::token::v1 as token;
/// Sidecar and edge (`hanse/workload.proto`).
pub use hanse::workload::v1 as workload;
