//! Bundles: by which roots each member is known, and which keys of its own it believes no more.

use std::collections::BTreeMap;

use crate::{
    Admission, Authentic, Body, Bundles, ClusterId, Member, Record, Revocation, TrustBundle, TrustDomain,
    mutation::{Mutation, planted},
    roll::Roll,
};

/// Each member's newest bundle of its own trust domain; of two with one sequence, the roots in both.
///
/// Replaced bundles are looked at too: whatever a writer replaces, its sequence never goes down. So are replaced
/// revocations: nobody takes one back. Each counts in its writer's own trust domain and nowhere else.
pub(super) fn newest<'a>(papers: impl Iterator<Item = &'a Authentic<Record>>, roll: &Roll) -> Bundles {
    let members = &roll.members;
    let mut newest: BTreeMap<ClusterId, TrustBundle> = BTreeMap::new();
    let mut revoked: Vec<(&TrustDomain, &Revocation)> = Vec::new();
    for record in papers.filter(|record| roll.counts(&record.id())) {
        let writer = record.value().writer;
        let bundle = match &record.value().body {
            Body::Bundle(bundle) => bundle,
            Body::Revocation(revocation) => {
                if let Some(member) = members.get(&writer).filter(|member| member.state.is_active()) {
                    revoked.push((&member.trust_domain, revocation));
                }
                continue;
            }
            // Until its own bundle comes, a member is known by the root in its admission: else its first session, which
            // brings that bundle, could not be verified. The id is the hash of that root, so no sponsor can give another.
            Body::Founding(candidate) | Body::Admission(Admission { candidate, .. }) => {
                let named = |member: &Member| member.trust_domain == candidate.trust_domain && member.state.is_active();
                if members.get(&candidate.id).is_some_and(named) {
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
        // Whoever is not active is believed in nothing.
        let named = |member: &Member| member.trust_domain == bundle.trust_domain && member.state.is_active();
        if !members.get(&writer).is_some_and(named) {
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
    for (domain, revocation) in revoked {
        bundles.revoke(domain, revocation.clone());
    }
    bundles
}
