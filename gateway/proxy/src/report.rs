//! What happened to a connection, told once: to the log, the metrics and the audit log.

use std::{
    sync::{Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use federation_model::{ClusterId, ConnectionId, Digest};
use tokio::time::Instant;
use tracing::info;

use crate::{
    Core,
    authorize::Refusal,
    connections::{Connection, Cut, Direction},
    events::{Access, AccessEvent, AuditId},
    metrics,
    splice::Broken,
};

/// A connection on its way to a decision: what a denial is told of.
pub(crate) struct Asked {
    pub(crate) direction: Direction,
    pub(crate) connection: Option<ConnectionId>,
    pub(crate) from: Option<ClusterId>,
    pub(crate) credential: Option<Digest>,
    pub(crate) since: Instant,
}

impl Asked {
    pub(crate) fn new(direction: Direction, from: Option<ClusterId>) -> Self {
        Self { direction, connection: None, from, credential: None, since: Instant::now() }
    }
}

/// Log lines about callers that proved nothing, in one second. What is past it is counted and audited all the same.
const UNPROVED_LINES_MAX: u32 = 20;

/// Keeps strangers from filling the log.
#[derive(Default)]
pub(crate) struct Lines(Mutex<(u64, u32)>);

impl Lines {
    /// Whether one more line may be written in this second.
    fn take(&self) -> bool {
        let second = federation_identity::now().as_secs();
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if held.0 != second {
            *held = (second, 0);
        }
        held.1 += 1;
        held.1 <= UNPROVED_LINES_MAX
    }
}

/// How a live connection ended.
pub(crate) enum End {
    Closed,
    Broken(Broken),
    Cut(Cut),
    /// At a quiet moment, since something on its path goes.
    WoundUp,
}

impl Core {
    /// Tells of a refusal. Returns the id under which the audit log has it.
    pub(crate) fn report_denied(&self, asked: &Asked, refusal: &Refusal) -> AuditId {
        let denial = &refusal.denial;
        let audit: AuditId = rand::random();
        let reason = denial.reason.as_str();
        if denial.source.is_some() || self.unproved_lines.take() {
            let shown = denial.source.as_ref().map(ToString::to_string);
            info!(
                peer.spiffe_id = shown.as_deref().unwrap_or("unproved"),
                service = %denial.destination,
                direction = asked.direction.as_str(),
                connection = asked.connection.map(|id| id.to_string()),
                cluster = asked.from.map(|id| id.short()),
                reason,
                check = refusal.word,
                detail = %refusal.detail,
                "connection denied"
            );
        }
        metrics::decided(asked.direction, "denied", reason, asked.since);
        self.inputs.audit.record(AccessEvent {
            audit,
            at: federation_identity::now(),
            access: Access::Denied,
            direction: asked.direction,
            connection: asked.connection,
            source: denial.source.clone(),
            from: asked.from,
            destination: denial.destination.clone(),
            reason: Some(reason),
            check: Some(refusal.word),
            detail: refusal.detail.clone(),
            rule: denial.rule,
            policy: self.inputs.snapshot.borrow().as_ref().map_or(0, |snapshot| snapshot.revision),
            credential: asked.credential,
            lived: Duration::ZERO,
            bytes_to_server: 0,
            bytes_to_client: 0,
        });
        audit
    }

    /// Tells that a connection was let through.
    pub(crate) fn report_permitted(&self, connection: &Connection) {
        let event = self.event(connection, Access::Permitted, None, String::new());
        if let Some(source) = &event.source {
            info!(
                peer.spiffe_id = %source,
                service = %event.destination,
                direction = connection.direction.as_str(),
                connection = %connection.id,
                rule = event.rule.map(|rule| rule.to_string()),
                "connection permitted"
            );
        }
        metrics::decided(connection.direction, "permitted", "rule", connection.opened);
        self.inputs.audit.record(event);
    }

    /// Tells how a connection that was let through ended.
    pub(crate) fn report_ended(&self, connection: &Connection, end: &End) {
        let (access, reason, detail) = match end {
            End::Closed => (Access::Closed, None, String::new()),
            End::Broken(broken) => (Access::Closed, Some(broken.reason()), broken.to_string()),
            End::Cut(cut) => (Access::Cut, Some(cut.reason()), cut.detail()),
            End::WoundUp => (Access::Closed, Some("wound_up"), "a part of its path is replaced".to_owned()),
        };
        let mut event = self.event(connection, access, reason, detail);
        if let End::Cut(Cut::Denied(denial)) = end {
            event.rule = denial.rule;
        }
        let shown = event.source.as_ref().map(ToString::to_string);
        let (source, service, id) = (shown.unwrap_or_default(), &event.destination, connection.id);
        match end {
            End::Cut(cut) => {
                metrics::cut(connection.direction, cut.reason());
                info!(
                    peer.spiffe_id = %source,
                    service = %service,
                    direction = connection.direction.as_str(),
                    connection = %id,
                    reason = cut.reason(),
                    detail = %event.detail,
                    "connection cut"
                );
            }
            _ => tracing::debug!(
                peer.spiffe_id = %source,
                service = %service,
                direction = connection.direction.as_str(),
                connection = %id,
                reason = reason.unwrap_or("finished"),
                to_server = event.bytes_to_server,
                to_client = event.bytes_to_client,
                "connection closed"
            ),
        }
        metrics::bytes(connection.direction, event.bytes_to_server, event.bytes_to_client);
        self.inputs.audit.record(event);
    }

    fn event(
        &self,
        connection: &Connection,
        access: Access,
        reason: Option<&'static str>,
        detail: String,
    ) -> AccessEvent {
        let state = connection.state();
        let permitted = access == Access::Permitted;
        AccessEvent {
            audit: rand::random(),
            at: federation_identity::now(),
            access,
            direction: connection.direction,
            connection: Some(connection.id),
            source: Some(state.peer.id().clone()),
            from: connection.from,
            destination: connection.service.name.to_string(),
            reason,
            check: None,
            detail,
            rule: Some(state.rule),
            policy: state.policy,
            credential: Some(state.peer.leaf()),
            lived: if permitted { Duration::ZERO } else { connection.opened.elapsed() },
            bytes_to_server: connection.to_server.load(Ordering::Relaxed),
            bytes_to_client: connection.to_client.load(Ordering::Relaxed),
        }
    }
}
