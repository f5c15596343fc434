//! The edge gateway of a cluster, with its control plane.
//!
//! In: a configuration and a store. Out: sessions with other members, a manage API, identities and a feed for sidecars,
//! sealed connections passed on by the law. Never: holds a workload's key or its plaintext.

mod app;
mod backend;
pub mod config;
mod dial;
mod keys;
mod page;
mod relays;
mod svid;

pub use app::run;
