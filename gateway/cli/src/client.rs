//! A typed client of the manage API over the gateway's Unix socket.

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use proto::manage::{self, manage_client::ManageClient};
use tokio::net::UnixStream;
use tonic::{
    Code, Request, Response, Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::{
    exit,
    verbs::{StaleArgs, WhenStaleArg},
};

/// How long opening the socket may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long the gateway may take to answer. Joining and checking make real handshakes and get twice as long.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(30);
/// How long a backup may take.
const BACKUP_LIMIT: Duration = Duration::from_secs(60 * 60);
/// Largest reply that is read: a list of 100,000 intentions fits.
pub const REPLY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Longest message of the gateway that is shown.
const MESSAGE_CHARS_MAX: usize = 4096;
/// Metadata in which the gateway puts its fixed word for a refusal.
const REASON_KEY: &str = "hanse-reason";

/// Why a call failed, and what to do. `Display` is one line without control characters.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    #[error(
        "there is no socket {}: is `hanse gateway` running? Its config names the socket (key `socket`, by default \
         /run/hanse/hanse.sock); give it with --socket or HANSE_SOCKET",
        .0.display()
    )]
    NoSocket(PathBuf),
    #[error("nothing answers on {}: the gateway that made this socket has stopped; start `hanse gateway`", .0.display())]
    Refused(PathBuf),
    #[error("may not open {}: run this as root or as the user of the gateway", .0.display())]
    NotPermitted(PathBuf),
    #[error("cannot reach the gateway on {}: {message}", socket.display())]
    Unreachable { socket: PathBuf, message: String },
    /// The connection broke with a request under way.
    #[error(
        "the gateway ended with the request in its hands, and the outcome is unknown: look with a list or \
         `hanse status` before you try again ({0})"
    )]
    Lost(String),
    /// The gateway answered, with an error.
    #[error("{}", shown(.0))]
    Answer(Box<Status>),
}

impl ClientError {
    /// The exit code of this failure (see [`exit`]).
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoSocket(_) | Self::Refused(_) | Self::Unreachable { .. } | Self::Lost(_) => exit::UNREACHABLE,
            Self::NotPermitted(_) => exit::NOT_PERMITTED,
            Self::Answer(status) => exit::of_code(status.code()),
        }
    }

    /// The gateway's fixed word for what was wrong (`token_expired`), if it answered with one.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Answer(status) => status.metadata().get(REASON_KEY).and_then(|word| word.to_str().ok()),
            _ => None,
        }
    }
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        // A status that came over the wire has no cause; one that was made here tells of a broken connection.
        match status.source() {
            Some(cause) if status.code() == Code::Unknown => Self::Lost(cause.to_string()),
            _ => Self::Answer(Box::new(status)),
        }
    }
}

fn shown(status: &Status) -> String {
    let clean = crate::format::clean(status.message());
    let message: String = clean.chars().take(MESSAGE_CHARS_MAX).collect();
    match status.code() {
        // With a reason of its own the gateway did answer: that it cannot yet.
        Code::Unavailable | Code::DeadlineExceeded if status.metadata().get(REASON_KEY).is_none() => {
            format!("the gateway did not answer: {message}")
        }
        Code::Unimplemented => {
            format!("this gateway does not know that request (is it older than this hanse?): {message}")
        }
        _ if message.is_empty() => format!("the gateway answered {:?} and no more", status.code()),
        _ => message,
    }
}

/// One gateway. Cheap to clone; every call may run beside others.
#[derive(Debug, Clone)]
pub struct Client(ManageClient<Channel>);

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident: $rpc:ident($request:ident) -> $reply:ident;)*) => {
        $(
            $(#[$doc])*
            pub async fn $name(&self) -> Result<manage::$reply, ClientError> {
                let request = limited(manage::$request {}, REQUEST_LIMIT);
                Ok(self.0.clone().$rpc(request).await.map(Response::into_inner)?)
            }
        )*
    };
}

impl Client {
    /// Opens the gateway's Unix socket.
    ///
    /// # Errors
    /// The socket is not there, nothing answers on it, or it may not be opened.
    pub async fn connect(socket: &Path) -> Result<Self, ClientError> {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The authority has no meaning on a Unix socket, yet HTTP/2 wants one.
        let endpoint = Endpoint::from_static("http://hanse.local").connect_timeout(CONNECT_LIMIT);
        match endpoint.connect_with_connector(connector).await {
            Ok(channel) => Ok(Self(ManageClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX))),
            Err(error) => Err(unreached(socket, &error)),
        }
    }

    calls! {
        /// What the gateway is and how it is doing.
        status: status(StatusRequest) -> StatusReply;
        /// Join tokens that this cluster issued.
        link_tokens: list_tokens(ListTokensRequest) -> TokenList;
        /// Every member of the federation.
        cluster_list: list_clusters(ListClustersRequest) -> ClusterList;
        /// Every workload that enrolled here.
        workload_list: list_workloads(ListWorkloadsRequest) -> WorkloadList;
        /// Every service that is visible here.
        service_list: list_services(ListServicesRequest) -> ServiceList;
        /// Every intention, in order of precedence.
        intention_list: list_intentions(ListIntentionsRequest) -> IntentionList;
        /// Certificates and trust bundles.
        cert_status: cert_status(CertStatusRequest) -> CertStatusReply;
        /// The certificates of this cluster that have not ended, and every member's revoked keys.
        cert_list: list_certificates(ListCertificatesRequest) -> IssuedList;
        /// Makes another intermediate, which signs from then on.
        rotate_intermediate: rotate_intermediate(RotateIntermediateRequest) -> RotateIntermediateReply;
        /// Gives up the rotation of the root.
        abort_rotation: abort_rotation(AbortRotationRequest) -> RotationReply;
        /// Reads the configuration again.
        reload: reload(ReloadRequest) -> ReloadReply;
    }

    /// Issues a one-time token for the cluster `joiner`. `ttl`: 15 min if `None`, at most a day.
    pub async fn link_token(
        &self,
        joiner: &str,
        ttl: Option<Duration>,
        lawmaker: bool,
    ) -> Result<manage::IssueTokenReply, ClientError> {
        let request = manage::IssueTokenRequest { cluster: joiner.into(), ttl_seconds: seconds(ttl), lawmaker };
        Ok(self.0.clone().issue_token(limited(request, REQUEST_LIMIT)).await?.into_inner())
    }

    /// Joins the federation that issued `token`.
    pub async fn link_join(&self, token: &str) -> Result<manage::JoinReply, ClientError> {
        let request = manage::JoinRequest { token: token.into() };
        Ok(self.0.clone().join(limited(request, 2 * REQUEST_LIMIT)).await?.into_inner())
    }

    /// Every link, or that with one member.
    pub async fn link_list(&self, cluster: Option<&str>) -> Result<manage::LinkList, ClientError> {
        let request = manage::ListLinksRequest { cluster: cluster.unwrap_or_default().into() };
        Ok(self.0.clone().list_links(limited(request, REQUEST_LIMIT)).await?.into_inner())
    }

    /// Shuts a member out here.
    pub async fn cluster_block(&self, cluster: &str) -> Result<manage::MembershipReply, ClientError> {
        let request = manage::ClusterRequest { cluster: cluster.into() };
        Ok(self.0.clone().block_cluster(limited(request, REQUEST_LIMIT)).await?.into_inner())
    }

    /// Lets a member in here that was blocked, held or suspended.
    pub async fn cluster_approve(&self, cluster: &str) -> Result<manage::MembershipReply, ClientError> {
        let request = manage::ClusterRequest { cluster: cluster.into() };
        Ok(self.0.clone().approve_cluster(limited(request, REQUEST_LIMIT)).await?.into_inner())
    }

    /// Signs, as a lawmaker, that a member is out.
    pub async fn cluster_evict(&self, cluster: &str) -> Result<manage::MembershipReply, ClientError> {
        let request = manage::ClusterRequest { cluster: cluster.into() };
        Ok(self.0.clone().evict_cluster(limited(request, REQUEST_LIMIT)).await?.into_inner())
    }

    /// Makes a member a lawmaker, or says that it is none.
    pub async fn cluster_lawmaker(&self, cluster: &str, on: bool) -> Result<manage::MembershipReply, ClientError> {
        let request = manage::SetLawmakerRequest { cluster: cluster.into(), on };
        Ok(self.0.clone().set_lawmaker(limited(request, REQUEST_LIMIT)).await?.into_inner())
    }

    /// Leaves the federation.
    pub async fn cluster_leave(&self) -> Result<manage::LeaveFederationReply, ClientError> {
        let request = manage::LeaveFederationRequest {};
        Ok(self.0.clone().leave_federation(limited(request, 2 * REQUEST_LIMIT)).await?.into_inner())
    }

    /// Starts a rotation of the root, or goes on with it; it does not wait for the members `without`.
    pub async fn rotate_root(&self, without: &[String]) -> Result<manage::RotationReply, ClientError> {
        let request = manage::RotateRootRequest { without: without.to_vec() };
        Ok(self.0.clone().rotate_root(limited(request, REQUEST_LIMIT)).await?.into_inner())
    }

    /// Revokes the key of the certificate with this serial number, in hexadecimal.
    pub async fn revoke(&self, serial: &str) -> Result<manage::RevokeReply, ClientError> {
        let request = manage::RevokeCertificateRequest { serial: serial.into() };
        Ok(self.0.clone().revoke_certificate(limited(request, REQUEST_LIMIT)).await?.into_inner())
    }

    /// Issues a one-time token for a workload, `account[.namespace]`, that works for 15 minutes.
    pub async fn workload_token(&self, account: &str) -> Result<manage::IssueWorkloadTokenReply, ClientError> {
        self.workload_token_for(account, None).await
    }

    /// [`Client::workload_token`] with a life of its own, at most a day.
    pub async fn workload_token_for(
        &self,
        account: &str,
        ttl: Option<Duration>,
    ) -> Result<manage::IssueWorkloadTokenReply, ClientError> {
        let request = manage::IssueWorkloadTokenRequest { account: account.into(), ttl_seconds: seconds(ttl) };
        Ok(self.0.clone().issue_workload_token(limited(request, REQUEST_LIMIT)).await?.into_inner())
    }

    /// Registers a service of this cluster. No `accounts`: the account of its own name.
    pub async fn service_register(
        &self,
        service: &str,
        port: u16,
        accounts: &[String],
        stale: StaleArgs,
    ) -> Result<manage::ServiceReply, ClientError> {
        let (when_stale, lease_ms) = in_words(stale);
        let (service, accounts) = (service.into(), accounts.to_vec());
        let request = manage::RegisterServiceRequest { service, port: port.into(), accounts, when_stale, lease_ms };
        Ok(self.0.clone().register_service(limited(request, REQUEST_LIMIT)).await?.into_inner())
    }

    /// Shows a service to the members `to` and to no other; empty: to all; `None`: to nobody any more.
    pub async fn service_export(
        &self,
        service: &str,
        to: Option<&[String]>,
        stale: StaleArgs,
    ) -> Result<manage::ServiceReply, ClientError> {
        let (when_stale, lease_ms) = in_words(stale);
        let (service, nobody, to) = (service.into(), to.is_none(), to.unwrap_or_default().to_vec());
        let request = manage::ExportServiceRequest { service, to, nobody, when_stale, lease_ms };
        Ok(self.0.clone().export_service(limited(request, REQUEST_LIMIT)).await?.into_inner())
    }

    /// Writes an intention; `action` is `allow` or `deny`. `wait`: for every member to say that it is in force, at most
    /// 20 s.
    pub async fn intention_write(
        &self,
        source: &str,
        destination: &str,
        action: &str,
        guardrail: bool,
        shadow: bool,
        wait: Duration,
    ) -> Result<manage::IntentionReply, ClientError> {
        let request = manage::WriteIntentionRequest {
            source: source.into(),
            destination: destination.into(),
            action: action.into(),
            guardrail,
            shadow,
            wait_ms: millis(wait),
        };
        Ok(self.0.clone().write_intention(limited(request, REQUEST_LIMIT)).await?.into_inner())
    }

    /// Takes an intention back. `layer`: `rule`, `guardrail` or `shadow`; `action`: `allow`, `deny`, or empty for
    /// whichever exists.
    pub async fn intention_delete(
        &self,
        source: &str,
        destination: &str,
        layer: &str,
        action: &str,
        wait: Duration,
    ) -> Result<manage::IntentionReply, ClientError> {
        let request = manage::DeleteIntentionRequest {
            source: source.into(),
            destination: destination.into(),
            layer: layer.into(),
            action: action.into(),
            wait_ms: millis(wait),
        };
        Ok(self.0.clone().delete_intention(limited(request, REQUEST_LIMIT)).await?.into_inner())
    }

    /// Whether `source` may call `destination`.
    pub async fn intention_check(
        &self,
        source: &str,
        destination: &str,
    ) -> Result<manage::CheckIntentionReply, ClientError> {
        let request = manage::CheckIntentionRequest { source: source.into(), destination: destination.into() };
        Ok(self.0.clone().check_intention(limited(request, REQUEST_LIMIT)).await?.into_inner())
    }

    /// What the mesh DNS would answer; `account` asks whether it may call, too.
    pub async fn dns(
        &self,
        name: &str,
        kind: &str,
        account: Option<&str>,
    ) -> Result<manage::LookupDnsReply, ClientError> {
        let request = manage::LookupDnsRequest {
            name: name.into(),
            r#type: kind.into(),
            account: account.unwrap_or_default().into(),
        };
        Ok(self.0.clone().lookup_dns(limited(request, REQUEST_LIMIT)).await?.into_inner())
    }

    /// A sealed copy of the whole store, piece by piece.
    pub async fn create_backup(&self) -> Result<Streaming<manage::BackupPiece>, ClientError> {
        let request = limited(manage::CreateBackupRequest {}, BACKUP_LIMIT);
        Ok(self.0.clone().create_backup(request).await?.into_inner())
    }

    /// Diagnoses the cluster and its links.
    pub async fn check(&self) -> Result<manage::CheckReply, ClientError> {
        Ok(self.0.clone().check(limited(manage::CheckRequest {}, 2 * REQUEST_LIMIT)).await?.into_inner())
    }

    /// Sets what the gateway logs.
    pub async fn log(&self, level: &str) -> Result<manage::SetLogLevelReply, ClientError> {
        let request = manage::SetLogLevelRequest { level: level.into() };
        Ok(self.0.clone().set_log_level(limited(request, REQUEST_LIMIT)).await?.into_inner())
    }
}

fn limited<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn seconds(ttl: Option<Duration>) -> u64 {
    ttl.map_or(0, |ttl| ttl.as_secs())
}

/// What kept us from the socket: the transport wraps the reason several times.
fn unreached(socket: &Path, error: &(dyn Error + 'static)) -> ClientError {
    let socket = socket.to_owned();
    let mut cause = Some(error);
    let mut message = error.to_string();
    while let Some(error) = cause {
        message = error.to_string();
        match error.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::NotFound) => return ClientError::NoSocket(socket),
            Some(io::ErrorKind::ConnectionRefused) => return ClientError::Refused(socket),
            Some(io::ErrorKind::PermissionDenied) => return ClientError::NotPermitted(socket),
            _ => cause = error.source(),
        }
    }
    ClientError::Unreachable { socket, message }
}
/// As requests carry it: empty and zero leave it as it was.
fn in_words(stale: StaleArgs) -> (String, u64) {
    let lease = stale.lease.map_or(0, |lease| u64::try_from(lease.as_millis()).unwrap_or(u64::MAX));
    (stale.when_stale.map_or("", WhenStaleArg::as_str).to_owned(), lease)
}
