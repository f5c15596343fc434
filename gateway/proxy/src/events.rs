//! What the proxy tells others: access events for the audit log, denials going back, extensions going forward.

use std::time::Duration;

use federation_model::{ClusterId, ConnectionId, DenialReason, Digest, RecordId, Service, SpiffeId, Timestamp};

use crate::{connections::Direction, leaving::Notice};

/// Names one access event, so that a denial seen at one end can be found in the log of the other.
pub type AuditId = [u8; 16];

/// What happened to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It was let through.
    Permitted,
    /// It was refused before a byte passed.
    Denied,
    /// It was live, and was cut.
    Cut,
    /// It ended by itself.
    Closed,
}

impl Access {
    /// Short fixed word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Permitted => "permitted",
            Self::Denied => "denied",
            Self::Cut => "cut",
            Self::Closed => "closed",
        }
    }
}

/// Who reached what, or did not, and which rule decided.
#[derive(Clone, Debug)]
pub struct AccessEvent {
    pub audit: AuditId,
    pub at: Timestamp,
    pub access: Access,
    pub direction: Direction,
    /// `None` when nothing that named it was readable.
    pub connection: Option<ConnectionId>,
    /// `None` when nobody was proved.
    pub source: Option<SpiffeId>,
    /// The member whose session brought it; `None` for a neighbour within the cluster.
    pub from: Option<ClusterId>,
    /// The service as asked for; at most 254 bytes, empty when nothing readable named one.
    pub destination: String,
    /// Why it was denied or cut. A word of [`DenialReason`], or `operator`,
    /// `shutdown`, `client_broke`, `server_broke`, `stalled`, `half_closed`.
    pub reason: Option<&'static str>,
    /// The check that failed, where it is finer than the reason (`sni_mismatch`, `unknown_issuer`).
    pub check: Option<&'static str>,
    /// A sentence for a person.
    pub detail: String,
    /// The rule that decided, if one did.
    pub rule: Option<RecordId>,
    /// Snapshot revision under which it was decided; 0 without one.
    pub policy: u64,
    /// SHA-256 of the source's leaf certificate.
    pub credential: Option<Digest>,
    /// How long it lived; zero for `Permitted` and `Denied`.
    pub lived: Duration,
    pub bytes_to_server: u64,
    pub bytes_to_client: u64,
}

/// Takes access events. Must not block: the data path calls it.
pub trait AuditSink: Send + Sync + 'static {
    fn record(&self, event: AccessEvent);
}

/// An [`AuditSink`] that keeps nothing: the log lines remain.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoAudit;

impl AuditSink for NoAudit {
    fn record(&self, _event: AccessEvent) {}
}

/// A refusal on its way back to the source.
#[derive(Clone, Debug)]
pub struct Told {
    pub connection: ConnectionId,
    /// The member that the connection came from: its edge passes the refusal on. `None`: the source is in this cluster.
    pub to: Option<ClusterId>,
    /// Whose connection it is, if that was proved: the sidecar to tell when `to` is `None`.
    pub source: Option<SpiffeId>,
    pub reason: DenialReason,
    /// A sentence for a person, at most 1,024 bytes, without control characters.
    pub detail: String,
}

/// The control channels beside the data path: sidecar–edge feed, edge–edge sessions. Must not block; what cannot be
/// sent is dropped (the stream's own end is told anyway).
pub trait Control: Send + Sync + 'static {
    /// Tells the source why. Called where sealed bytes were refused, since they leave no way to answer in the stream.
    fn denied(&self, told: Told);

    /// Passes a fresh header on toward `service`: a sidecar to its edge, an edge to the edge of the service's cluster
    /// (and to nobody if that is its own).
    fn extend(&self, connection: ConnectionId, service: &Service, header: Vec<u8>);

    /// Passes on toward their source that connections shall end at their next quiet moment, since something on their
    /// path goes: an edge to the member they came from or to its sidecars, a sidecar to its edge.
    fn leaving(&self, notice: Notice);
}
