//! The edge gateway of a cluster, with its control plane.
//!
//! In: a configuration and a store. Out: sessions with other members, a manage API, identities and a feed for sidecars,
//! sealed connections passed on by the law. Never: holds a workload's key or its plaintext.
//!
//! It is three processes: [`run`] holds the other two, [`run_edge`] serves, [`run_signer`] has the cluster's keys and
//! no network.

mod app;
mod backend;
pub mod backup;
pub mod config;
mod confine;
mod dial;
mod drain;
mod freshness;
mod keys;
mod metrics;
mod page;
mod relays;
mod rotation;
mod signer;
mod supervise;
mod svid;

pub use app::run as run_edge;
pub use signer::run as run_signer;
pub use supervise::run;
