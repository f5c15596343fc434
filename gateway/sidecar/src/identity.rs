//! Who this sidecar is: enrols once, renews at half life, keeps its key to itself.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use federation_identity::{LiveSvid, Svid, SvidKey, Verifier, now, renewal_due, tls};
use federation_model::{Bundles, ClusterId, ClusterName, FederationId, ReplicationKey, SpiffeId, TrustBundle};
use proto::workload::{EnrolRequest, Identity, RenewRequest, workload_identity_client::WorkloadIdentityClient};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Channel};

use crate::{config::Enrolment, connect, state::State};

/// First and longest wait between two tries to enrol or to renew.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// How long one call to the edge may take.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// Largest token file.
const TOKEN_BYTES_MAX: u64 = 4096;

/// What enrolment said, understood.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    pub(crate) id: SpiffeId,
    pub(crate) cluster: ClusterId,
    pub(crate) cluster_name: ClusterName,
    pub(crate) replication_key: ReplicationKey,
    pub(crate) federation: FederationId,
    /// Where the edge's mesh listener is.
    pub(crate) mesh: String,
    /// Where the edge's discovery listener is.
    pub(crate) discovery: String,
    roots: Vec<Vec<u8>>,
}

impl Home {
    fn understand(identity: &Identity) -> Result<Self> {
        Ok(Self {
            id: identity.spiffe_id.parse().context("the edge's spiffe_id")?,
            cluster: identity
                .cluster
                .as_slice()
                .try_into()
                .map_err(anyhow::Error::msg)
                .context("the edge's cluster")?,
            cluster_name: identity.cluster_name.parse().context("the edge's cluster_name")?,
            replication_key: ReplicationKey(
                identity.replication_key.as_slice().try_into().context("the edge's replication_key")?,
            ),
            federation: identity
                .federation
                .as_slice()
                .try_into()
                .map_err(anyhow::Error::msg)
                .context("the edge's federation")?,
            mesh: identity.mesh_endpoint.clone(),
            discovery: identity.discovery_endpoint.clone(),
            roots: identity.roots.clone(),
        })
    }

    /// The roots of the own trust domain: what the sidecar trusts before its first record.
    pub(crate) fn bundles(&self) -> Result<Bundles> {
        let mut bundles = Bundles::default();
        let trust_domain = self.id.trust_domain().clone();
        bundles.update(TrustBundle { trust_domain, sequence: 0, roots: self.roots.clone() })?;
        Ok(bundles)
    }

    /// The only identity that the edge of this cluster may have.
    pub(crate) fn edge(&self) -> SpiffeId {
        self.id.trust_domain().edge(&self.cluster_name)
    }
}

/// Takes the identity kept from before if it has not ended, else enrols, as often as it takes.
///
/// # Errors
/// The edge refused in a way that trying again cannot mend: the token is void, the account is another's.
pub(crate) async fn establish(state: &State, enrolment: &Enrolment, live: &LiveSvid) -> Result<Home> {
    let kept = state.identity();
    if let Some((key, Some(identity))) = &kept
        && identity.not_after_ms > now().as_millis()
        && let Ok(home) = accept(live, SvidKey::from_pkcs8(key)?, identity)
    {
        tracing::info!(spiffe_id = %home.id, "identity taken from disk");
        return Ok(home);
    }
    let key = match kept {
        Some((key, _)) => SvidKey::from_pkcs8(&key).context("the key in state_dir: remove it to enrol anew")?,
        None => {
            let key = SvidKey::generate();
            state.keep_key(&key.to_pkcs8())?;
            state.keep_enrolled_key(&key.to_pkcs8())?;
            key
        }
    };
    let mut wait = RETRY.0;
    loop {
        match timeout(CALL_LIMIT, enrol(enrolment, &key)).await {
            Ok(Ok(identity)) => {
                let home = accept(live, key, &identity)?;
                state.keep_identity(&identity)?;
                tracing::info!(spiffe_id = %home.id, "enrolled");
                return Ok(home);
            }
            Ok(Err(error)) if is_final(&error) => return Err(error.context("the edge refused to enrol this workload")),
            Ok(Err(error)) => tracing::warn!(error = format!("{error:#}"), "cannot enrol, trying again"),
            Err(_) => tracing::warn!("the edge did not answer within 5 s, trying again"),
        }
        sleep(wait).await;
        wait = (wait * 2).min(RETRY.1);
    }
}

/// Keeps the identity alive.
pub(crate) struct Keeper {
    pub(crate) state: State,
    pub(crate) enrolment: Enrolment,
    /// Where the edge is changes when it comes back on other ports.
    pub(crate) home: watch::Sender<Home>,
    pub(crate) live: LiveSvid,
    pub(crate) verifier: Verifier,
    /// Told by the feed that the edge is not where it was.
    pub(crate) astray: Arc<Notify>,
}

impl Keeper {
    /// Renews at half life, and whenever the feed has lost the edge, until `stop`. What fails is tried again, also after
    /// the SVID has ended.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut wait = RETRY.0;
        loop {
            let pause = match self.live.get() {
                Some(svid) => renewal_due(svid.not_before(), svid.not_after(), rand::random()).since(now()),
                None => Duration::ZERO,
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(pause) => {}
                () = self.astray.notified() => {}
            }
            match timeout(2 * CALL_LIMIT, self.refresh()).await {
                Ok(Ok(())) => {
                    wait = RETRY.0;
                    tracing::debug!("SVID renewed");
                    continue;
                }
                Ok(Err(error)) => tracing::warn!(error = format!("{error:#}"), "cannot renew the SVID, trying again"),
                Err(_) => tracing::warn!("the edge did not renew in time, trying again"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(wait) => {}
            }
            wait = (wait * 2).min(RETRY.1);
        }
    }

    /// A new key with each renewal: what was stolen is worth half a life. If the edge cannot be reached as a workload it
    /// knows (it moved, or the SVID has ended), proves itself as at the first time.
    async fn refresh(&self) -> Result<()> {
        let key = SvidKey::generate();
        let renewed = match timeout(CALL_LIMIT, self.renew(&key)).await {
            Ok(renewed) => renewed,
            Err(_) => Err(anyhow::anyhow!("the edge did not answer within 5 s")),
        };
        let (key, identity) = match (renewed, &self.enrolment) {
            (Ok(identity), _) => (key, identity),
            (Err(error), Enrolment::Socket(_)) => {
                let identity = enrol(&self.enrolment, &key).await.context(format!("{error:#}; and by the socket"))?;
                (key, identity)
            }
            // A token works again for the key that used it, and for no other.
            (Err(error), Enrolment::Token { .. }) => {
                let first = self.state.enrolled_key().with_context(|| format!("{error:#}; no key to enrol again"))?;
                let first = SvidKey::from_pkcs8(&first)?;
                let identity = enrol(&self.enrolment, &first).await.context(format!("{error:#}; and by the token"))?;
                (first, identity)
            }
        };
        let kept = key.to_pkcs8();
        let home = accept(&self.live, key, &identity)?;
        self.state.keep_key(&kept)?;
        self.state.keep_identity(&identity)?;
        self.home.send_replace(home);
        Ok(())
    }

    async fn renew(&self, key: &SvidKey) -> Result<Identity> {
        let home = self.home.borrow().clone();
        let channel = discovery(&home, &self.live, &self.verifier).await?;
        let request = RenewRequest { csr: key.csr() };
        let identity = WorkloadIdentityClient::new(channel).renew(request).await?.into_inner();
        if identity.spiffe_id != home.id.to_string() {
            bail!("the edge renewed {} as {}", home.id, identity.spiffe_id);
        }
        Ok(identity)
    }
}

async fn enrol(enrolment: &Enrolment, key: &SvidKey) -> Result<Identity> {
    let mut request = EnrolRequest { csr: key.csr(), ..EnrolRequest::default() };
    let channel = match enrolment {
        Enrolment::Socket(path) => connect::unix(path).await?,
        Enrolment::Token { file, edge } => {
            let token = proto::convert::parse_workload_token(read_token(file)?.trim())
                .with_context(|| format!("token_file {}", file.display()))?;
            request.token_id = token.id.0.to_vec();
            request.token_secret = token.secret.0.to_vec();
            request.account = token.account.account.to_string();
            request.namespace = token.account.namespace.to_string();
            connect::tls(edge, tls::enrol_client(token.pin, token.trust_domain)?).await?
        }
    };
    Ok(WorkloadIdentityClient::new(channel).enrol(request).await?.into_inner())
}

/// A channel to the edge's discovery listener, with this sidecar's SVID.
pub(crate) async fn discovery(home: &Home, live: &LiveSvid, verifier: &Verifier) -> Result<Channel> {
    connect::tls(&home.discovery, tls::workload_client(live, verifier, home.edge())?).await
}

fn accept(live: &LiveSvid, key: SvidKey, identity: &Identity) -> Result<Home> {
    let home = Home::understand(identity)?;
    let svid = Svid::assemble(key, identity.chain.clone())?;
    if *svid.id() != home.id {
        bail!("the edge says {} and certified {}", home.id, svid.id());
    }
    live.set(svid);
    Ok(home)
}

fn read_token(file: &Path) -> Result<String> {
    use std::io::Read;
    let mut text = String::new();
    let reading = std::fs::File::open(file).and_then(|file| file.take(TOKEN_BYTES_MAX).read_to_string(&mut text));
    reading.with_context(|| format!("token_file {}", file.display()))?;
    Ok(text)
}

fn is_final(error: &anyhow::Error) -> bool {
    let code = error.downcast_ref::<Status>().map(Status::code);
    matches!(
        code,
        Some(Code::PermissionDenied | Code::InvalidArgument | Code::FailedPrecondition | Code::Unauthenticated)
    ) || error.downcast_ref::<proto::convert::TokenTextError>().is_some()
}
