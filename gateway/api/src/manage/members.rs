//! The members: how each stands, and what an operator decides about them.
//!
//! In: a cluster by name, and what is to be the case. Out: what is the case now, in words, and whose word is still
//! missing. Never: judges whether a signed word counts; the fold does, and this reads it off the snapshot.

use federation_model::{Accept, Approval, Audience, Body, ClusterId, Member, MemberState, Snapshot};
use proto::manage as wire;

use super::naming;
use crate::{Kind, LinkPhase, Refusal, server::Shared};

impl Shared {
    pub(super) fn list_clusters(&self) -> Result<wire::ClusterList, Refusal> {
        let snapshot = self.ready()?;
        let statuses = self.links.statuses();
        let clusters = snapshot.members.iter().map(|member| {
            let is_up = || statuses.iter().any(|link| link.member == member.id && link.phase == LinkPhase::Up);
            let state = match member.state {
                _ if member.id == snapshot.own => "own",
                MemberState::Active => {
                    if is_up() {
                        "up"
                    } else {
                        "down"
                    }
                }
                out => out.as_str(),
            };
            let bundle = snapshot.bundles.get(&member.trust_domain).filter(|_| !member.state.is_gone());
            wire::Cluster {
                name: naming::shown(&member.id, &snapshot.members),
                id: member.id.to_string(),
                trust_domain: member.trust_domain.to_string(),
                own: member.id == snapshot.own,
                lawmaker: member.lawmaker && !member.state.is_gone(),
                accept: match member.accept {
                    Accept::Federation => "federation",
                    Accept::Own => "own",
                }
                .to_owned(),
                sponsor: naming::shown(&member.sponsor, &snapshot.members),
                admitted_at_ms: member.admitted_at.as_millis(),
                endpoints: member.endpoints.iter().map(ToString::to_string).collect(),
                state: state.to_owned(),
                bundle_sequence: bundle.map_or(0, |bundle| bundle.sequence),
                evicted_by: names(&member.evicted_by, &snapshot),
                approval: match member.approval {
                    Approval::Auto => "auto",
                    Approval::Manual => "manual",
                }
                .to_owned(),
                data_age_ms: match member.id == snapshot.own {
                    true => 0,
                    false => naming::age_ms(self.links.data_age(&member.id)),
                },
            }
        });
        Ok(wire::ClusterList { clusters: clusters.collect() })
    }

    pub(super) async fn block_cluster(&self, cluster: &str, author: String) -> Result<wire::MembershipReply, Refusal> {
        let snapshot = self.ready()?;
        let member = naming::other(cluster, &snapshot)?;
        still_here(member)?;
        let changed = self.links.block(member.id, author.clone()).await?;
        tracing::info!(cluster = %member.name, %author, changed, "cluster blocked here");
        self.standing(member.id, changed, Vec::new(), |member, _| {
            let name = &member.name;
            match member.state {
                MemberState::Blocked => format!(
                    "{name} is blocked here, until `hanse cluster approve {name}`; the other members decide for themselves"
                ),
                state => format!("{name} is {state} anyway, and blocked here should the others let it in again"),
            }
        })
    }

    pub(super) async fn approve_cluster(
        &self,
        cluster: &str,
        author: String,
    ) -> Result<wire::MembershipReply, Refusal> {
        let snapshot = self.ready()?;
        let member = naming::other(cluster, &snapshot)?;
        still_here(member)?;
        let before = member.state;
        let changed = self.links.approve(member.id, author.clone()).await?;
        tracing::info!(cluster = %member.name, %author, changed, "cluster approved");
        self.standing(member.id, changed, Vec::new(), |member, snapshot| match (changed, before) {
            (false, _) => format!("{} was let in already: nothing changed", member.name),
            (true, MemberState::Suspended) => format!(
                "{0} is let in again here, although {1} evicted it; the others keep it out, and here too it is out once \
                 another lawmaker evicts it",
                member.name,
                listed(&names(&member.evicted_by, snapshot)),
            ),
            (true, _) => format!("{} is let in here; `hanse link list` shows the link", member.name),
        })
    }

    pub(super) async fn evict_cluster(&self, cluster: &str, author: String) -> Result<wire::MembershipReply, Refusal> {
        let snapshot = self.ready()?;
        let member = naming::known(cluster, &snapshot.members)?;
        if member.id == snapshot.own {
            let message = format!("{} is this very cluster: `hanse cluster leave` takes it out", member.name);
            return Err(Refusal::invalid("own_cluster", message));
        }
        still_here(member)?;
        let instead = format!("`hanse cluster block {}` shuts it out of this cluster alone", member.name);
        makes_law(&snapshot, "only a lawmaker evicts", &instead)?;
        let changed = !member.evicted_by.contains(&snapshot.own);
        if changed {
            let record = self.links.evict(member.id, author.clone()).await?;
            tracing::info!(cluster = %member.name, %author, %record, "cluster evicted");
        }
        let now = self.ready()?;
        let needs = match now.members.get(&member.id) {
            Some(held) if !held.state.is_gone() => {
                lawmakers(&now, |id| *id != held.id && !held.evicted_by.contains(id))
            }
            _ => Vec::new(),
        };
        self.standing(member.id, changed, needs.clone(), |member, now| {
            let name = &member.name;
            if member.state.is_gone() {
                return format!(
                    "{name} is evicted for good: its id does not come back, its name is free for another cluster with a \
                     new token; its allows are void, its denies stand until a lawmaker deletes them"
                );
            }
            let signers = listed(&names(&member.evicted_by, now));
            let last = match needs.is_empty() {
                true => "no other lawmaker is left to make it final".to_owned(),
                false => format!("it is final once {} says the same", one_of(&needs)),
            };
            format!(
                "{name} is suspended everywhere by {signers}: {last}; until then any cluster may let it in again for \
                 itself with `hanse cluster approve {name}`"
            )
        })
    }

    pub(super) async fn set_lawmaker(
        &self,
        cluster: &str,
        on: bool,
        author: String,
    ) -> Result<wire::MembershipReply, Refusal> {
        let snapshot = self.ready()?;
        let member = naming::known(cluster, &snapshot.members)?;
        still_here(member)?;
        let (own, id) = (snapshot.own, member.id);
        makes_law(&snapshot, "only a lawmaker makes another, or unmakes one", "ask one of them")?;
        if on && member.state == MemberState::Suspended {
            let message = format!("{} is suspended: nothing it signs counts while it is", member.name);
            return Err(Refusal::new(Kind::State, "suspended", message));
        }
        if !on && id == own && lawmakers(&snapshot, |other| *other != own).is_empty() {
            let message = format!(
                "{} is the only lawmaker: nobody could make another; `hanse cluster lawmaker CLUSTER on` first",
                member.name
            );
            return Err(Refusal::new(Kind::State, "only_lawmaker", message));
        }
        let said = self.said_of_office(own, id);
        let changed = if on { !member.lawmaker || said == Some(false) } else { member.lawmaker && said != Some(false) };
        if changed {
            let record = self.links.write(Audience::Law, Body::Lawmaker { cluster: id, on }, author.clone()).await?;
            self.published(record, |_| self.said_of_office(own, id) == Some(on)).await;
            tracing::info!(cluster = %member.name, %author, on, "lawmaker switched");
        }
        let now = self.ready()?;
        let is_lawmaker = now.members.get(&id).is_some_and(|member| member.lawmaker);
        let needs: Vec<String> = match (on, is_lawmaker) {
            (false, true) => lawmakers(&now, |other| *other != own && *other != id),
            // Those who took the office have to give it back.
            (true, false) => {
                let took = |other: &&Member| other.id != id && self.said_of_office(other.id, id) == Some(false);
                now.members.present().filter(took).map(|member| member.name.to_string()).collect()
            }
            _ => Vec::new(),
        };
        self.standing(id, changed, needs.clone(), |member, _| match (on, member.lawmaker) {
            (true, true) => format!("{} makes law", member.name),
            (false, false) => format!("{} makes no law any more; what it wrote about others' services is void", member.name),
            (false, true) => format!(
                "{} still makes law: {} has to say the same, with `hanse cluster lawmaker {0} off` there",
                member.name,
                match needs.is_empty() {
                    true => "a third lawmaker, since it said the same of this cluster,".to_owned(),
                    false => one_of(&needs),
                }
            ),
            (true, false) => format!(
                "{} makes no law yet: {} took the office and has to give it back, with `hanse cluster lawmaker {0} on` there",
                member.name,
                one_of(&needs)
            ),
        })
    }

    pub(super) async fn leave_federation(&self, author: String) -> Result<wire::LeaveFederationReply, Refusal> {
        let snapshot = self.ready()?;
        let alone = lawmakers(&snapshot, |id| *id != snapshot.own).is_empty();
        let stays = snapshot.members.present().filter(|member| member.id != snapshot.own).count();
        if alone && stays > 1 && snapshot.own_state.is_active() {
            // They could never again make a lawmaker, nor put anybody out.
            let message = format!(
                "{} is the only lawmaker, and {stays} members would stay without one: `hanse cluster lawmaker CLUSTER \
                 on` first",
                snapshot.own_name
            );
            return Err(Refusal::new(Kind::State, "only_lawmaker", message));
        }
        tracing::info!(%author, federation = %snapshot.federation, "leaving the federation");
        let departed = self.links.leave(author).await?;
        Ok(wire::LeaveFederationReply {
            left: snapshot.federation.to_string(),
            federation: departed.federation.to_string(),
            untold: departed.untold.iter().map(ToString::to_string).collect(),
        })
    }

    /// What a writer last said of a cluster's office.
    fn said_of_office(&self, writer: ClusterId, of: ClusterId) -> Option<bool> {
        let records = self.links.records().borrow().clone();
        let said = records.iter().map(|record| record.value()).filter(|record| record.writer == writer);
        let of_it = said.filter_map(|record| match record.body {
            Body::Lawmaker { cluster, on } if cluster == of => Some(((record.epoch, record.seq), on)),
            _ => None,
        });
        of_it.max_by_key(|(place, _)| *place).map(|(_, on)| on)
    }

    fn standing(
        &self,
        id: ClusterId,
        changed: bool,
        needs: Vec<String>,
        detail: impl FnOnce(&Member, &Snapshot) -> String,
    ) -> Result<wire::MembershipReply, Refusal> {
        let snapshot = self.ready()?;
        let Some(member) = snapshot.members.get(&id) else { return Err(Refusal::internal("membership", &id)) };
        let own = id == snapshot.own;
        Ok(wire::MembershipReply {
            cluster: naming::shown(&id, &snapshot.members),
            cluster_id: id.to_string(),
            state: if own { "own" } else { member.state.as_str() }.to_owned(),
            changed,
            for_good: member.state.is_gone(),
            lawmaker: member.lawmaker && !member.state.is_gone(),
            evicted_by: names(&member.evicted_by, &snapshot),
            needs,
            detail: detail(member, &snapshot),
        })
    }
}

/// What an operator should know about who is in and who is out, each one sentence.
pub(super) fn problems(snapshot: &Snapshot) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(own) = snapshot.members.get(&snapshot.own) {
        let by = listed(&names(&own.evicted_by, snapshot));
        match snapshot.own_state {
            MemberState::Suspended => found.push(format!(
                "{by} evicted this cluster: the others cut it off, until each lets it in again with `hanse cluster \
                 approve {}`, or for good once a second lawmaker signs",
                own.name
            )),
            MemberState::Evicted => found.push(format!(
                "{by} evicted this cluster for good: `hanse cluster leave` lets it go on alone; to come back it has to be \
                 set up anew, with an empty data_dir and a new token"
            )),
            MemberState::Left => found.push("this cluster left, half way: run `hanse cluster leave` again".to_owned()),
            MemberState::Active | MemberState::Held | MemberState::Blocked => {}
        }
    }
    let of = |state| {
        let all = snapshot.members.present().filter(move |member| member.state == state && member.id != snapshot.own);
        all.collect::<Vec<_>>()
    };
    let held: Vec<String> = of(MemberState::Held).iter().map(|member| member.name.to_string()).collect();
    if let Some(first) = held.first() {
        found.push(format!("waiting for approval: {}; `hanse cluster approve {first}` lets it in", listed(&held)));
    }
    for member in of(MemberState::Suspended) {
        let name = &member.name;
        found.push(format!(
            "{name} is suspended: evicted by {}; `hanse cluster approve {name}` lets it in here, a second lawmaker's \
             `hanse cluster evict {name}` makes it final",
            listed(&names(&member.evicted_by, snapshot))
        ));
    }
    found
}

/// Refuses a member that is out for good.
fn still_here(member: &Member) -> Result<(), Refusal> {
    if !member.state.is_gone() {
        return Ok(());
    }
    let (name, id) = (&member.name, member.id.short());
    let message = match member.state {
        MemberState::Left => format!("{name}@{id} left: it needs a new token to come back, `hanse link token {name}`"),
        _ => format!(
            "{name}@{id} is evicted for good: it needs a new token, `hanse link token {name}`, and to be set up anew"
        ),
    };
    Err(Refusal::new(Kind::State, "out_for_good", message))
}

/// Refuses unless what this cluster signs as a lawmaker counts.
fn makes_law(snapshot: &Snapshot, why: &str, instead: &str) -> Result<(), Refusal> {
    let own = snapshot.members.get(&snapshot.own);
    if snapshot.own_state.is_gone() {
        let message = format!("{} is out for good: nothing it signs counts any more", snapshot.own_name);
        return Err(Refusal::new(Kind::State, "own_cluster_out", message));
    }
    if own.is_some_and(|own| own.lawmaker) {
        return Ok(());
    }
    let others = match lawmakers(snapshot, |_| true) {
        none if none.is_empty() => "nobody does".to_owned(),
        some => format!("{} may", one_of(&some)),
    };
    let message = format!("{} makes no law, and {why}: {others}; {instead}", snapshot.own_name);
    Err(Refusal::new(Kind::NotPermitted, "not_a_lawmaker", message))
}

/// Names of the lawmakers that are in, and that `chosen` picks.
fn lawmakers(snapshot: &Snapshot, chosen: impl Fn(&ClusterId) -> bool) -> Vec<String> {
    let mut found: Vec<String> = snapshot
        .members
        .present()
        .filter(|member| member.lawmaker && member.state != MemberState::Suspended && chosen(&member.id))
        .map(|member| member.name.to_string())
        .collect();
    found.sort();
    found
}

fn names(ids: &[ClusterId], snapshot: &Snapshot) -> Vec<String> {
    let mut names: Vec<String> = ids.iter().map(|id| naming::shown(id, &snapshot.members)).collect();
    names.sort();
    names
}

fn listed(names: &[String]) -> String {
    names.join(", ")
}

/// `east`, or `one of east, west`.
fn one_of(names: &[String]) -> String {
    match names {
        [one] => one.clone(),
        several => format!("one of {}", listed(several)),
    }
}
