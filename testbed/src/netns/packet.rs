//! Addresses of the emulated WAN and whom an IP packet is for.
//!
//! Cluster number i, counted from 0, is `10.77.<i+1>.1` and `fd77::<i+1>`.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::schedule::CLUSTERS_MAX;

/// Largest IP packet that a namespace sends: its interface's MTU.
pub const MTU: usize = 1_500;

/// The cluster's IPv4 address.
pub fn ipv4(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, u8::try_from(number + 1).unwrap_or(u8::MAX), 1)
}

/// The cluster's IPv6 address.
pub fn ipv6(number: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::try_from(number + 1).unwrap_or(u16::MAX))
}

/// Number of the cluster whose address an IP packet is for. `None`: it is for nobody here (IPv6 multicast, mostly), or no
/// IP packet at all.
pub fn destination(packet: &[u8]) -> Option<usize> {
    let number = match packet.first()? >> 4 {
        4 => match packet.get(16..20)? {
            [10, 77, number, 1] => usize::from(*number),
            _ => return None,
        },
        6 => {
            let octets: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            match Ipv6Addr::from(octets).segments() {
                [0xfd77, 0, 0, 0, 0, 0, 0, number] => usize::from(number),
                _ => return None,
            }
        }
        _ => return None,
    };
    (1..=CLUSTERS_MAX).contains(&number).then(|| number - 1)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An IPv4 packet of `bytes` bytes for a cluster; the first payload byte is `mark`.
    pub(crate) fn four(to: usize, bytes: usize, mark: u8) -> Vec<u8> {
        let mut packet = vec![0; bytes.max(21)];
        packet[0] = 0x45;
        packet[16..20].copy_from_slice(&ipv4(to).octets());
        packet[20] = mark;
        packet
    }

    #[test]
    fn finds_the_cluster_of_either_address() {
        for number in [0, 1, 9, CLUSTERS_MAX - 1] {
            assert_eq!(destination(&four(number, 60, 0)), Some(number));
            let mut six = vec![0; 40];
            six[0] = 0x60;
            six[24..40].copy_from_slice(&ipv6(number).octets());
            assert_eq!(destination(&six), Some(number));
        }
    }

    #[test]
    fn knows_no_cluster_for_other_packets() {
        let mut elsewhere = four(1, 60, 0);
        elsewhere[19] = 2;
        let mut beyond = four(1, 60, 0);
        beyond[18] = 255;
        let mut zero = four(1, 60, 0);
        zero[18] = 0;
        let mut multicast = vec![0; 40];
        multicast[0] = 0x60;
        multicast[24] = 0xff;
        let arp = vec![0x00; 40];
        for packet in [elsewhere, beyond, zero, multicast, arp, vec![], vec![0x45; 19], vec![0x60; 39]] {
            assert_eq!(destination(&packet), None, "{packet:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(packet in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = destination(&packet);
        }
    }
}
