//! `hanse check`: looks at this cluster and tries its links. Every id is fixed, and every failure says what to do.

use std::{sync::Arc, time::Duration};

use federation_identity::now;
use federation_model::{ClusterName, Snapshot};
use proto::manage as wire;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{Check, CheckState, LinkPhase, LinkState, server::Shared};

/// How long one link's probe may take.
const PROBE_LIMIT: Duration = Duration::from_secs(10);
/// Probes at once.
const PROBES_MAX: usize = 32;
/// Clock offset from which on a person should look.
const OFFSET_WARN_MS: u64 = 1_000;
/// Clock offset beyond which headers and joins are refused.
const OFFSET_FAIL_MS: u64 = 5 * 60 * 1_000;
/// Age of a member's data from which on a link is not healthy: three missed heartbeats.
const AGE_WARN: Duration = Duration::from_secs(3);

impl Shared {
    pub(super) async fn check(&self) -> wire::CheckReply {
        let mut checks = Vec::new();
        let snapshot = self.ready();
        checks.push(match &snapshot {
            Ok(snapshot) => ok("gateway.snapshot", "", format!("revision {}", snapshot.revision)),
            Err(_) => failed(
                "gateway.snapshot",
                "",
                "the gateway has no picture of the federation, so it denies every call".into(),
                "see the gateway's log and `hanse status`: its store may be damaged",
            ),
        });
        checks.extend(self.certificates());
        checks.extend(self.system.checks().await);
        if let Ok(snapshot) = &snapshot {
            checks.extend(self.services(snapshot));
            checks.push(conflicts(snapshot));
        }
        let states = self.links.statuses();
        checks.extend(states.iter().filter(|state| state.phase == LinkPhase::Up).filter_map(stale));
        checks.extend(self.probes(states).await);
        wire::CheckReply { results: checks.into_iter().map(result).collect() }
    }

    fn certificates(&self) -> Vec<Check> {
        let now = now();
        let one = |certificate: crate::Certificate| {
            let life = certificate.not_after.since(certificate.not_before);
            let left = certificate.not_after.since(now);
            let id = "identity.certificate";
            if now >= certificate.not_after {
                let fix = "restart the gateway; if it stays so, its clock or its keys are wrong";
                failed(id, certificate.kind, "it has ended".into(), fix)
            } else if left < life / 5 {
                let detail = format!("it ends in {} s and was not renewed", left.as_secs());
                warning(id, certificate.kind, detail, "see the gateway's log for why it was not renewed")
            } else {
                ok(id, certificate.kind, format!("it ends in {} s", left.as_secs()))
            }
        };
        self.system.certificates().into_iter().map(one).collect()
    }

    /// Own services that nothing serves.
    fn services(&self, snapshot: &Snapshot) -> Vec<Check> {
        let own = snapshot.catalog.iter().filter(|service| service.id.cluster == snapshot.own);
        own.map(|service| {
            let (id, name) = ("service.instances", service.name.to_string());
            match self.registry.instances(&service.id.service, &service.id.namespace).len() {
                0 => {
                    let fix = "start the sidecar of an account that may serve it, with a [[serve]] for it";
                    warning(id, &name, "nothing serves it right now".into(), fix)
                }
                number => ok(id, &name, format!("{number} instances")),
            }
        })
        .collect()
    }

    /// Tries every link that is not blocked, several at once.
    async fn probes(&self, states: Vec<LinkState>) -> Vec<Check> {
        let mut waiting: Vec<LinkState> =
            states.into_iter().filter(|state| !matches!(state.phase, LinkPhase::Out(_))).rev().collect();
        let (mut tasks, mut checks) = (JoinSet::new(), Vec::new());
        loop {
            while tasks.len() < PROBES_MAX {
                let Some(state) = waiting.pop() else { break };
                let links = Arc::clone(&self.links);
                tasks.spawn(async move {
                    let start = Instant::now();
                    let probed = timeout(PROBE_LIMIT, links.probe(state.member)).await;
                    (state.name, start.elapsed(), probed)
                });
            }
            match tasks.join_next().await {
                None => break,
                Some(Err(error)) => tracing::error!(%error, "a probe failed"),
                Some(Ok((name, took, probed))) => {
                    let mut of_one = match probed {
                        Ok(Ok(probed)) => vec![
                            ok("link.handshake", name.as_str(), probed.detail),
                            clock(&name, probed.clock_offset_ms),
                        ],
                        Ok(Err(refusal)) => {
                            let fix = "see that its edge runs, that its endpoint is reachable over UDP, and `hanse link status`";
                            vec![failed("link.handshake", name.as_str(), refusal.message, fix)]
                        }
                        Err(_) => {
                            let detail = format!("no answer within {} s", PROBE_LIMIT.as_secs());
                            let fix = "see that its edge runs and that no firewall drops UDP between the two";
                            vec![failed("link.handshake", name.as_str(), detail, fix)]
                        }
                    };
                    of_one.iter_mut().for_each(|check| check.took = took);
                    checks.extend(of_one);
                }
            }
        }
        checks.sort_by(|a, b| (&a.subject, a.id).cmp(&(&b.subject, b.id)));
        checks
    }
}

fn clock(name: &ClusterName, offset_ms: i64) -> Check {
    let (id, detail) = ("link.clock", format!("its clock is {offset_ms} ms from ours"));
    let fix = "set both clocks by NTP: beyond 5 min joins and calls are refused";
    match offset_ms.unsigned_abs() {
        ..OFFSET_WARN_MS => ok(id, name.as_str(), detail),
        OFFSET_WARN_MS..OFFSET_FAIL_MS => warning(id, name.as_str(), detail, fix),
        _ => failed(id, name.as_str(), detail, fix),
    }
}

/// A link that is up and brings nothing.
fn stale(state: &LinkState) -> Option<Check> {
    let fix = "the session stands but its peer is silent: see the log of both edges";
    match state.data_age {
        Some(age) if age <= AGE_WARN => None,
        Some(age) => {
            let detail = format!("its last data is {} s old", age.as_secs());
            Some(warning("link.fresh", state.name.as_str(), detail, fix))
        }
        None => Some(warning("link.fresh", state.name.as_str(), "no data came yet".into(), fix)),
    }
}

fn conflicts(snapshot: &Snapshot) -> Check {
    match snapshot.authorizer.conflict_count() {
        0 => ok("law.conflicts", "", "none".into()),
        number => {
            let detail = format!("{number} intentions have concurrent versions; calls pass only if each lets them");
            warning("law.conflicts", "", detail, "write them again: `hanse intention list` shows which")
        }
    }
}

fn check(id: &'static str, state: CheckState, subject: &str, detail: String, fix: &str) -> Check {
    Check { id, state, subject: subject.into(), detail, fix: fix.into(), took: Duration::ZERO }
}

fn ok(id: &'static str, subject: &str, detail: String) -> Check {
    check(id, CheckState::Ok, subject, detail, "")
}

fn warning(id: &'static str, subject: &str, detail: String, fix: &str) -> Check {
    check(id, CheckState::Warning, subject, detail, fix)
}

fn failed(id: &'static str, subject: &str, detail: String, fix: &str) -> Check {
    check(id, CheckState::Failed, subject, detail, fix)
}

fn result(check: Check) -> wire::CheckResult {
    wire::CheckResult {
        id: check.id.to_owned(),
        state: check.state.as_str().to_owned(),
        subject: check.subject,
        detail: check.detail,
        fix: check.fix,
        ms: u64::try_from(check.took.as_millis()).unwrap_or(u64::MAX),
    }
}
