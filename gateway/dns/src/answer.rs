//! What the mesh DNS answers to one question, and why.
//!
//! In: a snapshot, the addresses, a name and a type. Out: an [`Answer`]. Never: bytes of a message; `wire` makes those.

use std::{fmt, net::Ipv4Addr, str::FromStr, time::Duration};

use federation_model::{
    Ages, ClusterName, MESH_ZONE, NamespaceName, Service, ServiceRef, Snapshot, Stale, Staleness, WhenStale,
};

use crate::Addresses;

/// Longest time for which an address may be kept. Short, so that a withdrawn service is noticed; of another cluster's
/// service never past its lease.
pub const TTL: Duration = Duration::from_secs(5);
/// How long the absence of a name may be kept (RFC 2308, 5). Shorter, so that a new export is seen soon.
pub const NEGATIVE_TTL: Duration = Duration::from_secs(2);

/// What the mesh DNS says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub rcode: Rcode,
    /// The answer section.
    pub records: Vec<Record>,
    /// The authority section: the zone's SOA where a name or a type is absent (RFC 2308, 2), else nothing.
    pub authority: Vec<Record>,
    pub why: Why,
    /// How old the data is on which the answer rests, if it is about another cluster's service.
    pub data: Option<DataAge>,
}

/// The age of an owner's data, and what its service makes of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataAge {
    /// `None` if the owner was never heard since this process started.
    pub age: Option<Duration>,
    pub staleness: Staleness,
}

impl DataAge {
    /// Whether the lease is over.
    pub fn is_over(&self) -> bool {
        self.staleness.is_over(self.age)
    }
}

impl fmt::Display for DataAge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Staleness { when, lease } = self.staleness;
        match self.age {
            Some(age) => write!(f, "what its owner last said is {} s old", age.as_secs())?,
            None => f.write_str("its owner was not heard since this process started")?,
        }
        let over = if self.is_over() { "past" } else { "within" };
        write!(f, ", {over} the lease of {} s", lease.as_secs())?;
        match when {
            _ if !self.is_over() => Ok(()),
            WhenStale::Keep => f.write_str(": the last rules known stay in force (keep)"),
            WhenStale::PreferLocal => f.write_str(": a service of that name in this cluster stands in (prefer-local)"),
            WhenStale::Deny => f.write_str(": nobody reaches it until its owner is heard again (deny)"),
        }
    }
}

/// One record. Its class is IN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Owner in lower case, without a final dot. On the wire it has the case of the question.
    pub name: String,
    pub ttl: Duration,
    pub data: Data,
}

/// What a record holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Data {
    A(Ipv4Addr),
    /// The zone itself: a zone served on loopback has no name server of another name (RFC 6303, 3).
    Ns,
    /// The zone's; all but its serial is fixed. The serial is the snapshot's revision, modulo 2³².
    Soa {
        serial: u32,
    },
}

impl fmt::Display for Data {
    /// In the form of a zone file, type first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::A(address) => write!(f, "A {address}"),
            Self::Ns => write!(f, "NS {MESH_ZONE}."),
            Self::Soa { serial } => {
                let [refresh, retry, expire] = SOA_TIMERS;
                let minimum = NEGATIVE_TTL.as_secs();
                write!(f, "SOA {MESH_ZONE}. . {serial} {refresh} {retry} {expire} {minimum}")
            }
        }
    }
}

/// Refresh, retry and expire in seconds (RFC 6303, 3). Nobody transfers this zone, so nobody uses them.
pub(crate) const SOA_TIMERS: [i32; 3] = [3600, 1200, 604_800];

/// Response codes that are used here (RFC 1035, 4.1.1; RFC 6891, 6.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rcode {
    NoError,
    FormErr,
    ServFail,
    NxDomain,
    NotImp,
    Refused,
    BadVers,
}

impl Rcode {
    /// The word that tools print, and the label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoError => "NOERROR",
            Self::FormErr => "FORMERR",
            Self::ServFail => "SERVFAIL",
            Self::NxDomain => "NXDOMAIN",
            Self::NotImp => "NOTIMP",
            Self::Refused => "REFUSED",
            Self::BadVers => "BADVERS",
        }
    }
}

impl fmt::Display for Rcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why an answer is what it is. `Display` is one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// The service is visible and this is its address.
    Service(ServiceRef),
    /// The service is visible, but has nothing of that type.
    NoSuchType(ServiceRef),
    /// The service is visible, but has no address yet.
    NoAddress(ServiceRef),
    /// The zone's own name.
    Apex,
    /// A cluster or namespace: the name exists because names below it do.
    Parent,
    /// The name has not the form `service.namespace.cluster.mesh.internal`.
    Form,
    /// No member has that name.
    UnknownCluster(ClusterName),
    /// The member is known; no such service of it is visible here.
    UnknownService(ServiceRef),
    /// No visible service lives in that namespace.
    UnknownNamespace(NamespaceName, ClusterName),
    /// Not `mesh.internal`: nothing is forwarded.
    OutsideZone,
    /// A zone transfer.
    Transfer,
    /// A class other than IN.
    Class,
    /// There is no snapshot yet.
    NoSnapshot,
    /// Its owner was not heard for the service's lease, whose policy is to deny.
    Stale(ServiceRef, Stale),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "service {name} is visible here and has this loopback address"),
            Self::NoSuchType(name) => {
                write!(f, "service {name} is visible here, but has only an IPv4 address (type A)")
            }
            Self::NoAddress(name) => write!(f, "service {name} is visible here, but has no loopback address yet"),
            Self::Apex => f.write_str("the zone itself has only SOA and NS"),
            Self::Parent => {
                f.write_str("the name only holds other names: ask for service.namespace.cluster.mesh.internal")
            }
            Self::Form => f.write_str("names here have the form service.namespace.cluster.mesh.internal"),
            Self::UnknownCluster(cluster) => {
                write!(f, "no member is called {cluster}; `hanse cluster list` shows them")
            }
            Self::UnknownService(name) => {
                write!(f, "no service {name} is visible here: check its name, and whether its cluster exported it")
            }
            Self::UnknownNamespace(namespace, cluster) => {
                write!(f, "no service in namespace {namespace} of {cluster} is visible here")
            }
            Self::OutsideZone => write!(f, "only names in {MESH_ZONE} are answered, and nothing is forwarded"),
            Self::Transfer => f.write_str("zone transfers are refused"),
            Self::Class => f.write_str("only class IN is answered"),
            Self::Stale(name, stale) => write!(
                f,
                "service {name} denies while its owner is not heard ({stale}): `hanse link status {}` says what is wrong",
                name.cluster
            ),
            Self::NoSnapshot => f.write_str("no snapshot of the federation is here yet"),
        }
    }
}

/// The type that a question asks for, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QueryType(pub u16);

impl QueryType {
    pub const A: Self = Self(1);
    pub const NS: Self = Self(2);
    pub const SOA: Self = Self(6);
    pub const TXT: Self = Self(16);
    pub const AAAA: Self = Self(28);
    pub const SRV: Self = Self(33);
    pub const IXFR: Self = Self(251);
    pub const AXFR: Self = Self(252);
    pub const ANY: Self = Self(255);

    const WORDS: [(Self, &'static str); 9] = [
        (Self::A, "A"),
        (Self::NS, "NS"),
        (Self::SOA, "SOA"),
        (Self::TXT, "TXT"),
        (Self::AAAA, "AAAA"),
        (Self::SRV, "SRV"),
        (Self::IXFR, "IXFR"),
        (Self::AXFR, "AXFR"),
        (Self::ANY, "ANY"),
    ];
}

/// A text that is no type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no DNS type: give A, AAAA, NS, SOA, SRV, TXT, ANY or TYPE followed by its number")]
pub struct QueryTypeError(String);

impl FromStr for QueryType {
    type Err = QueryTypeError;
    /// In any case; types without a word as `TYPE65` (RFC 3597, 5).
    fn from_str(text: &str) -> Result<Self, QueryTypeError> {
        let wrong = || QueryTypeError(text.chars().take(40).collect());
        if let Some((kind, _)) = Self::WORDS.into_iter().find(|(_, word)| word.eq_ignore_ascii_case(text)) {
            return Ok(kind);
        }
        let (prefix, number) = text.split_at_checked(4).ok_or_else(wrong)?;
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        if !prefix.eq_ignore_ascii_case("TYPE") || !digits {
            return Err(wrong());
        }
        number.parse().map(Self).map_err(|_| wrong())
    }
}

impl fmt::Display for QueryType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::WORDS.into_iter().find(|(kind, _)| kind == self) {
            Some((_, word)) => f.write_str(word),
            None => write!(f, "TYPE{}", self.0),
        }
    }
}

/// Answers a question of class IN. `name` may be in any case, with or without a final dot; `ages` says how old the data of
/// other clusters is.
pub fn answer(snapshot: &Snapshot, addresses: &Addresses, ages: &Ages, name: &str, kind: QueryType) -> Answer {
    answer_from(Some(snapshot), addresses, ages, name, kind)
}

/// [`answer`] for a process that may have no snapshot yet: then it fails, since "no such name" would be kept and wrong.
pub(crate) fn answer_from(
    snapshot: Option<&Snapshot>,
    addresses: &Addresses,
    ages: &Ages,
    name: &str,
    kind: QueryType,
) -> Answer {
    let Some(labels) = labels_in_zone(name) else { return Answer::bare(Rcode::Refused, Why::OutsideZone) };
    if matches!(kind, QueryType::AXFR | QueryType::IXFR) {
        return Answer::bare(Rcode::Refused, Why::Transfer);
    }
    let Some(snapshot) = snapshot else { return Answer::bare(Rcode::ServFail, Why::NoSnapshot) };
    let absent = |rcode, why| Answer { authority: vec![soa(snapshot, NEGATIVE_TTL)], ..Answer::bare(rcode, why) };
    match find(snapshot, addresses, &labels) {
        Found::Apex => match apex(snapshot, kind) {
            records if records.is_empty() => absent(Rcode::NoError, Why::Apex),
            records => Answer { records, ..Answer::bare(Rcode::NoError, Why::Apex) },
        },
        Found::Parent => absent(Rcode::NoError, Why::Parent),
        Found::Nothing(why) => absent(Rcode::NxDomain, why),
        Found::Service(service) => {
            let data = (service.id.cluster != snapshot.own)
                .then(|| DataAge { age: ages.of(&service.id.cluster), staleness: service.staleness });
            let name = service.name.clone();
            let answer = match data {
                // It exists, so neither "no such name" nor "no such type" would be right: a failure is what passes.
                Some(DataAge { age, staleness }) if staleness.denies(age) => {
                    Answer::bare(Rcode::ServFail, Why::Stale(name, Stale { age, lease: staleness.lease }))
                }
                // One A record is all there is, so it is the whole answer to ANY as well (RFC 8482, 4.1).
                _ if matches!(kind, QueryType::A | QueryType::ANY) => match addresses.address(&name) {
                    Some(address) => {
                        let ttl = data.map_or(TTL, |data| TTL.min(data.staleness.left(data.age)));
                        let records = vec![Record { name: name.dns(), ttl, data: Data::A(address) }];
                        Answer { records, ..Answer::bare(Rcode::NoError, Why::Service(name)) }
                    }
                    None => Answer::bare(Rcode::ServFail, Why::NoAddress(name)),
                },
                _ => absent(Rcode::NoError, Why::NoSuchType(name)),
            };
            Answer { data, ..answer }
        }
    }
}

impl Answer {
    pub(crate) fn bare(rcode: Rcode, why: Why) -> Self {
        Self { rcode, records: Vec::new(), authority: Vec::new(), why, data: None }
    }
}

enum Found<'a> {
    Apex,
    Parent,
    Service(&'a Service),
    Nothing(Why),
}

/// The labels before `mesh.internal`, first label first and in lower case; `None` for a name outside the zone.
fn labels_in_zone(name: &str) -> Option<Vec<String>> {
    let lower = name.to_ascii_lowercase();
    let rest = lower.strip_suffix('.').unwrap_or(&lower).strip_suffix(MESH_ZONE)?;
    if rest.is_empty() {
        return Some(Vec::new());
    }
    Some(rest.strip_suffix('.')?.split('.').map(str::to_owned).collect())
}

fn find<'a>(snapshot: &'a Snapshot, addresses: &Addresses, labels: &[String]) -> Found<'a> {
    let Some(last) = labels.last() else { return Found::Apex };
    let Ok(cluster) = last.parse::<ClusterName>() else { return Found::Nothing(Why::Form) };
    if snapshot.members.by_name(&cluster).is_none() {
        return Found::Nothing(Why::UnknownCluster(cluster));
    }
    match labels {
        [_] => Found::Parent,
        [namespace, _] => match namespace.parse() {
            Ok(namespace) if addresses.has_namespace(&cluster, &namespace) => Found::Parent,
            Ok(namespace) => Found::Nothing(Why::UnknownNamespace(namespace, cluster)),
            Err(_) => Found::Nothing(Why::Form),
        },
        [service, namespace, _] => match (service.parse(), namespace.parse()) {
            (Ok(service), Ok(namespace)) => {
                let name = ServiceRef { service, namespace, cluster };
                match snapshot.catalog.by_name(&name) {
                    Some(service) => Found::Service(service),
                    None => Found::Nothing(Why::UnknownService(name)),
                }
            }
            _ => Found::Nothing(Why::Form),
        },
        _ => Found::Nothing(Why::Form),
    }
}

fn apex(snapshot: &Snapshot, kind: QueryType) -> Vec<Record> {
    let ns = Record { name: MESH_ZONE.into(), ttl: TTL, data: Data::Ns };
    match kind {
        QueryType::SOA => vec![soa(snapshot, TTL)],
        QueryType::NS => vec![ns],
        QueryType::ANY => vec![soa(snapshot, TTL), ns],
        _ => Vec::new(),
    }
}

fn soa(snapshot: &Snapshot, ttl: Duration) -> Record {
    // Serial numbers live in a circle of 2³² (RFC 1982), so the cut is right.
    let serial = snapshot.revision as u32;
    Record { name: MESH_ZONE.into(), ttl, data: Data::Soa { serial } }
}

#[cfg(test)]
mod tests;
