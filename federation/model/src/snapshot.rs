//! The one picture of the federation that the data path reads: immutable, made by one fold.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
};

use crate::{
    ACCOUNTS_MAX, AccountRef, Admission, Audience, Authentic, Authorizer, Body, Bundles, ClusterId, ClusterName,
    Digest, Export, FederationId, IntentionKey, Member, Members, Record, RecordId, RecordKey, Service, ServiceCatalog,
    ServiceId, ServiceRef, TrustBundle, TrustDomain,
    mutation::{Mutation, planted},
    roll::{self, Roll},
};

/// An intention whose concurrent versions nobody has resolved yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub key: IntentionKey,
    pub siblings: Vec<RecordId>,
}

/// Everything that a decision, a route or an answer needs. Cheap to share, never changed.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Grows with each publication within one process.
    pub revision: u64,
    pub own: ClusterId,
    pub own_name: ClusterName,
    pub own_trust_domain: TrustDomain,
    pub federation: FederationId,
    pub members: Members,
    pub bundles: Bundles,
    pub catalog: ServiceCatalog,
    pub authorizer: Authorizer,
    pub conflicts: Vec<Conflict>,
    /// Admissions that are held back: another member has their name or trust domain.
    pub held: Vec<RecordId>,
}

/// Makes a snapshot of whatever records are given, replaced ones included: an edge gives its replica's, a sidecar those
/// of its feed, both in order of arrival, which decides whose admission of a name came first.
///
/// `None` while the records do not hold the own cluster's admission: no snapshot means deny. What does not count is
/// passed over: records of another federation, of no member's, or behind a fork.
pub fn fold<'a>(
    own: ClusterId,
    federation: FederationId,
    revision: u64,
    records: impl Iterator<Item = &'a Authentic<Record>>,
) -> Option<Snapshot> {
    let records = counted(federation, records);
    let Roll { members, held } = roll::call(federation, records.iter().copied());
    let (own_name, own_trust_domain) = {
        let member = members.get(&own)?;
        (member.name.clone(), member.trust_domain.clone())
    };
    let of_members = || records.iter().filter(|record| members.get(&record.value().writer).is_some());
    let bundles = bundles(of_members().copied(), &members);
    let catalog = catalog(own, of_members().copied(), &members);
    let rules = of_members().map(|record| (record.id(), record.value()));
    let authorizer = Authorizer::compile(rules, &members).at(own, revision);
    let conflicts = authorizer.conflicts();
    Some(Snapshot {
        revision,
        own,
        own_name,
        own_trust_domain,
        federation,
        members,
        bundles,
        catalog,
        authorizer,
        conflicts,
        held,
    })
}

/// The records of this federation that no fork makes void.
fn counted<'a>(
    federation: FederationId,
    records: impl Iterator<Item = &'a Authentic<Record>>,
) -> Vec<&'a Authentic<Record>> {
    let ours = records
        .filter(|record| record.value().federation == federation || matches!(record.value().body, Body::Founding(_)));
    let ours: Vec<_> = ours.collect();
    let mut places: HashMap<(ClusterId, Audience, u64, u64), Digest> = HashMap::new();
    let mut forks: HashMap<(ClusterId, Audience, u64), u64> = HashMap::new();
    for record in &ours {
        let RecordId { writer, audience, epoch, seq, digest } = record.id();
        if *places.entry((writer, audience, epoch, seq)).or_insert(digest) != digest {
            let lowest = forks.entry((writer, audience, epoch)).or_insert(seq);
            *lowest = seq.min(*lowest);
        }
    }
    let stands = |record: &&Authentic<Record>| {
        let id = record.id();
        forks.get(&(id.writer, id.audience, id.epoch)).is_none_or(|fork| id.seq <= *fork)
    };
    ours.into_iter().filter(stands).collect()
}

/// Each member's newest bundle of its own trust domain; of two with one sequence, the roots in both.
///
/// Replaced bundles are looked at too: whatever a writer replaces, its sequence never goes down.
fn bundles<'a>(records: impl Iterator<Item = &'a Authentic<Record>>, members: &Members) -> Bundles {
    let mut newest: BTreeMap<ClusterId, TrustBundle> = BTreeMap::new();
    for record in records.filter(|record| record.value().audience == Audience::Law) {
        let writer = record.value().writer;
        let bundle = match &record.value().body {
            Body::Bundle(bundle) => bundle,
            // Until its own bundle comes, a member is known by the root in its admission: else its first session, which
            // brings that bundle, could not be verified. The id is the hash of that root, so no sponsor can give another.
            Body::Founding(candidate) | Body::Admission(Admission { candidate, .. }) => {
                if members.get(&candidate.id).is_some_and(|member| member.trust_domain == candidate.trust_domain) {
                    newest.entry(candidate.id).or_insert_with(|| TrustBundle {
                        trust_domain: candidate.trust_domain.clone(),
                        sequence: 0,
                        roots: vec![candidate.root.clone()],
                    });
                }
                continue;
            }
            _ => continue,
        };
        if members.get(&writer).is_none_or(|member| member.trust_domain != bundle.trust_domain) {
            continue;
        }
        match newest.get_mut(&writer) {
            Some(held) if held.sequence == bundle.sequence => held.roots.retain(|root| bundle.roots.contains(root)),
            Some(held) if held.sequence > bundle.sequence && !planted(Mutation::AcceptLowerBundle) => {}
            _ => {
                newest.insert(writer, bundle.clone());
            }
        }
    }
    let mut bundles = Bundles::default();
    for bundle in newest.into_values() {
        // One past the bounds is left out: a domain without a bundle verifies nobody.
        let _ = bundles.update(bundle);
    }
    bundles
}

/// What one audience was told of one service.
enum Told<'a> {
    Gone,
    Is(Cow<'a, Export>),
}

/// The services that `own` may see. Of siblings the narrower: gone if any says so, accounts in all.
fn catalog<'a>(
    own: ClusterId,
    records: impl Iterator<Item = &'a Authentic<Record>>,
    members: &Members,
) -> ServiceCatalog {
    let mut versions: BTreeMap<RecordKey, Vec<&Authentic<Record>>> = BTreeMap::new();
    for record in records {
        let visible = match record.value().audience {
            Audience::Law => false,
            Audience::All => true,
            Audience::Member(reader) => reader == own || record.value().writer == own,
        };
        if visible && matches!(record.value().body, Body::Service(_) | Body::ServiceGone { .. }) {
            versions.entry(record.key()).or_default().push(record);
        }
    }
    let mut catalog = ServiceCatalog::default();
    for (key, mut records) in versions {
        let RecordKey::Service { writer, audience, .. } = key else { continue };
        let Some(member) = members.get(&writer) else { continue };
        let replaced: BTreeSet<RecordId> =
            records.iter().flat_map(|record| roll::own_replaced(record.value())).collect();
        records.retain(|record| !replaced.contains(&record.id()));
        records.sort_by_key(|record| (record.value().epoch, record.value().seq, record.digest()));
        let Some(Told::Is(export)) = narrowest(&records) else { continue };
        let id = ServiceId { service: export.service.clone(), namespace: export.namespace.clone(), cluster: writer };
        let private = audience == Audience::Member(writer);
        let exported = !private;
        if let Some(held) = catalog.get(&id) {
            // The owner's own word on its service stands before what it told others; for readers, what it told them
            // in particular stands before what it told all.
            let mut service = if writer == own && !private { held.clone() } else { make(&id, &export, member) };
            service.exported = held.exported || exported;
            catalog.insert(service);
        } else {
            let mut service = make(&id, &export, member);
            service.exported = exported;
            catalog.insert(service);
        }
    }
    catalog
}

/// What the live versions of one service together say, the newest last; `None` without any.
fn narrowest<'a>(records: &[&'a Authentic<Record>]) -> Option<Told<'a>> {
    records.iter().fold(None, |told, record| match (told, &record.value().body) {
        (Some(Told::Gone), _) => Some(Told::Gone),
        (None, Body::Service(export)) => Some(Told::Is(Cow::Borrowed(export))),
        (Some(Told::Is(held)), Body::Service(export)) => {
            let (before, now) = (accounts(&held), accounts(export));
            let both: Vec<AccountRef> = now.into_iter().filter(|account| before.contains(account)).collect();
            // Nobody may serve what two versions give to different accounts.
            if both.is_empty() {
                Some(Told::Gone)
            } else {
                Some(Told::Is(Cow::Owned(Export { accounts: both, ..export.clone() })))
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
    }
}

#[cfg(test)]
mod tests;
