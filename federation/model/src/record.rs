//! Records: what clusters write, sign and relay.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use crate::{
    Accept, AccountRef, Approval, ClusterId, ClusterName, Digest, Endpoint, FederationId, Head, Intention,
    IntentionKey, NamespaceName, Relay, ReplicationKey, Revocation, SealingKey, ServiceName, Staleness, Timestamp,
    TrustBundle, TrustDomain,
};

/// Longest signed envelope in bytes.
pub const RECORD_BYTES_MAX: usize = 64 * 1024;
/// Most records that one write may replace.
pub const REPLACES_MAX: usize = 256;

/// Who may read a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Audience {
    /// The public log: members, bundles, intentions. Every member reads the law.
    Law,
    /// Services exported to all members.
    All,
    /// Services shown to one member. A cluster's own id: services not exported, which never leave it.
    Member(ClusterId),
}

/// A record's place: unique unless its writer equivocates, which the digest then shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId {
    pub writer: ClusterId,
    pub audience: Audience,
    pub epoch: u64,
    pub seq: u64,
    pub digest: Digest,
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let audience = match self.audience {
            Audience::Law => "law".to_owned(),
            Audience::All => "all".to_owned(),
            Audience::Member(id) => id.short(),
        };
        write!(f, "{}/{audience}/{}.{}", self.writer.short(), self.epoch, self.seq)
    }
}

/// Where the next record of a log goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub epoch: u64,
    pub seq: u64,
    /// Digest of the record before it in the same epoch; zero for the first.
    pub previous: Digest,
}

/// What a cluster says of itself when it founds or joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Hash of root and first replication key; whoever checks the signature recomputes it.
    pub id: ClusterId,
    pub name: ClusterName,
    pub trust_domain: TrustDomain,
    /// DER of its root certificate.
    pub root: Vec<u8>,
    pub replication_key: ReplicationKey,
    pub sealing_key: SealingKey,
}

/// The sponsor's word that a candidate is a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    pub candidate: Candidate,
    /// Whether it may make rules about others' services.
    pub lawmaker: bool,
}

/// What a member says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberTerms {
    pub accept: Accept,
    /// Who decides there whether traffic with a new member may begin.
    pub approval: Approval,
    /// Whether it carries tunnels between two others.
    pub relay: Relay,
    /// Where its edge accepts sessions; empty if it only dials.
    pub endpoints: Vec<Endpoint>,
}

/// A lawmaker's word that a member is out; written by a member about itself, that it leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    pub cluster: ClusterId,
    /// How far the writer had the member's public log, by epoch, at most [`crate::EPOCHS_MAX`]: what of that log counts
    /// from then on. Empty when a member leaves: all before that record counts.
    pub heads: BTreeMap<u64, Head>,
}

/// What this cluster decided about a member for itself alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stance {
    /// Traffic with it may begin, and goes on despite the evictions that these lawmakers signed, unless it is final.
    Approved { despite: BTreeSet<ClusterId> },
    /// No session, no traffic, its services hidden.
    Blocked,
}

/// Most evictions that an approval may name.
pub const DESPITE_MAX: usize = 256;

/// A service as its owner tells it to an audience.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    pub service: ServiceName,
    pub namespace: NamespaceName,
    pub port: u16,
    pub accounts: Vec<AccountRef>,
    pub staleness: Staleness,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// First record of a federation, by its founder, who is a lawmaker. Its digest is the federation's id.
    Founding(Candidate),
    Admission(Admission),
    Terms(MemberTerms),
    Lawmaker {
        cluster: ClusterId,
        on: bool,
    },
    Bundle(TrustBundle),
    Intention(Intention),
    Eviction(Eviction),
    /// Only in the log that never leaves its writer (`Audience::Member` of its own id).
    Stance {
        cluster: ClusterId,
        stance: Stance,
    },
    /// One key of the writer's own trust domain is believed no more.
    Revocation(Revocation),
    Service(Export),
    /// The service is no longer shown to this audience.
    ServiceGone {
        service: ServiceName,
        namespace: NamespaceName,
    },
    /// A kind that this version does not know. Kept, forwarded; a critical one denies its writer's own services and
    /// accounts (its scope cannot be read).
    Unknown {
        kind: u32,
        critical: bool,
    },
}

/// What a record is about: two records of one key may replace each other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKey {
    /// Per (member, writer).
    Admission {
        cluster: ClusterId,
        writer: ClusterId,
    },
    Terms(ClusterId),
    Lawmaker {
        cluster: ClusterId,
        writer: ClusterId,
    },
    Bundle(ClusterId),
    /// Per (member, writer).
    Eviction {
        cluster: ClusterId,
        writer: ClusterId,
    },
    /// Per (member, writer).
    Stance {
        cluster: ClusterId,
        writer: ClusterId,
    },
    /// Per key; each stands for itself.
    Revocation {
        writer: ClusterId,
        key: Digest,
    },
    /// Many writers.
    Intention(IntentionKey),
    Service {
        writer: ClusterId,
        audience: Audience,
        namespace: NamespaceName,
        service: ServiceName,
    },
    Unknown {
        writer: ClusterId,
        kind: u32,
        digest: Digest,
    },
}

/// A record as its writer signed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The federation it belongs to; zero in a founding record, whose digest becomes the id.
    pub federation: FederationId,
    pub writer: ClusterId,
    pub audience: Audience,
    pub epoch: u64,
    /// From 1, without gaps within an epoch.
    pub seq: u64,
    /// Digest of the record before it in this epoch; zero for the first.
    pub previous: Digest,
    /// The records that this one takes the place of, at most [`REPLACES_MAX`].
    pub replaces: Vec<RecordId>,
    /// The operator who wrote it, for people; at most 256 bytes.
    pub author: String,
    /// When, by the writer's clock: shown, never used to order.
    pub written_at: Timestamp,
    pub body: Body,
}

/// A value whose signature was checked, with the exact bytes that were signed.
///
/// Made by `federation/identity` alone. The raw bytes are what is stored and forwarded.
#[derive(Clone, Debug)]
pub struct Authentic<T> {
    /// Shared, so that a copy costs two counters whatever the value holds.
    value: Arc<T>,
    raw: Arc<[u8]>,
    digest: Digest,
}

impl<T> Authentic<T> {
    /// Asserts that `raw` was signed by the writer and says `value`, and that `digest` is the SHA-256 of its signed
    /// part: called by `federation/identity` and nowhere else (a test holds this).
    pub fn assertion(value: T, raw: Arc<[u8]>, digest: Digest) -> Self {
        Self { value: Arc::new(value), raw, digest }
    }

    pub fn value(&self) -> &T {
        &self.value
    }

    /// The value, shared.
    pub(crate) fn shared(&self) -> Arc<T> {
        Arc::clone(&self.value)
    }

    /// The signed envelope, byte for byte.
    pub fn raw(&self) -> &Arc<[u8]> {
        &self.raw
    }

    pub fn digest(&self) -> Digest {
        self.digest
    }
}

impl Authentic<Record> {
    pub fn id(&self) -> RecordId {
        let Record { writer, audience, epoch, seq, .. } = self.value();
        RecordId { writer: *writer, audience: *audience, epoch: *epoch, seq: *seq, digest: self.digest }
    }

    pub fn key(&self) -> RecordKey {
        self.value().key(self.digest)
    }
}

impl Record {
    /// What it is about; `digest` is its own.
    pub(crate) fn key(&self, digest: Digest) -> RecordKey {
        self.body.key(self.writer, self.audience, digest)
    }
}

impl Body {
    /// What a record of `writer` to `audience` with this body is about. `digest` tells unknown kinds apart; any will do
    /// for the others.
    pub fn key(&self, writer: ClusterId, audience: Audience, digest: Digest) -> RecordKey {
        let service = |namespace: &NamespaceName, service: &ServiceName| RecordKey::Service {
            writer,
            audience,
            namespace: namespace.clone(),
            service: service.clone(),
        };
        match self {
            Self::Founding(candidate) => RecordKey::Admission { cluster: candidate.id, writer },
            Self::Admission(admission) => RecordKey::Admission { cluster: admission.candidate.id, writer },
            Self::Terms(_) => RecordKey::Terms(writer),
            Self::Lawmaker { cluster, .. } => RecordKey::Lawmaker { cluster: *cluster, writer },
            Self::Bundle(_) => RecordKey::Bundle(writer),
            Self::Eviction(eviction) => RecordKey::Eviction { cluster: eviction.cluster, writer },
            Self::Stance { cluster, .. } => RecordKey::Stance { cluster: *cluster, writer },
            Self::Revocation(revocation) => RecordKey::Revocation { writer, key: revocation.key },
            Self::Intention(intention) => RecordKey::Intention(intention.key.clone()),
            Self::Service(export) => service(&export.namespace, &export.service),
            Self::ServiceGone { service: name, namespace } => service(namespace, name),
            Self::Unknown { kind, .. } => RecordKey::Unknown { writer, kind: *kind, digest },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Layer, RuleState,
        testing::{Writer, cluster, export, key, members},
    };

    #[test]
    fn a_key_tells_what_may_replace_what() {
        let (mut east, founding) = Writer::found();
        assert_eq!(founding.key(), RecordKey::Admission { cluster: cluster(0), writer: cluster(0) });
        assert_eq!(east.admit(1, false).key(), RecordKey::Admission { cluster: cluster(1), writer: cluster(0) });
        assert_eq!(east.terms(Accept::Own).key(), RecordKey::Terms(cluster(0)));
        let rule = key("web.shop -> *", Layer::Rule, &members());
        assert_eq!(east.rule(&rule, RuleState::Deleted, &[]).key(), RecordKey::Intention(rule));
        let shown = east.write(Audience::All, export("a.b", 1), &[]).key();
        let other_port = east.write(Audience::All, export("a.b", 2), &[]).key();
        let elsewhere = east.write(Audience::Member(cluster(1)), export("a.b", 1), &[]).key();
        assert_eq!(shown, other_port);
        assert_ne!(shown, elsewhere);
        let gone = Body::ServiceGone { service: "a".parse().expect("name"), namespace: "b".parse().expect("name") };
        assert_eq!(east.write(Audience::All, gone, &[]).key(), shown);
        let unknown = |writer: &mut Writer| writer.law(Body::Unknown { kind: 9, critical: true }).key();
        assert_ne!(unknown(&mut east), unknown(&mut east), "what is unknown replaces nothing by its key");
    }

    #[test]
    fn an_id_is_shown_by_writer_log_and_place() {
        let (mut east, founding) = Writer::found();
        assert_eq!(founding.id().to_string(), "010101010101/law/1.1");
        assert_eq!(east.write(Audience::All, export("a.b", 1), &[]).id().to_string(), "010101010101/all/1.1");
    }

    #[test]
    fn a_copy_shares_its_value() {
        let (_, founding) = Writer::found();
        assert!(std::ptr::eq(founding.value(), founding.clone().value()));
    }
}
