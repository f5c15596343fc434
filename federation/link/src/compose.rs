//! This cluster's own words: a record composed for the next place of its log, and what it would say again elsewhere.

use std::collections::HashMap;

use federation_identity::now;
use federation_model::{Audience, Authentic, Body, Digest, Intention, Record, RecordKey, Replica, RuleState};

use crate::{Shared, WriteError, records};

/// Signs a record of this cluster for the next place of its log, in place of what it may replace.
pub(crate) fn compose(
    shared: &Shared,
    replica: &Replica,
    audience: Audience,
    body: Body,
    author: String,
) -> Result<Authentic<Record>, WriteError> {
    let position = replica.next_position(audience);
    let key = body.key(shared.own, audience, Digest::ZERO);
    let record = Record {
        federation: replica.federation(),
        writer: shared.own,
        audience,
        epoch: position.epoch,
        seq: position.seq,
        previous: position.previous,
        replaces: replica.replaceable(&key),
        author,
        written_at: now(),
        body,
    };
    let key = &shared.candidate.replication_key;
    records::sign(shared.signer.as_ref(), key, record)
}

/// What this cluster last said under each key and would say again in another federation.
pub(crate) fn own_words(replica: &Replica) -> Vec<(Audience, Body, String)> {
    let mut last: HashMap<RecordKey, &Authentic<Record>> = HashMap::new();
    let mut order = Vec::new();
    for record in replica.records().filter(|record| record.value().writer == replica.own()) {
        if last.insert(record.key(), record).is_none() {
            order.push(record.key());
        }
    }
    let said = order.iter().filter_map(|key| last.get(key)).filter(|record| {
        matches!(
            &record.value().body,
            Body::Terms(_)
                | Body::Bundle(_)
                | Body::Revocation(_)
                | Body::Service(_)
                | Body::Intention(Intention { state: RuleState::Is(_), .. })
        )
    });
    said.map(|record| (record.value().audience, record.value().body.clone(), record.value().author.clone())).collect()
}
