//! How a record is taken: what is checked, where it goes, and what a fork undoes.

use std::collections::BTreeMap;

use super::{
    Alarm, Changes, Replica, ReplicaError,
    log::{Log, Place},
};
use crate::{
    Admission, Audience, Authentic, Body, ClusterId, EPOCHS_MAX, FederationId, LOGS_MAX, Record, RecordId,
    mutation::{Mutation, planted},
    replica::EPOCH_RECORDS_MAX,
};

impl Replica {
    /// Takes one record if it follows what is held; `Ok` also if it was held already.
    pub(super) fn take(
        &mut self,
        record: &Authentic<Record>,
        from: Option<ClusterId>,
        changes: &mut Changes,
    ) -> Result<(), ReplicaError> {
        let id = record.id();
        self.check(record, from)?;
        let known_log = self.logs.contains_key(&(id.writer, id.audience));
        if !known_log && self.logs.len() >= LOGS_MAX {
            return Err(ReplicaError::Bound { id });
        }
        let place = match self.logs.get(&(id.writer, id.audience)) {
            Some(log) => log.place(&id, record.value().previous),
            None => Log::default().place(&id, record.value().previous),
        };
        let place = bend(place, &id);
        match place {
            Place::Held => return Ok(()),
            Place::Void => return Err(ReplicaError::Void { id }),
            Place::Gap => return Err(ReplicaError::Gap { id }),
            Place::Next | Place::Fork => {}
        }
        let arrival = self.records.push(record.clone());
        let log = self.logs.entry((id.writer, id.audience)).or_default();
        let dropped = if place == Place::Next {
            log.append(&id, arrival);
            Vec::new()
        } else {
            log.fork(&id, arrival)
        };
        self.fold.take(arrival, record);
        self.note_writer(record.value());
        if !dropped.is_empty() {
            self.drop_void(&dropped);
        }
        if id.writer == self.own && from.is_some() {
            // This cluster wrote it and did not have it: the store is not the newest, but the peer told the truth.
            self.raise_floor(id.audience, id.epoch + 1);
            from.map(|peer| self.doubted.remove(&peer));
        }
        changes.taken.push(record.clone());
        if place == Place::Fork {
            changes.alarms.push(Alarm::Equivocation {
                writer: id.writer,
                audience: id.audience,
                epoch: id.epoch,
                seq: id.seq,
            });
        }
        Ok(())
    }

    fn check(&self, record: &Authentic<Record>, from: Option<ClusterId>) -> Result<(), ReplicaError> {
        let (id, value) = (record.id(), record.value());
        if let Body::Founding(candidate) = &value.body {
            let first = (id.writer, id.audience, id.epoch, id.seq) == (candidate.id, Audience::Law, 1, 1);
            return if first && FederationId::from_digest(id.digest) == self.federation {
                Ok(())
            } else {
                Err(ReplicaError::OtherFederation { id })
            };
        }
        if value.federation != self.federation {
            return Err(ReplicaError::OtherFederation { id });
        }
        if !self.writers.contains_key(&id.writer) {
            return Err(ReplicaError::UnknownWriter { id });
        }
        if from.is_some_and(|peer| !self.shares(peer, id.writer, id.audience)) {
            return Err(ReplicaError::Audience { id });
        }
        if !(1..=EPOCHS_MAX as u64).contains(&id.epoch) || !(1..=EPOCH_RECORDS_MAX).contains(&id.seq) {
            return Err(ReplicaError::Bound { id });
        }
        Ok(())
    }

    /// Notes the key of whoever a record admits.
    fn note_writer(&mut self, record: &Record) {
        match &record.body {
            _ if record.audience != Audience::Law => {}
            Body::Founding(candidate) => {
                self.writers.insert(candidate.id, candidate.replication_key);
            }
            Body::Admission(Admission { candidate, .. }) => {
                self.writers.entry(candidate.id).or_insert(candidate.replication_key);
            }
            _ => {}
        }
    }

    /// Forgets records that a fork made void, and with them whoever only they admitted.
    fn drop_void(&mut self, dropped: &[u64]) {
        let mut admits = false;
        for arrival in dropped {
            if let Some(record) = self.drop(*arrival) {
                admits |= matches!(record.value().body, Body::Admission(_) | Body::Founding(_));
            }
        }
        if admits {
            self.recount_writers();
        }
    }

    fn drop(&mut self, arrival: u64) -> Option<Authentic<Record>> {
        let record = self.records.remove(arrival)?;
        self.fold.forget(arrival, &record);
        Some(record)
    }

    /// Finds anew whom a chain of admissions leads to; the logs of the others go, since no replica that comes later
    /// could take them. This cluster's own stay: its members may know it by another admission.
    fn recount_writers(&mut self) {
        let mut writers = BTreeMap::new();
        loop {
            let before = writers.len();
            for record in self.fold.papers().map(Authentic::value) {
                let candidate = match &record.body {
                    Body::Founding(candidate) => candidate,
                    Body::Admission(admission) if writers.contains_key(&record.writer) => &admission.candidate,
                    _ => continue,
                };
                writers.entry(candidate.id).or_insert(candidate.replication_key);
            }
            if writers.len() == before {
                break;
            }
        }
        let own = self.own;
        if let Some(key) = self.writers.get(&own) {
            writers.entry(own).or_insert(*key);
        }
        let gone = self.logs.extract_if(.., |(writer, _), _| !writers.contains_key(writer));
        let gone: Vec<u64> = gone.flat_map(|(_, log)| log.arrivals().collect::<Vec<_>>()).collect();
        self.writers = writers;
        gone.into_iter().for_each(|arrival| drop(self.drop(arrival)));
    }
}

/// Where a planted fault makes a record go; its place without one.
fn bend(place: Place, id: &RecordId) -> Place {
    match place {
        Place::Gap if id.seq > 1 && planted(Mutation::AcceptGap) => Place::Next,
        Place::Fork if planted(Mutation::IgnoreFork) => Place::Held,
        Place::Void if planted(Mutation::ResurrectVoid) => Place::Next,
        place => place,
    }
}
