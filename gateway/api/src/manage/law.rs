//! Intentions: writing, taking back, listing, and asking what the law says.

use std::time::Duration;

use federation_model::{
    AccountRef, Action, Ages, Audience, Body, ClusterId, Denial, DenialReason, DestinationPattern, Enforcement,
    Intention, IntentionKey, Layer, MESH_ZONE, Member, RecordId, RuleState, ServiceRef, Snapshot, SourcePattern,
    SourceRef, SpiffeId, Stale, Standing, Timestamp,
};
use proto::manage as wire;
use tokio::time::timeout;

use super::{count, naming};
use crate::{Kind, Refusal, server::Shared};

/// Longest wait for members to say that they enforce what was written: the caller's own limit is 30 s.
const ENFORCED_WAIT_MAX: Duration = Duration::from_secs(20);

impl Shared {
    pub(super) fn list_intentions(&self) -> Result<wire::IntentionList, Refusal> {
        let snapshot = self.ready()?;
        let intentions = snapshot.authorizer.explain().iter().map(|standing| {
            let mut intention = shown(standing, &snapshot);
            self.tell_enforcement(&mut intention, &standing.id, &snapshot);
            intention
        });
        Ok(wire::IntentionList { intentions: intentions.collect() })
    }

    pub(super) async fn write_intention(
        &self,
        request: wire::WriteIntentionRequest,
        author: String,
    ) -> Result<wire::IntentionReply, Refusal> {
        let snapshot = self.ready()?;
        let action = action(&request.action)?;
        let layer = match (request.guardrail, request.shadow) {
            (false, false) => Layer::Rule,
            (false, true) => Layer::Shadow,
            (true, false) => Layer::Guardrail,
            (true, true) => {
                let message = "a guardrail cannot be on trial: leave out one of --guardrail and --shadow";
                return Err(Refusal::invalid("layer", message));
            }
        };
        if layer == Layer::Guardrail && action == Action::Allow {
            let message = "a guardrail only denies: write `hanse intention deny SRC DST --guardrail`";
            return Err(Refusal::invalid("layer", message));
        }
        let key = IntentionKey {
            source: SourcePattern::parse(&request.source, action, snapshot.own, &snapshot.members)?,
            destination: DestinationPattern::parse(&request.destination, &snapshot.members)?,
            layer,
        };
        let (state, written) = (RuleState::Is(action), author.clone());
        let body = Body::Intention(Intention { key: key.clone(), state });
        let id = self.links.write(Audience::Law, body, author).await?;
        tracing::info!(intention = %id, author = %written, %action, %layer, "intention written");
        let stands = |snapshot: &Snapshot| find(snapshot, &key, id).is_some();
        let intention = match self.published(id, stands).await {
            Some(snapshot) => find(&snapshot, &key, id).map(|standing| {
                let mut intention = shown(&standing, &snapshot);
                if intention.note.is_empty() {
                    intention.note = others_left(&snapshot, &key, id);
                }
                intention
            }),
            None => None,
        };
        let mut intention = intention.unwrap_or_else(|| {
            let note = "it is written, but in no snapshot yet".to_owned();
            unseen(&Unseen { id, key: &key, state, author: &written, note }, &snapshot)
        });
        self.enforced(&id, request.wait_ms).await;
        self.tell_enforcement(&mut intention, &id, &snapshot);
        Ok(wire::IntentionReply { intention: Some(intention) })
    }

    pub(super) async fn delete_intention(
        &self,
        request: wire::DeleteIntentionRequest,
        author: String,
    ) -> Result<wire::IntentionReply, Refusal> {
        let snapshot = self.ready()?;
        let key = self.to_delete(&request, &snapshot)?;
        let body = Body::Intention(Intention { key: key.clone(), state: RuleState::Deleted });
        let id = self.links.write(Audience::Law, body, author.clone()).await?;
        tracing::info!(intention = %id, %author, layer = %key.layer, "intention deleted");
        let before: Vec<RecordId> = versions(&snapshot, &key).into_iter().map(|standing| standing.id).collect();
        // It shows in that a version is gone, or in that the tombstone stands beside those of others.
        let shows = |snapshot: &Snapshot| {
            let left = versions(snapshot, &key);
            find(snapshot, &key, id).is_some()
                || before.iter().any(|was| !left.iter().any(|standing| standing.id == *was))
        };
        let after = self.published(id, shows).await.unwrap_or_else(|| snapshot.clone());
        let note = others_left(&after, &key, id);
        let mut deleted = unseen(&Unseen { id, key: &key, state: RuleState::Deleted, author: &author, note }, &after);
        self.enforced(&id, request.wait_ms).await;
        self.tell_enforcement(&mut deleted, &id, &after);
        Ok(wire::IntentionReply { intention: Some(deleted) })
    }

    /// Waits until every active member says that it enforces a record, for as long as was asked.
    async fn enforced(&self, id: &RecordId, wait_ms: u64) {
        let mut receipts = self.links.receipts();
        let all = async {
            while !self.links.enforcement(id).behind.is_empty() {
                if receipts.changed().await.is_err() {
                    return;
                }
            }
        };
        let limit = Duration::from_millis(wait_ms).min(ENFORCED_WAIT_MAX);
        // Whoever has not said so by then is named in the answer.
        let _ = timeout(limit, all).await;
    }

    fn tell_enforcement(&self, intention: &mut wire::Intention, id: &RecordId, snapshot: &Snapshot) {
        let Enforcement { by, behind } = self.links.enforcement(id);
        intention.enforced = count(by.len());
        intention.members = count(by.len() + behind.len());
        let laggard = |(member, age): (ClusterId, Option<Duration>)| wire::Laggard {
            cluster: naming::shown(&member, &snapshot.members),
            // Zero means "nothing known", so the freshest is a millisecond old.
            data_age_ms: naming::age_ms(age),
        };
        intention.behind = behind.into_iter().map(laggard).collect();
    }

    /// Which key the operator means: a source without a cluster reads otherwise for an allow than for a deny.
    fn to_delete(&self, request: &wire::DeleteIntentionRequest, snapshot: &Snapshot) -> Result<IntentionKey, Refusal> {
        let layer = match request.layer.as_str() {
            "" | "rule" => Layer::Rule,
            "guardrail" => Layer::Guardrail,
            "shadow" => Layer::Shadow,
            other => {
                let message = format!("layer {:?} is none of rule, guardrail and shadow", naming::cut(other));
                return Err(Refusal::invalid("layer", message));
            }
        };
        let actions = match request.action.as_str() {
            "" => vec![Action::Allow, Action::Deny],
            text => vec![action(text)?],
        };
        let destination = DestinationPattern::parse(&request.destination, &snapshot.members)?;
        let mut keys = Vec::new();
        for action in actions {
            let source = SourcePattern::parse(&request.source, action, snapshot.own, &snapshot.members)?;
            let key = IntentionKey { source, destination: destination.clone(), layer };
            if !keys.contains(&key) && !versions(snapshot, &key).is_empty() {
                keys.push(key);
            }
        }
        match keys.len() {
            1 => Ok(keys.remove(0)),
            0 => {
                let message = format!(
                    "no {layer} from {:?} to {:?} exists: `hanse intention list` shows what does",
                    naming::cut(&request.source),
                    naming::cut(&request.destination)
                );
                Err(Refusal::new(Kind::NotFound, "unknown_intention", message))
            }
            _ => {
                let message = "both an allow for this cluster's accounts and a deny for any cluster's exist: say which \
                               with --action allow or --action deny, or name the cluster";
                Err(Refusal::invalid("ambiguous", message))
            }
        }
    }

    pub(super) fn check_intention(
        &self,
        request: &wire::CheckIntentionRequest,
    ) -> Result<wire::CheckIntentionReply, Refusal> {
        let snapshot = self.ready()?;
        let source: SpiffeId = if request.source.starts_with("spiffe:") {
            request.source.parse().map_err(|error| {
                Refusal::invalid("bad_reference", format!("{:?}: {error}", naming::cut(&request.source)))
            })?
        } else {
            let source = SourceRef::parse(&request.source, &snapshot.own_name)?;
            let member = naming::member(source.cluster.as_str(), &snapshot.members)?;
            member.trust_domain.account(&source.account)
        };
        let name = ServiceRef::parse(&request.destination, &snapshot.own_name)?;
        naming::member(name.cluster.as_str(), &snapshot.members)?;
        Ok(judged(&snapshot, &self.ages(), &source, &name))
    }
}

/// Whether an account of this cluster may call the service of that DNS name: one sentence.
pub(super) fn may_call(snapshot: &Snapshot, ages: &Ages, account: &AccountRef, dns: &str) -> String {
    let source = snapshot.own_trust_domain.account(account);
    match ServiceRef::from_dns(dns) {
        Ok(name) => judged(snapshot, ages, &source, &name).detail,
        Err(_) => format!("{account} cannot call what is no service in {MESH_ZONE}"),
    }
}

fn judged(snapshot: &Snapshot, ages: &Ages, source: &SpiffeId, name: &ServiceRef) -> wire::CheckIntentionReply {
    let mut reply = wire::CheckIntentionReply {
        source: source.to_string(),
        destination: name.to_string(),
        ..wire::CheckIntentionReply::default()
    };
    let mut stale = None;
    let (reason, rule, text) = match snapshot.catalog.by_name(name) {
        None => (Some(DenialReason::UnknownService), None, None),
        Some(_) if snapshot.members.by_trust_domain(source.trust_domain()).is_none() => {
            (Some(DenialReason::UnknownSource), None, None)
        }
        Some(service) => {
            let decision = snapshot.authorizer.decide(source, service);
            // A denial without a word for it still denies.
            let age = ages.of(&service.id.cluster);
            let reason = match decision.action {
                Action::Allow if service.id.cluster != snapshot.own && service.staleness.denies(age) => {
                    stale = Some(Box::new(Stale { age, lease: service.staleness.lease }));
                    Some(DenialReason::Stale)
                }
                Action::Allow => None,
                Action::Deny => Some(decision.reason.unwrap_or(DenialReason::DefaultDeny)),
            };
            (reason, decision.rule, decision.rule_text)
        }
    };
    reply.rule = text.clone().unwrap_or_default();
    reply.rule_id = rule.map_or_else(String::new, |id| id.to_string());
    match reason {
        None => {
            reply.allowed = true;
            reply.detail = match &text {
                Some(text) => format!("{source} may reach {name}: rule \"{text}\""),
                None => format!("{source} may reach {name}"),
            };
        }
        Some(reason) => {
            reply.reason = reason.as_str().to_owned();
            let denial = Denial { rule, rule_text: text, stale, ..Denial::without_rule(reason, Some(source), name) };
            reply.detail = denial.to_string();
        }
    }
    reply
}

fn action(text: &str) -> Result<Action, Refusal> {
    text.parse().map_err(|error: String| Refusal::invalid("bad_action", error))
}

fn find(snapshot: &Snapshot, key: &IntentionKey, id: RecordId) -> Option<Standing> {
    snapshot.authorizer.standings(key).into_iter().find(|standing| standing.id == id)
}

/// Live versions of a key that say something.
fn versions(snapshot: &Snapshot, key: &IntentionKey) -> Vec<Standing> {
    let mut standings = snapshot.authorizer.standings(key);
    standings.retain(|standing| standing.state != RuleState::Deleted);
    standings
}

fn shown(standing: &Standing, snapshot: &Snapshot) -> wire::Intention {
    wire::Intention {
        source: standing.key.source.shown(&snapshot.members),
        destination: standing.key.destination.shown(&snapshot.members),
        action: state_word(standing.state).to_owned(),
        layer: standing.key.layer.to_string(),
        precedence: standing.precedence.into(),
        writer: naming::shown(&standing.writer, &snapshot.members),
        author: standing.author.clone(),
        written_at_ms: standing.written_at.as_millis(),
        id: standing.id.to_string(),
        counts: standing.counts,
        note: standing.note.clone(),
        conflict: standing.conflict,
        ..wire::Intention::default()
    }
}

/// A version that was written and is in no list: a tombstone, or too new.
struct Unseen<'a> {
    id: RecordId,
    key: &'a IntentionKey,
    state: RuleState,
    author: &'a str,
    note: String,
}

fn unseen(unseen: &Unseen<'_>, snapshot: &Snapshot) -> wire::Intention {
    let written: Timestamp = federation_identity::now();
    wire::Intention {
        source: unseen.key.source.shown(&snapshot.members),
        destination: unseen.key.destination.shown(&snapshot.members),
        action: state_word(unseen.state).to_owned(),
        layer: unseen.key.layer.to_string(),
        precedence: precedence(unseen.key),
        writer: snapshot.members.get(&snapshot.own).map_or_else(String::new, |own: &Member| own.name.to_string()),
        author: unseen.author.to_owned(),
        written_at_ms: written.as_millis(),
        id: unseen.id.to_string(),
        counts: false,
        note: unseen.note.clone(),
        conflict: false,
        ..wire::Intention::default()
    }
}

/// Consul's precedence (`max − (2 − sourceCount)`), for a key that no list shows any more.
fn precedence(key: &IntentionKey) -> u32 {
    let max: u32 = match key.destination.count() {
        2 => 9,
        1 => 6,
        _ => 3,
    };
    max - (2 - u32::from(key.source.count().min(2)))
}

/// Which versions of others stand beside what was just written; empty when none does.
fn others_left(after: &Snapshot, key: &IntentionKey, id: RecordId) -> String {
    let left: Vec<String> = versions(after, key)
        .iter()
        .filter(|standing| standing.id != id && standing.writer != after.own)
        .map(|standing| format!("{} by {}", standing.text, naming::shown(&standing.writer, &after.members)))
        .collect();
    match left.as_slice() {
        [] => String::new(),
        left => format!("versions of others stay, since this cluster may not replace them: {}", left.join("; ")),
    }
}

fn state_word(state: RuleState) -> &'static str {
    match state {
        RuleState::Is(Action::Allow) => "allow",
        RuleState::Is(Action::Deny) => "deny",
        RuleState::Deleted => "deleted",
        RuleState::NotUnderstood => "not_understood",
    }
}
