//! Worlds of two and three clusters over real QUIC on loopback, and peers that do not keep to the protocol.

mod crowd;
mod floods;
mod joining;
mod leaving;
mod membership;
mod partitions;
mod receipts;
mod refusals;
mod renewal;
mod tunnels;
mod worlds;
