//! The mesh DNS: names of services become loopback addresses on which the sidecar listens.
//!
//! In: a [`Snapshot`](federation_model::Snapshot), the [`Addresses`] that this process gave to services, and queries
//! from whoever can reach the sockets. Out: answers for `mesh.internal`, each with the reason for it.
//! Never: forwards a query, answers for another zone, or takes an address from a peer: every A record comes from
//! [`Addresses`], so no member can make a name resolve into somebody's network.
//!
//! Messages are read and written by hickory-proto; the two loops around it are ours. hickory-server bounds neither its
//! TCP connections nor the tasks it spawns for datagrams, and it logs the name of every query at info.

mod addresses;
mod answer;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod metrics;
mod server;
#[cfg(any(test, feature = "fuzzing"))]
mod testing;
mod wire;

pub use addresses::{ADDRESSES_MAX, Addresses, Changes};
pub use answer::{Answer, Data, DataAge, NEGATIVE_TTL, QueryType, QueryTypeError, Rcode, Record, TTL, Why, answer};
pub use server::{Inputs, TCP_CONNECTIONS_MAX, TCP_IDLE, TCP_LIFETIME, serve};
pub use wire::{REQUEST_BYTES_MAX, UDP_BYTES_MAX};
