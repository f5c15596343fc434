//! Which sockets a process has bound, as the kernel tells it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use anyhow::{Context, Result};

/// A socket that waits for others: a listening TCP socket or a bound UDP one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Bound {
    Tcp(SocketAddr),
    Udp(SocketAddr),
}

/// Every socket that process `pid` and those that it started have bound.
///
/// # Errors
/// One of them does not let its descriptors be read, and is not a signer, which nobody else may look into.
pub(crate) fn bound_by_all(pid: u32) -> Result<BTreeSet<Bound>> {
    let mut found = bound(pid)?;
    for child in children(pid)? {
        match bound(child) {
            Ok(more) => found.extend(more),
            Err(_) if verb(child).as_deref() == Some("signer") => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The processes that `pid` started and that still run.
pub(crate) fn children(pid: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(child) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // It may end while we look. Its name, in brackets, may hold anything: state and parent come after the last.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{child}/stat")) else { continue };
        let fields = stat.rsplit_once(") ").map(|(_, fields)| fields.split(' '));
        if fields.and_then(|mut fields| fields.nth(1)?.parse().ok()) == Some(pid) {
            found.push(child);
        }
    }
    Ok(found)
}

/// First argument of a process.
fn verb(pid: u32) -> Option<String> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let argument = line.split(|byte| *byte == 0).nth(1)?;
    Some(String::from_utf8_lossy(argument).into_owned())
}

/// Every socket that process `pid` has bound.
fn bound(pid: u32) -> Result<BTreeSet<Bound>> {
    let mut inodes = BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).context("the gateway's file descriptors")? {
        // A descriptor may close while we look.
        let Ok(target) = std::fs::read_link(entry?.path()) else { continue };
        let text = target.to_string_lossy();
        if let Some(inode) = text.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')) {
            inodes.insert(inode.to_owned());
        }
    }
    let mut found = BTreeSet::new();
    for (table, listening) in [("tcp", Some("0A")), ("tcp6", Some("0A")), ("udp", None), ("udp6", None)] {
        let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")) else { continue };
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (Some(local), Some(state), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9)) else {
                continue;
            };
            if !inodes.contains(*inode) || listening.is_some_and(|wanted| wanted != *state) {
                continue;
            }
            if let Some(address) = parse(local) {
                found.insert(if listening.is_some() { Bound::Tcp(address) } else { Bound::Udp(address) });
            }
        }
    }
    Ok(found)
}

/// Reads `0100007F:1F90` (IPv4) or the 32-digit form (IPv6): 32-bit words in the host's order, as the kernel prints.
fn parse(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(host.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match host.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(8 * index)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    // A wildcard is reached on loopback.
    let ip = match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_this_process_bound() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let found = bound(std::process::id()).expect("sockets");
        assert!(found.contains(&Bound::Tcp(tcp.local_addr().expect("address"))));
        assert!(found.contains(&Bound::Udp(udp.local_addr().expect("address"))));
        drop(tcp);
    }

    #[test]
    fn reads_the_kernels_addresses() {
        assert_eq!(parse("0100007F:1F90"), Some("127.0.0.1:8080".parse().expect("address")));
        assert_eq!(parse("00000000000000000000000001000000:0050"), Some("[::1]:80".parse().expect("address")));
        for bad in ["", "x", "0100007F", "0100007G:1F90", "01:1"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
