//! Clusters as the federation knows them: ids, keys, and the members with what they accept.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

use crate::{ClusterName, Timestamp, TrustDomain};

/// A SHA-256 digest. Rooms that hash hand it in; the model only compares it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    pub const ZERO: Self = Self([0; 32]);
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(6).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Digest {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 64 || !text.is_ascii() {
            return Err("a digest is 64 hexadecimal digits");
        }
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            let digits = text.get(2 * index..2 * index + 2).unwrap_or_default();
            *byte = u8::from_str_radix(digits, 16).map_err(|_| "a digest is 64 hexadecimal digits")?;
        }
        Ok(Self(bytes))
    }
}

macro_rules! digest_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Digest);

        impl $name {
            pub const fn from_digest(digest: Digest) -> Self {
                Self(digest)
            }

            pub const fn digest(&self) -> &Digest {
                &self.0
            }

            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0.0
            }

            /// The first twelve digits: enough to tell members apart for a person.
            pub fn short(&self) -> String {
                self.0.to_string().chars().take(12).collect()
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = &'static str;
            fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
                bytes.try_into().map(|bytes| Self(Digest(bytes))).map_err(|_| "an id has 32 bytes")
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

digest_id!(
    /// Who a cluster is: the hash of its first root and its first replication key. Never reused, unlike its name.
    ClusterId
);
digest_id!(
    /// Which federation a record belongs to: the hash of the founding record.
    FederationId
);

/// An Ed25519 public key (RFC 8032) with which a cluster signs its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicationKey(pub [u8; 32]);

/// An X25519 public key (RFC 7748) to which others seal what only this cluster may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SealingKey(pub [u8; 32]);

/// Where an edge can be dialled: `host:port`, host being a DNS name, an IPv4 address or a bracketed IPv6 address.
///
/// Kept as text because names are resolved anew at every attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint(Box<str>);

/// Most bytes of an endpoint: a 253-byte DNS name, a colon and a port.
pub const ENDPOINT_BYTES_MAX: usize = 259;
/// Most endpoints that a member or a token may name.
pub const ENDPOINTS_MAX: usize = 8;

impl Endpoint {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Endpoint {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("endpoint {:?} is not host:port", text.chars().take(80).collect::<String>());
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let digits = port.bytes().all(|b| b.is_ascii_digit());
        let port: u16 = port.parse().map_err(|_| wrong())?;
        let plain = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-');
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let six = bracketed.is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok());
        if text.len() > ENDPOINT_BYTES_MAX || port == 0 || !digits || !(plain || six) {
            return Err(wrong());
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whose rules about this cluster's services count here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Accept {
    /// A lawmaker's rules count in full.
    #[default]
    Federation,
    /// Rules of others can only restrict.
    Own,
}

/// Who decides whether traffic with a new member may begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Approval {
    /// An admission by any member is enough.
    #[default]
    Auto,
    /// An operator of this cluster, for each member that it did not admit itself and that did not admit it.
    Manual,
}

/// For whom an edge carries tunnels between two others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Relay {
    #[default]
    Nobody,
    /// For every two members.
    Members,
}

/// How a member stands, as one cluster sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberState {
    #[default]
    Active,
    /// Admitted, but this cluster approves by hand and has not yet.
    Held,
    /// This cluster shut it out for itself.
    Blocked,
    /// A lawmaker evicted it, not finally: out, unless a cluster approves it for itself.
    Suspended,
    /// Out for good; its name and trust domain are free.
    Evicted,
    /// It left by itself; its name and trust domain are free.
    Left,
}

impl MemberState {
    /// Short fixed word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Held => "held",
            Self::Blocked => "blocked",
            Self::Suspended => "suspended",
            Self::Evicted => "evicted",
            Self::Left => "left",
        }
    }

    /// Whether its bundle, its services and its sessions are used.
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Active)
    }

    /// Whether the federation put it out, or it went: its allows are void.
    pub const fn is_out(self) -> bool {
        matches!(self, Self::Suspended | Self::Evicted | Self::Left)
    }

    /// Whether it is out for good.
    pub const fn is_gone(self) -> bool {
        matches!(self, Self::Evicted | Self::Left)
    }
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A cluster that was admitted to the federation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: ClusterId,
    pub name: ClusterName,
    pub trust_domain: TrustDomain,
    /// DER of the root that the admission names (the model computes no digest; identity makes one where it needs it).
    pub root: Arc<[u8]>,
    pub replication_key: ReplicationKey,
    pub sealing_key: SealingKey,
    /// Who signed the admission; the member itself for the founder.
    pub sponsor: ClusterId,
    pub admitted_at: Timestamp,
    /// Whether it makes law, or did when it was put out: its denies about others' services stand.
    pub lawmaker: bool,
    pub state: MemberState,
    /// Lawmakers whose evictions of it count, in order of id.
    pub evicted_by: Vec<ClusterId>,
    pub accept: Accept,
    pub approval: Approval,
    pub relay: Relay,
    /// Where this member's edge accepts sessions; empty for a member that only dials.
    pub endpoints: Vec<Endpoint>,
}

/// Every member by id; by name and by trust domain those that are not gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    by_id: BTreeMap<ClusterId, Member>,
    by_name: BTreeMap<ClusterName, ClusterId>,
    by_trust_domain: BTreeMap<TrustDomain, ClusterId>,
}

impl Members {
    /// Adds a member unless its name or trust domain is another's: the first that was accepted stays pinned. One that
    /// is gone holds neither.
    ///
    /// Returns whether it was added or was there already under the same id.
    pub fn insert(&mut self, member: Member) -> bool {
        if member.state.is_gone() {
            self.by_id.insert(member.id, member);
            return true;
        }
        let named = self.by_name.get(&member.name).is_some_and(|id| *id != member.id);
        let rooted = self.by_trust_domain.get(&member.trust_domain).is_some_and(|id| *id != member.id);
        let renamed = self
            .by_id
            .get(&member.id)
            .is_some_and(|held| held.name != member.name || held.trust_domain != member.trust_domain);
        if named || rooted || renamed {
            return false;
        }
        self.by_name.insert(member.name.clone(), member.id);
        self.by_trust_domain.insert(member.trust_domain.clone(), member.id);
        self.by_id.insert(member.id, member);
        true
    }

    pub fn get(&self, id: &ClusterId) -> Option<&Member> {
        self.by_id.get(id)
    }

    pub fn get_mut(&mut self, id: &ClusterId) -> Option<&mut Member> {
        self.by_id.get_mut(id)
    }

    pub fn by_name(&self, name: &ClusterName) -> Option<&Member> {
        self.by_name.get(name).and_then(|id| self.by_id.get(id))
    }

    pub fn by_trust_domain(&self, domain: &TrustDomain) -> Option<&Member> {
        self.by_trust_domain.get(domain).and_then(|id| self.by_id.get(id))
    }

    /// In order of id, those that are gone included.
    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.by_id.values()
    }

    /// The members that are not gone, in order of id.
    pub fn present(&self) -> impl Iterator<Item = &Member> {
        self.iter().filter(|member| !member.state.is_gone())
    }

    /// Number of [`Members::present`].
    pub fn len(&self) -> usize {
        self.present().count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a session, a bundle or a service of this cluster may be used.
    pub fn is_active(&self, id: &ClusterId) -> bool {
        self.get(id).is_some_and(|member| member.state.is_active())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, member};

    #[test]
    fn endpoints_are_host_and_port() {
        for good in ["east.example:7000", "10.0.0.1:1", "[::1]:65535", "[2001:db8::7]:443", "localhost:80"] {
            assert_eq!(good.parse::<Endpoint>().expect(good).to_string(), good);
        }
    }

    #[test]
    fn what_is_no_endpoint_is_refused() {
        let long = format!("{}:1", "a".repeat(300));
        for bad in [
            "",
            ":",
            "host",
            "host:",
            ":80",
            "host:0",
            "host:65536",
            "host:-1",
            "host:http",
            "::1:80",
            "[::1]",
            "[::1:80",
            "[host]:80",
            "ho st:80",
            "host/:80",
            "user@host:80",
            "héte:80",
            "host:80 ",
            "[]:80",
            // Rust reads a plus sign as part of a number; nobody else's URL does.
            "host:+80",
            "[[::1]]:80",
            "[::1]]:80",
            &long,
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn digests_are_written_and_read_in_hexadecimal() {
        let digest = Digest(std::array::from_fn(|at| at as u8));
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert!(digest.to_string().starts_with("000102"));
        for bad in ["", "00", &"g".repeat(64), &"0".repeat(63), &"0".repeat(65), &"é".repeat(32)] {
            assert!(bad.parse::<Digest>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ids_have_thirty_two_bytes() {
        assert!(ClusterId::try_from([0; 32].as_slice()).is_ok());
        for bytes in [0, 31, 33] {
            assert!(ClusterId::try_from(vec![0; bytes].as_slice()).is_err());
        }
        assert_eq!(cluster(0).short(), "010101010101");
    }

    #[test]
    fn the_first_member_of_a_name_or_trust_domain_stays() {
        let mut members = Members::default();
        assert!(members.insert(member(0, true, Accept::Own)));
        let mut same_name = member(1, false, Accept::Own);
        same_name.name = "east".parse().expect("name");
        let mut same_domain = member(1, false, Accept::Own);
        same_domain.trust_domain = member(0, true, Accept::Own).trust_domain;
        let mut renamed = member(0, true, Accept::Own);
        renamed.name = "other".parse().expect("name");
        let mut moved = member(0, true, Accept::Own);
        moved.trust_domain = "other".parse().expect("trust domain");
        for refused in [same_name, same_domain, renamed, moved] {
            assert!(!members.insert(refused));
        }
        assert!(members.insert(member(0, false, Accept::Federation)), "the same again may change its standing");
        assert_eq!(members.len(), 1);
        let east = members.by_name(&"east".parse().expect("name")).expect("east");
        assert_eq!((east.id, east.lawmaker), (cluster(0), false));
        assert_eq!(members.by_trust_domain(&east.trust_domain).map(|member| member.id), Some(cluster(0)));
    }
}
