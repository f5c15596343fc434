//! One member: its gateway process in its namespace, and an operator who keeps one connection to it.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use hyper_util::rt::TokioIo;
use proto::manage::{self, manage_client::ManageClient};
use testbed::{
    netns::Site,
    worlds::{Cluster, Plan, World},
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// Largest reply that is read.
const REPLY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long one request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);

pub(crate) struct Member {
    pub(crate) cluster: Cluster,
    pub(crate) operator: Operator,
}

/// Whoever operates one member, over one connection; clones share it.
#[derive(Clone)]
pub(crate) struct Operator {
    pub(crate) cluster: String,
    client: ManageClient<Channel>,
}

impl Member {
    /// Starts the gateway at `site` and connects; it logs what `log` says.
    pub(crate) async fn start(world: &World, site: &Site, log: &str) -> Result<Self> {
        let plan = Plan::new(&site.cluster).at(site).with(&format!("[log]\nlevel = {log:?}\n"));
        let cluster = Cluster::start(world, plan).await?;
        let path = cluster.socket().to_owned();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The authority has no meaning on a Unix socket, yet HTTP/2 wants one.
        let endpoint = Endpoint::from_static("http://hanse.local").timeout(REQUEST_LIMIT);
        let channel = endpoint.connect_with_connector(connector).await?;
        let client = ManageClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX);
        Ok(Self { operator: Operator { cluster: cluster.name.clone(), client }, cluster })
    }
}

impl Operator {
    fn client(&self) -> ManageClient<Channel> {
        self.client.clone()
    }

    /// Lets `joiner` in, as a lawmaker.
    pub(crate) async fn admit(&self, joiner: &Self) -> Result<()> {
        let request = manage::IssueTokenRequest { cluster: joiner.cluster.clone(), ttl_seconds: 0, lawmaker: true };
        let token = self.client().issue_token(request).await?.into_inner().token;
        let joined = joiner.client().join(manage::JoinRequest { token }).await;
        joined.with_context(|| format!("{} joins", joiner.cluster))?;
        Ok(())
    }

    /// Signs that a member is out.
    pub(crate) async fn evict(&self, cluster: &str) -> Result<()> {
        self.client().evict_cluster(manage::ClusterRequest { cluster: cluster.into() }).await?;
        Ok(())
    }

    /// Whether it takes a member for evicted, by one lawmaker or for good.
    pub(crate) async fn shuts_out(&self, cluster: &str) -> Result<bool> {
        let clusters = self.client().list_clusters(manage::ListClustersRequest {}).await?.into_inner().clusters;
        let state = clusters.into_iter().find(|held| held.name == cluster).map(|held| held.state);
        Ok(matches!(state.as_deref(), None | Some("suspended" | "evicted")))
    }

    /// Members with whom its link is up.
    pub(crate) async fn links_up(&self) -> Result<BTreeSet<String>> {
        let links = self.client().list_links(manage::ListLinksRequest::default()).await?.into_inner().links;
        Ok(links.into_iter().filter(|link| link.state == "up").map(|link| link.cluster).collect())
    }

    /// Why links are not up, in the gateway's own words.
    pub(crate) async fn troubles(&self) -> Result<Vec<String>> {
        let links = self.client().list_links(manage::ListLinksRequest::default()).await?.into_inner().links;
        let down = links.into_iter().filter(|link| link.state != "up");
        Ok(down.map(|link| format!("{} {}: {}", link.cluster, link.state, link.error)).collect())
    }

    /// Shows a service to every member.
    pub(crate) async fn serve(&self, service: &str) -> Result<()> {
        let request = manage::RegisterServiceRequest { service: service.into(), port: 8080, ..Default::default() };
        self.client().register_service(request).await?;
        let request = manage::ExportServiceRequest { service: service.into(), ..Default::default() };
        self.client().export_service(request).await?;
        Ok(())
    }

    /// Whether it sees a service, `service.namespace.cluster`.
    pub(crate) async fn sees(&self, service: &str) -> Result<bool> {
        let services = self.client().list_services(manage::ListServicesRequest {}).await?.into_inner().services;
        Ok(services.iter().any(|seen| seen.name == service))
    }

    /// Writes an intention and says its id.
    pub(crate) async fn write(&self, source: &str, destination: &str, action: &str) -> Result<String> {
        let request = manage::WriteIntentionRequest {
            source: source.into(),
            destination: destination.into(),
            action: action.into(),
            guardrail: false,
            shadow: false,
            ..Default::default()
        };
        let reply = self.client().write_intention(request).await?.into_inner();
        Ok(reply.intention.context("no intention in the reply")?.id)
    }

    /// Which intention decides the call here, and whether it is allowed; an empty id for the default.
    pub(crate) async fn decision(&self, source: &str, destination: &str) -> Result<(String, bool)> {
        let request = manage::CheckIntentionRequest { source: source.into(), destination: destination.into() };
        let reply = self.client().check_intention(request).await?.into_inner();
        Ok((reply.rule_id, reply.allowed))
    }

    /// Every intention that it lists, by id, with all that every member must say alike.
    pub(crate) async fn law(&self) -> Result<BTreeSet<String>> {
        let request = manage::ListIntentionsRequest {};
        let law = self.client().list_intentions(request).await?.into_inner().intentions;
        ensure!(law.iter().all(|rule| !rule.id.is_empty()), "{} lists an intention without an id", self.cluster);
        Ok(law.into_iter().map(|rule| rule.id).collect())
    }
}
