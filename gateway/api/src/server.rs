//! The API as a whole: what it is made of, and on which listener each service is.

use std::{collections::BTreeSet, io, sync::Arc, time::Duration};

use federation_identity::{Signer, Verifier};
use federation_model::{AccountRef, ClusterId, ClusterName, RecordId, Snapshot, TrustDomain, VerifiedPeer};
use federation_store::Store;
use gateway_dns::Addresses;
use proto::{
    manage::manage_server::ManageServer,
    workload::{discovery_server::DiscoveryServer, workload_identity_server::WorkloadIdentityServer},
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::{Mutex, mpsc, watch},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Request, Status,
    transport::{Server, server::Router},
};

use crate::{
    Connections, Issued, Kind, Links, Peer, Refusal, Registry, Socket, System, connection::Connection, discovery,
    feed::Forks, manage, socket, tls, tokens::Tokens, workload,
};

/// HTTP/2 pings on idle connections.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// How long a ping may go unanswered.
const KEEPALIVE_LIMIT: Duration = Duration::from_secs(10);
/// Most requests at once on one connection.
const STREAMS_MAX: u32 = 64;
/// Largest block of headers in bytes.
const HEADERS_BYTES_MAX: u32 = 16 * 1024;
/// Largest request of a sidecar: the digests of 200,000 records fit.
const SUBSCRIBE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Largest request of an operator.
const MANAGE_BYTES_MAX: usize = 256 * 1024;
/// Connections that wait to be served.
const WAITING_MAX: usize = 16;
/// How long a reply waits for the snapshot that shows what was written.
const PUBLISH_LIMIT: Duration = Duration::from_secs(2);
/// How long open connections may take to end once the program stops.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// What is known at start and does not change.
#[derive(Clone, Debug)]
pub struct Settings {
    pub cluster: ClusterName,
    pub cluster_id: ClusterId,
    pub trust_domain: TrustDomain,
    /// Shown by `status`.
    pub version: String,
    /// `host:port` that sidecars are told for the mesh listener.
    pub mesh_endpoint: String,
    /// `host:port` that sidecars are told for this API over TLS.
    pub discovery_endpoint: String,
    /// Life of the SVIDs that workloads get.
    pub svid_ttl: Duration,
    /// Uids that may manage the gateway besides root and its own.
    pub operators: Vec<u32>,
    /// Who enrols by uid, at first; [`Api::set_workloads`] changes it.
    pub workloads: Vec<(u32, AccountRef)>,
}

/// What the API works with.
pub struct Inputs {
    pub settings: Settings,
    pub links: Arc<dyn Links>,
    pub connections: Arc<dyn Connections>,
    pub system: Arc<dyn System>,
    pub signer: Arc<dyn Signer>,
    pub store: Arc<dyn Store>,
    pub registry: Registry,
    pub issued: Issued,
}

/// What every service shares.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) links: Arc<dyn Links>,
    pub(crate) connections: Arc<dyn Connections>,
    pub(crate) system: Arc<dyn System>,
    pub(crate) signer: Arc<dyn Signer>,
    pub(crate) tokens: Tokens,
    pub(crate) registry: Registry,
    pub(crate) issued: Issued,
    pub(crate) workloads: watch::Sender<Vec<(u32, AccountRef)>>,
    pub(crate) addresses: Addresses,
    pub(crate) forks: Forks,
    pub(crate) refusals: workload::Refusals,
    /// Held while a service is registered.
    pub(crate) registering: Mutex<()>,
    pub(crate) feeds: TaskTracker,
    pub(crate) stop: CancellationToken,
    pub(crate) started: Instant,
}

impl Shared {
    /// The newest snapshot.
    pub(crate) fn ready(&self) -> Result<Arc<Snapshot>, Refusal> {
        self.links.snapshot().borrow().clone().ok_or_else(Refusal::not_ready)
    }

    /// Whether the key of a peer that proved itself is still believed.
    ///
    /// # Errors
    /// The key of the peer, or of its issuer, was revoked since it proved itself.
    pub(crate) fn not_revoked(&self, peer: &VerifiedPeer, snapshot: &Snapshot) -> Result<(), Refusal> {
        if [peer.key(), peer.issuer()].iter().any(|key| snapshot.bundles.is_revoked(peer.trust_domain(), key)) {
            let message = "the key on this connection was revoked: enrol anew with another";
            return Err(Refusal::new(Kind::NotProved, "revoked", message));
        }
        Ok(())
    }

    /// Waits until a snapshot shows what was just written, but not for ever: the write stands in any case.
    pub(crate) async fn published(&self, record: RecordId, shows: impl Fn(&Snapshot) -> bool) -> Option<Arc<Snapshot>> {
        let mut snapshots = self.links.snapshot();
        let shown = snapshots.wait_for(|snapshot| snapshot.as_deref().is_some_and(&shows));
        match timeout(PUBLISH_LIMIT, shown).await {
            Ok(Ok(snapshot)) => snapshot.clone(),
            _ => {
                tracing::warn!(%record, "what was written is in no snapshot yet");
                None
            }
        }
    }
}

/// The gRPC services of a gateway. A clone is another handle on the same.
#[derive(Clone)]
pub struct Api(Arc<Shared>);

impl Api {
    /// `stop` ends every listener and feed.
    pub fn new(inputs: Inputs, stop: CancellationToken) -> Self {
        let Inputs { settings, links, connections, system, signer, store, registry, issued } = inputs;
        let workloads = watch::Sender::new(settings.workloads.clone());
        Self(Arc::new(Shared {
            settings,
            links,
            connections,
            system,
            signer,
            tokens: Tokens::new(store),
            registry,
            issued,
            workloads,
            addresses: Addresses::new(),
            forks: Forks::default(),
            refusals: workload::Refusals::default(),
            registering: Mutex::new(()),
            feeds: TaskTracker::new(),
            stop,
            started: Instant::now(),
        }))
    }

    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// Replaces the table of who enrols by uid. SVIDs that were issued stay good until they end.
    pub fn set_workloads(&self, workloads: Vec<(u32, AccountRef)>) {
        self.0.workloads.send_replace(workloads);
    }

    /// What `hanse status` says: for pages that show it.
    pub fn status(&self) -> proto::manage::StatusReply {
        self.0.status()
    }

    /// Serves manage, and enrolment by uid, on the Unix socket until the program stops.
    ///
    /// # Errors
    /// The HTTP/2 server failed.
    pub async fn serve_socket(&self, socket: Socket) -> Result<(), tonic::transport::Error> {
        let mut operators: BTreeSet<u32> = self.0.settings.operators.iter().copied().collect();
        operators.extend([0, nix::unistd::geteuid().as_raw()]);
        let operators: Arc<[u32]> = operators.into_iter().collect();
        let manage =
            ManageServer::new(manage::Service(Arc::clone(&self.0))).max_decoding_message_size(MANAGE_BYTES_MAX);
        // Around the whole service: a request that is added later is judged too.
        let manage = tonic::service::interceptor::InterceptedService::new(manage, operators_only);
        let identity = WorkloadIdentityServer::new(workload::Service(Arc::clone(&self.0)));
        let router = server().add_service(manage).add_service(identity);
        let (sender, connections) = mpsc::channel(WAITING_MAX);
        let accept = socket::accept(socket, operators, sender, self.0.stop.clone());
        self.serve(router, connections, accept).await
    }

    /// Serves enrolment by token, renewal and the feed over TLS until the program stops. `tls` is made by
    /// `federation_identity::tls::workload_server` with the same `verifier`.
    ///
    /// # Errors
    /// The HTTP/2 server failed.
    pub async fn serve_tls(
        &self,
        listener: TcpListener,
        tls: Arc<ServerConfig>,
        verifier: Verifier,
    ) -> Result<(), tonic::transport::Error> {
        let identity = WorkloadIdentityServer::new(workload::Service(Arc::clone(&self.0)));
        let discovery = DiscoveryServer::new(discovery::Service(Arc::clone(&self.0)))
            .max_decoding_message_size(SUBSCRIBE_BYTES_MAX);
        let router = server().add_service(identity).add_service(discovery);
        let (sender, connections) = mpsc::channel(WAITING_MAX);
        let accept = tls::accept(listener, tls, verifier, sender, self.0.stop.clone());
        self.serve(router, connections, accept).await
    }

    async fn serve<S>(
        &self,
        router: Router,
        connections: mpsc::Receiver<io::Result<Connection<S>>>,
        accept: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let incoming = ReceiverStream::new(connections);
        let served = router.serve_with_incoming_shutdown(incoming, self.0.stop.clone().cancelled_owned());
        tokio::pin!(served);
        tokio::select! {
            ended = &mut served => return ended,
            () = accept => {}
        }
        // Stopping: requests under way may end, idle peers may not keep us.
        timeout(DRAIN_LIMIT, served).await.unwrap_or(Ok(()))
    }
}

fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_LIMIT))
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADERS_BYTES_MAX)
}

/// Lets operators pass and nobody else: who came another way, or is unknown, is refused.
fn operators_only(request: Request<()>) -> Result<Request<()>, Status> {
    match Peer::of(&request)? {
        Peer::Local { operator: true, .. } => Ok(request),
        Peer::Local { uid, .. } => {
            let message =
                format!("uid {uid} may not manage this gateway: run this as root or as the gateway's own user");
            Err(Refusal::new(Kind::NotPermitted, "not_an_operator", message).into())
        }
        Peer::Remote { .. } => {
            Err(Refusal::new(Kind::NotPermitted, "not_here", "a gateway is managed over its Unix socket alone").into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_operator_on_the_unix_socket_manages() {
        let ask = |peer: Option<Peer>| {
            let mut request = Request::new(());
            if let Some(peer) = peer {
                request.extensions_mut().insert(peer);
            }
            operators_only(request).map(|_| ()).map_err(|status| (status.code(), status.message().to_owned()))
        };
        assert_eq!(ask(Some(Peer::Local { uid: 1000, operator: true })), Ok(()));
        let (code, message) = ask(Some(Peer::Local { uid: 1001, operator: false })).expect_err("another user");
        assert_eq!(code, tonic::Code::PermissionDenied);
        assert!(message.contains("uid 1001"), "{message}");
        assert_eq!(
            ask(Some(Peer::Remote { peer: None, address: std::net::Ipv4Addr::LOCALHOST.into() }))
                .expect_err("remote")
                .0,
            tonic::Code::PermissionDenied
        );
        assert_eq!(ask(None).expect_err("unknown").0, tonic::Code::Unauthenticated);
    }
}
