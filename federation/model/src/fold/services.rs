//! Services: what this cluster may see of what their owners told of them.
//!
//! Of siblings the narrower: gone if any says so, accounts in all, the stricter policy for stale data.

use std::borrow::Cow;

use super::Fold;
use crate::{
    ACCOUNTS_MAX, AccountRef, Audience, Body, Export, Member, Record, RecordKey, Service, ServiceId, ServiceRef,
    files::Filed,
};

/// What one audience was told of one service.
enum Told<'a> {
    Gone,
    Is(Cow<'a, Export>),
}

/// Which service a record is about.
pub(super) fn id(record: &Record) -> Option<ServiceId> {
    let (service, namespace) = match &record.body {
        Body::Service(export) => (&export.service, &export.namespace),
        Body::ServiceGone { service, namespace } => (service, namespace),
        _ => return None,
    };
    Some(ServiceId { service: service.clone(), namespace: namespace.clone(), cluster: record.writer })
}

impl Fold {
    /// Puts what this cluster may see of a service into the catalog, or takes it out.
    pub(super) fn show(&mut self, id: &ServiceId) {
        let mut found: Option<Service> = None;
        if let (Some(member), Some(audiences)) = (self.roll.members.get(&id.cluster), self.audiences.get(id)) {
            for audience in audiences.iter().filter(|audience| self.sees(id, audience)) {
                if let Some(export) = self.told(id, *audience) {
                    // The owner's own word on its service stands before what it told others; for readers, what it told
                    // them in particular stands before what it told all.
                    let private = *audience == Audience::Member(id.cluster);
                    let exported = !private || found.as_ref().is_some_and(|held| held.exported);
                    let held = found.take().filter(|_| id.cluster == self.own && !private);
                    found = Some(Service { exported, ..held.unwrap_or_else(|| make(id, &export, member)) });
                }
            }
        }
        match found {
            Some(service) => self.catalog.insert(service),
            None => self.catalog.remove(id),
        }
    }

    fn sees(&self, id: &ServiceId, audience: &Audience) -> bool {
        match audience {
            Audience::Law => false,
            Audience::All => true,
            Audience::Member(reader) => *reader == self.own || id.cluster == self.own,
        }
    }

    /// What one audience is told of a service.
    fn told(&self, id: &ServiceId, audience: Audience) -> Option<Cow<'_, Export>> {
        let (namespace, service) = (id.namespace.clone(), id.service.clone());
        let key = RecordKey::Service { writer: id.cluster, audience, namespace, service };
        let mut standing: Vec<&Filed> = self.files.standing(&key).iter().collect();
        standing.sort_by_key(|held| (held.record.epoch, held.record.seq, held.digest));
        match narrowest(&standing)? {
            Told::Gone => None,
            Told::Is(export) => Some(export),
        }
    }
}

/// What the live versions of one service together say, the newest last; `None` without any.
fn narrowest<'a>(standing: &[&'a Filed]) -> Option<Told<'a>> {
    standing.iter().fold(None, |told, held| match (told, &held.record.body) {
        (Some(Told::Gone), _) => Some(Told::Gone),
        (None, Body::Service(export)) => Some(Told::Is(Cow::Borrowed(export))),
        (Some(Told::Is(held)), Body::Service(export)) => {
            let (before, now) = (accounts(&held), accounts(export));
            let both: Vec<AccountRef> = now.into_iter().filter(|account| before.contains(account)).collect();
            // Nobody may serve what two versions give to different accounts.
            if both.is_empty() {
                Some(Told::Gone)
            } else {
                let staleness = held.staleness.narrower(export.staleness);
                Some(Told::Is(Cow::Owned(Export { accounts: both, staleness, ..export.clone() })))
            }
        }
        _ => Some(Told::Gone),
    })
}

/// Who may serve it: the account of its own name unless it says otherwise.
fn accounts(export: &Export) -> Vec<AccountRef> {
    if export.accounts.is_empty() {
        vec![AccountRef { account: (&export.service).into(), namespace: export.namespace.clone() }]
    } else {
        export.accounts.iter().take(ACCOUNTS_MAX).cloned().collect()
    }
}

fn make(id: &ServiceId, export: &Export, member: &Member) -> Service {
    Service {
        id: id.clone(),
        name: ServiceRef { service: id.service.clone(), namespace: id.namespace.clone(), cluster: member.name.clone() },
        trust_domain: member.trust_domain.clone(),
        port: export.port,
        accounts: accounts(export),
        exported: false,
        staleness: export.staleness,
    }
}
