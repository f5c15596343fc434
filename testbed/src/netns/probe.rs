//! Round trips of UDP packets between two namespaces: what the emulated WAN is really like at the moment.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::time::Instant;

use super::{Site, device::within};

/// Bytes of IPv6 and UDP headers: what a payload must leave free.
const HEADERS: usize = 48;
/// First bytes of a payload that ends the far side.
const END: u64 = u64::MAX;

/// Sends `count` packets of `bytes` bytes each (headers included, 64 at least) from one site to the other's IPv4 or IPv6
/// address, one after the other, and waits for each one's echo at most for `limit`. `None`: it did not come back.
///
/// # Errors
/// A namespace cannot be entered.
pub fn round_trips(
    (from, to): (&Site, &Site),
    six: bool,
    count: u64,
    bytes: usize,
    limit: Duration,
) -> Result<Vec<Option<Duration>>> {
    let address = |site: &Site| if six { IpAddr::V6(site.ipv6) } else { IpAddr::V4(site.ipv4) };
    let bind = |site: &Site| {
        let at = SocketAddr::from((address(site), 0));
        within(&site.namespace, move || Ok(UdpSocket::bind(at)?))
    };
    let (near, far) = (bind(from)?, bind(to)?);
    let stop = within(&to.namespace, move || Ok(UdpSocket::bind(SocketAddr::from((address_any(six), 0)))?))?;
    let target = far.local_addr()?;
    let echo = thread::spawn(move || echo(&far));
    let payload = bytes.max(64) - if six { HEADERS } else { HEADERS - 20 };
    let told = (0..count).map(|number| round_trip(&near, target, number, payload, limit)).collect();
    stop.send_to(&END.to_be_bytes(), target).context("ending the echo")?;
    match echo.join() {
        Ok(ended) => ended.context("the echo")?,
        Err(_) => bail!("the echo panicked"),
    }
    told
}

fn address_any(six: bool) -> IpAddr {
    if six { std::net::Ipv6Addr::UNSPECIFIED.into() } else { std::net::Ipv4Addr::UNSPECIFIED.into() }
}

fn round_trip(
    near: &UdpSocket,
    target: SocketAddr,
    number: u64,
    payload: usize,
    limit: Duration,
) -> Result<Option<Duration>> {
    let mut packet = vec![0; payload];
    packet.iter_mut().zip(number.to_be_bytes()).for_each(|(byte, of_number)| *byte = of_number);
    let started = Instant::now();
    near.send_to(&packet, target)?;
    loop {
        let left = limit.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        near.set_read_timeout(Some(left))?;
        match near.recv_from(&mut packet) {
            // One that is late, or a duplicate, is not the one that we wait for.
            Ok(_) if packet.get(..8) == Some(&number.to_be_bytes()[..]) => return Ok(Some(started.elapsed())),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Ok(None);
            }
            Err(error) => return Err(error).context("waiting for the echo"),
        }
    }
}

fn echo(far: &UdpSocket) -> io::Result<()> {
    let mut packet = vec![0; super::packet::MTU];
    loop {
        let (length, client) = far.recv_from(&mut packet)?;
        let got = packet.get(..length).unwrap_or_default();
        if got == END.to_be_bytes() {
            return Ok(());
        }
        far.send_to(got, client)?;
    }
}
