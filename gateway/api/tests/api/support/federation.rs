//! A federation in memory: real signatures, a real replica, real snapshots; no network and no disk.

use std::{sync::Arc, time::Duration};

use federation_identity::{LiveSvid, LocalSigner, Signer, Svid, SvidKey, now, record};
use federation_model::{
    Admission, Audience, Authentic, Body, ClusterId, Digest, Eviction, FederationId, Position, Record, RecordId,
    Records, Replica, Snapshot, SpiffeId, fold,
};
use proto::convert::{decode_envelope, encode_envelope, encode_record};

/// A cluster's keys, and how far it wrote each of its logs when it is not the own one.
pub(crate) struct Cluster {
    pub(crate) signer: Arc<LocalSigner>,
    pub(crate) id: ClusterId,
    law: Option<(u64, Digest)>,
    all: Option<(u64, Digest)>,
}

impl Cluster {
    pub(crate) fn new(name: &str) -> Self {
        let domain = format!("{name}.mesh.internal").parse().expect("trust domain");
        let (signer, _) = LocalSigner::generate(&domain, &name.parse().expect("name"), now()).expect("authority");
        Self { id: signer.candidate().id, signer: Arc::new(signer), law: None, all: None }
    }

    /// An SVID of this cluster that lives for `ttl`.
    pub(crate) fn svid(&self, id: &SpiffeId, ttl: Duration) -> LiveSvid {
        let key = SvidKey::generate();
        let issued = self.signer.sign_svid(id, &key.csr(), ttl, now()).expect("issued");
        let live = LiveSvid::new();
        live.set(Svid::assemble(key, issued.full_chain()).expect("svid"));
        live
    }

    /// Signs a record at a place that the caller chose.
    pub(crate) fn sign(
        &self,
        federation: FederationId,
        audience: Audience,
        at: Position,
        body: Body,
    ) -> Authentic<Record> {
        let record = Record {
            federation,
            writer: self.id,
            audience,
            epoch: at.epoch,
            seq: at.seq,
            previous: at.previous,
            replaces: Vec::new(),
            author: "test".into(),
            written_at: now(),
            body,
        };
        seal(&self.signer, record)
    }
}

fn seal(signer: &LocalSigner, record: Record) -> Authentic<Record> {
    let bytes = encode_record(&record);
    let signature = record::sign(signer, &bytes).expect("signed");
    let raw: Arc<[u8]> = encode_envelope(&bytes, &signature).into();
    let envelope = decode_envelope(&raw).expect("own envelope");
    let candidate = signer.candidate();
    record::verify(envelope.record, raw, &envelope.record_bytes, &envelope.signature, &candidate.replication_key)
        .expect("own record")
}

/// What one cluster knows of its federation.
pub(crate) struct Federation {
    pub(crate) own: Cluster,
    pub(crate) id: FederationId,
    replica: Replica,
    revision: u64,
}

impl Federation {
    /// A federation founded by the cluster `name`, its bundle published.
    pub(crate) fn found(name: &str) -> Self {
        let own = Cluster::new(name);
        let founding = Record {
            federation: FederationId::from_digest(Digest::ZERO),
            writer: own.id,
            audience: Audience::Law,
            epoch: 1,
            seq: 1,
            previous: Digest::ZERO,
            replaces: Vec::new(),
            author: "test".into(),
            written_at: now(),
            body: Body::Founding(own.signer.candidate()),
        };
        let founding = seal(&own.signer, founding);
        let id = FederationId::from_digest(founding.digest());
        let mut replica = Replica::new(own.id, id);
        replica.on_local(founding).expect("founding");
        let mut federation = Self { own, id, replica, revision: 0 };
        let bundle = federation.own.signer.bundle(1);
        federation.write(Audience::Law, Body::Bundle(bundle), "test");
        federation
    }

    /// Another cluster, admitted here; its bundle is known.
    pub(crate) fn admit(&mut self, name: &str, lawmaker: bool) -> Cluster {
        let mut cluster = Cluster::new(name);
        let admission = Admission { candidate: cluster.signer.candidate(), lawmaker };
        self.write(Audience::Law, Body::Admission(admission), "test");
        let bundle = cluster.signer.bundle(1);
        self.hear(&mut cluster, Audience::Law, Body::Bundle(bundle));
        cluster
    }

    /// Writes a record of the own cluster.
    pub(crate) fn write(&mut self, audience: Audience, body: Body, author: &str) -> RecordId {
        let at = self.replica.next_position(audience);
        let replaces = match &body {
            Body::Intention(_) | Body::Stance { .. } | Body::Lawmaker { .. } => {
                self.replica.replaceable(&body.key(self.own.id, audience, Digest::ZERO))
            }
            _ => Vec::new(),
        };
        let record = Record {
            federation: self.id,
            writer: self.own.id,
            audience,
            epoch: at.epoch,
            seq: at.seq,
            previous: at.previous,
            replaces,
            author: author.into(),
            written_at: now(),
            body,
        };
        let record = seal(&self.own.signer, record);
        let id = record.id();
        self.replica.on_local(record).expect("own record");
        id
    }

    /// Signs that a member is out, naming the heads of its public log as they are.
    pub(crate) fn evict(&mut self, cluster: ClusterId, author: &str) -> RecordId {
        let heads = self.replica.heads(cluster, Audience::Law);
        self.write(Audience::Law, Body::Eviction(Eviction { cluster, heads }), author)
    }

    /// Takes another cluster's word that a member is out.
    pub(crate) fn hear_eviction(&mut self, from: &mut Cluster, cluster: ClusterId) -> RecordId {
        let heads = self.replica.heads(cluster, Audience::Law);
        self.hear(from, Audience::Law, Body::Eviction(Eviction { cluster, heads }))
    }

    /// Takes a record that another cluster writes.
    pub(crate) fn hear(&mut self, from: &mut Cluster, audience: Audience, body: Body) -> RecordId {
        let log = if audience == Audience::Law { &mut from.law } else { &mut from.all };
        let (seq, previous) = log.map_or((1, Digest::ZERO), |(seq, digest)| (seq + 1, digest));
        let record = from.sign(self.id, audience, Position { epoch: 1, seq, previous }, body);
        let log = if audience == Audience::Law { &mut from.law } else { &mut from.all };
        *log = Some((seq, record.digest()));
        self.take(from, record)
    }

    /// Takes a record as it is.
    pub(crate) fn take(&mut self, from: &Cluster, record: Authentic<Record>) -> RecordId {
        let id = record.id();
        self.replica.on_records(from.id, vec![record], 0);
        id
    }

    pub(crate) fn records(&self) -> Records {
        self.replica.list().clone()
    }

    pub(crate) fn snapshot(&mut self) -> Arc<Snapshot> {
        self.revision += 1;
        let snapshot = fold(self.own.id, self.id, self.revision, self.replica.records());
        Arc::new(snapshot.expect("the own admission is there"))
    }
}
