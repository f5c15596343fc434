//! The proxy core of edges and sidecars: accept → sni → handshake → authorize → route → dial → splice.
//!
//! In: streams, a snapshot of the law, trust bundles, the own SVID, a dialler. Out: bytes carried for whom the law lets
//! through, refusals with their reason for the others. Never: dials without a permit or a passage, holds a workload's
//! plaintext where sealed bytes pass on, opens a listener, or knows what kind of program runs it.
//!
//! One file a stage; a program composes them by the way a stream goes:
//!
//! | way | entry | stages |
//! |---|---|---|
//! | out of an application | [`Proxy::connect`], [`Proxy::socks5`] | accept, authorize, route, dial, handshake, splice |
//! | sealed bytes on their way | [`Proxy::pass`] | sni, authorize, route, dial, splice |
//! | in to an application | [`Proxy::serve`] | sni, handshake, authorize, route, dial, splice |
//!
//! [`Proxy::run_enforcer`] must run beside them: it asks the law again for every live connection at each snapshot, cuts
//! what is denied or has outlived its credential, and renews what this process opened. While it does not run, every
//! connection is refused.

#![allow(clippy::result_large_err, reason = "a denial is large and rare: next to a handshake its move costs nothing")]

mod accept;
mod authorize;
mod connect;
mod connections;
mod dial;
mod enforce;
mod events;
pub mod frame;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod handshake;
mod leaving;
mod limits;
pub mod metrics;
mod pass;
mod renewal;
mod report;
mod route;
mod seen;
mod serve;
mod sni;
mod splice;
mod stream;

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use federation_identity::{LiveSvid, Verifier};
use federation_model::{
    Ages, ClusterId, ConnectionId, Denial, DenialReason, InstanceId, ServiceRef, Snapshot, SpiffeId, VerifiedPeer,
};
use tokio::{
    net::TcpStream,
    sync::{Semaphore, watch},
};

pub use accept::{listen, socks5::SocksError};
pub use connections::{ConnectionSummary, Connections, Cut, Direction};
pub use dial::{BoxFuture, Dial, Leave};
pub use events::{Access, AccessEvent, AuditId, AuditSink, Control, NoAudit, Told};
pub use leaving::{NOTICE_MAX, Notice, WIND_UP_MAX};
pub use limits::{CONNECTIONS_MAX, HANDSHAKES_MAX, HELD_MAX, HELLO_BYTES_MAX, HOLD, Limits, RENEWALS_MAX, SEEN_MAX};
pub use route::{Next, Route};
pub use stream::{BoxStream, Stream, boxed};

/// What a program gives to its proxy.
#[derive(Clone)]
pub struct Inputs {
    /// The law in force. `None` denies everything.
    pub snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    /// How old what the snapshot says of each other cluster is.
    pub ages: Ages,
    /// With the bundles of that same snapshot.
    pub verifier: Verifier,
    /// The identity of this process: what an application's calls are made with, and what callers find.
    pub svid: LiveSvid,
    pub dial: Arc<dyn Dial>,
    pub audit: Arc<dyn AuditSink>,
    pub control: Arc<dyn Control>,
    /// Names this process for renewals; random, made at its start.
    pub instance: InstanceId,
    pub limits: Limits,
}

/// The proxy. Clones share everything.
#[derive(Clone)]
pub struct Proxy(Arc<Core>);

pub(crate) struct Core {
    pub(crate) inputs: Inputs,
    pub(crate) connections: Arc<Connections>,
    pub(crate) unproved: Arc<Semaphore>,
    /// Places for those that wait until their next hop is back.
    pub(crate) held: Semaphore,
    pub(crate) seen: seen::Seen,
    pub(crate) unproved_lines: report::Lines,
    /// Whether somebody cuts what is to be cut. Without it nothing is let through.
    pub(crate) enforcing: AtomicBool,
}

impl Proxy {
    /// A proxy that refuses everything until [`Proxy::run_enforcer`] runs and a snapshot is there.
    pub fn new(inputs: Inputs) -> Self {
        let limits = inputs.limits;
        Self(Arc::new(Core {
            inputs,
            connections: Arc::new(Connections::new(limits.connections)),
            unproved: Arc::new(Semaphore::new(limits.handshakes.min(Semaphore::MAX_PERMITS))),
            held: Semaphore::new(limits.held.min(Semaphore::MAX_PERMITS)),
            seen: seen::Seen::default(),
            unproved_lines: report::Lines::default(),
            enforcing: AtomicBool::new(false),
        }))
    }

    /// Passes sealed bytes on: an edge's every stream, from a sidecar of its cluster (`from` is `None`) or out of the
    /// tunnel of a member, whose session was proved. Returns when the connection has ended; whatever happens is logged,
    /// audited, and told to the source.
    pub async fn pass(&self, stream: BoxStream, from: Option<(ClusterId, VerifiedPeer)>) {
        pass::pass(&self.0, stream, from).await;
    }

    /// Serves a caller: the inbound streams of a sidecar, where mTLS ends. Returns when the connection has ended.
    pub async fn serve(&self, stream: BoxStream) {
        serve::serve(&self.0, stream).await;
    }

    /// Connects an application to a service: a stream that was captured on the service's own loopback address, or that
    /// a handshake of another kind named. Returns when the connection has ended.
    ///
    /// # Errors
    /// It was refused; the client's stream was reset, and everything was logged and audited already.
    pub async fn connect<S: Stream>(&self, client: S, service: &ServiceRef, port: u16) -> Result<(), Denial> {
        connect::connect(&self.0, client, service, port).await
    }

    /// Serves one SOCKS5 client (RFC 1928): CONNECT to names in `mesh.internal`, and to addresses for which `lookup`
    /// knows a service. Returns when the connection has ended.
    ///
    /// # Errors
    /// The client did not speak SOCKS5, or was refused; it was answered, and a refusal was logged and audited already.
    pub async fn socks5(
        &self,
        client: TcpStream,
        lookup: impl Fn(Ipv4Addr) -> Option<ServiceRef> + Send,
    ) -> Result<(), SocksError> {
        accept::socks5::serve(&self.0, client, lookup).await
    }

    /// The registry of live connections.
    pub fn connections(&self) -> &Connections {
        &self.0.connections
    }

    /// Enforces the law on what is live, for as long as it is polled: to be spawned once, before the first stream.
    /// When it is dropped every connection is cut, and new ones are refused.
    pub async fn run_enforcer(&self) {
        enforce::run(&self.0).await;
    }

    /// Takes a fresh header for a live passage: moves its deadline, and passes the header on.
    ///
    /// `from` is the member whose session brought it, `None` for a sidecar of this cluster; it must be the side from
    /// which the connection came.
    ///
    /// # Errors
    /// No such passage, or the header does not prove the same source for the same connection.
    pub fn extend(&self, connection: ConnectionId, header: &[u8], from: Option<ClusterId>) -> Result<(), Denial> {
        renewal::extend(&self.0, connection, header, from)
    }

    /// Takes a denial that a later hop tells: ends the connection here, and tells those before.
    ///
    /// `from` is the member that says so, `None` for this cluster's edge. A member is heard only about connections that
    /// go to its own services. Returns whether a connection was ended.
    pub fn denied(
        &self,
        connection: ConnectionId,
        from: Option<ClusterId>,
        reason: DenialReason,
        detail: &str,
    ) -> bool {
        enforce::told(&self.0, connection, from, reason, detail)
    }

    /// Waits until each connection that lives now was quiet once or has ended, at most for `limit`; others may begin
    /// meanwhile. Returns how many never were quiet.
    pub async fn settle(&self, limit: Duration) -> usize {
        leaving::settle(&self.0, limit).await
    }

    /// Asks every connection to end at its next quiet moment that was not asked yet: this process is about to go. They
    /// are ended where they began, which is told them by [`Control::leaving`]. Returns how many these were.
    pub fn wind_up(&self) -> usize {
        leaving::ask(&self.0, self.0.connections.all())
    }

    /// Takes word from a later hop that connections shall end at their next quiet moment, and passes it on to where they
    /// began, or ends them if that is here. `from` as in [`Proxy::denied`]; at most [`NOTICE_MAX`] are looked at.
    pub fn leaving(&self, connections: &[ConnectionId], from: Option<ClusterId>) -> usize {
        leaving::heard(&self.0, connections, from)
    }

    /// Cuts every connection that a caller picks, with a reason for log and audit. Returns how many.
    pub fn cut_where(&self, why: &Cut, chosen: impl Fn(&ConnectionSummary) -> bool) -> usize {
        self.0.connections.cut_where(why, chosen)
    }
}

impl Core {
    /// Refuses while nobody would cut what must be cut.
    pub(crate) fn enforced(&self, source: Option<&SpiffeId>, service: &ServiceRef) -> Result<(), authorize::Refusal> {
        if self.enforcing.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(authorize::Refusal::new(DenialReason::NoSnapshot, source, service)
            .because("no_enforcer", "the enforcer of live connections does not run in this process"))
    }

    /// Registers, or refuses.
    pub(crate) fn register(
        &self,
        registration: connections::Registration,
    ) -> Result<connections::Registered, authorize::Refusal> {
        let source = registration.peer.id().clone();
        let service = registration.service.name.clone();
        let (policy, lease) = (registration.policy, registration.lease);
        let cluster = registration.service.id.cluster;
        let now = registration.now;
        let registered = self.connections.register(registration).map_err(|why| match why {
            connections::NotRegistered::Full => {
                authorize::Refusal::new(DenialReason::Overloaded, Some(&source), &service)
                    .because("connections_full", format!("{} connections are live", self.inputs.limits.connections))
            }
            connections::NotRegistered::SameId => {
                authorize::Refusal::new(DenialReason::Malformed, Some(&source), &service)
                    .because("connection_id_in_use", "a live connection has the same id")
            }
        })?;
        // Whoever enforces lists the registry after a snapshot came: either it saw this connection, or the snapshot it
        // acted on is seen here. The same goes for an enforcer that ended meanwhile.
        self.enforced(Some(&source), &service)?;
        let law = authorize::Law::in_force(&self.inputs, Some(&source), &service)?;
        if law.revision() != policy {
            registered.state().lease = law.again(&registered, now)?.lease;
        }
        if let Some(lease) = lease {
            self.connections.due(now.after(lease.left(self.inputs.ages.of(&cluster))));
        }
        Ok(registered)
    }
}

#[cfg(test)]
mod tests;
