//! Whole chains in one process: real TCP, real TLS, real certificates, a duplex where the tunnel would be.

mod attacks;
mod chain;
mod cuts;
mod leases;
mod leaving;
mod renewals;
mod socks;
pub(crate) mod world;
