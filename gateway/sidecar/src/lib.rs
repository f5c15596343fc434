//! The sidecar: carries a workload's connections, by the law that its feed brings.
//!
//! In: a configuration, an edge that enrols it, connections of its application and of its callers. Out: mutual TLS to
//! other sidecars. Never: holds a key but its own, believes an unsigned rule, or needs root.

mod ages;
mod app;
pub mod config;
mod connect;
mod dial;
mod drain;
mod feed;
mod identity;
mod loopback;
mod presence;
mod records;
mod state;

pub use app::run;
