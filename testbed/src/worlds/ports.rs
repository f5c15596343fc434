//! Ports that stay free until a child process binds them.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Result, bail};

/// Below the range from which Linux takes the near ends of outgoing connections (`ip_local_port_range`), so that no dial
/// of another test can take a port between our look and the child's bind.
const FIRST: u32 = 12_000;
const COUNT: u32 = 20_000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// An address on loopback that is free for TCP and UDP, and that this process gives out once.
pub(super) fn free() -> Result<SocketAddr> {
    // Two test executables that run at the same time start far from each other.
    let start = std::process::id().wrapping_mul(499);
    for _ in 0..COUNT {
        let offset = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + offset)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no port between {FIRST} and {} is free for both TCP and UDP", FIRST + COUNT)
}
