//! What every program here needs around its work: configuration, logs, metrics, readiness, probes, signals.
//!
//! In: a file, a filter, named blockers, what a status page should say. Out: log lines, `/metrics`, `/livez`, `/readyz`,
//! a status page. Never: knows what the program does; other rooms count and log by name, and this one shows it.

pub mod config;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod metrics;
mod page;
mod readiness;
mod server;
pub mod shutdown;
mod sockets;
pub mod telemetry;

pub use page::{CELL_BYTES_MAX, ROWS_MAX, Status, StatusPage, Table};
pub use readiness::{Blocker, Readiness};
pub use server::{CONNECTION_LIFETIME, CONNECTIONS_MAX, HEADER_TIMEOUT, Inputs, serve};
pub use sockets::Sockets;
