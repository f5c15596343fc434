//! What an operator can do: one method a request, each in the file of its noun.

mod backup;
mod certs;
mod checks;
mod law;
mod links;
mod members;
mod naming;
mod revoking;
mod services;

use std::{sync::Arc, time::Duration};

use federation_identity::now;
use federation_model::{AccountRef, Ages};
use gateway_dns::QueryType;
use proto::{
    convert::{WorkloadToken, workload_token_text},
    manage::{self as wire, manage_server::Manage},
};
use tonic::{Request, Response, Status};

pub(crate) use self::services::chosen;
use crate::{EnrolledBy, LinkPhase, Peer, Refusal, server::Shared, tokens};

/// How long looking up the name of a user may take.
const AUTHOR_LIMIT: Duration = Duration::from_secs(1);

/// The service; mounted on the Unix socket alone, behind a check that lets only operators pass.
#[derive(Clone)]
pub(crate) struct Service(pub(crate) Arc<Shared>);

type Reply<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Manage for Service {
    async fn status(&self, _: Request<wire::StatusRequest>) -> Reply<wire::StatusReply> {
        Ok(Response::new(self.0.status()))
    }

    async fn issue_token(&self, request: Request<wire::IssueTokenRequest>) -> Reply<wire::IssueTokenReply> {
        Ok(Response::new(self.0.issue_token(request.into_inner()).await?))
    }

    async fn list_tokens(&self, _: Request<wire::ListTokensRequest>) -> Reply<wire::TokenList> {
        Ok(Response::new(self.0.list_tokens().await?))
    }

    async fn join(&self, request: Request<wire::JoinRequest>) -> Reply<wire::JoinReply> {
        let author = author(&request).await?;
        tracing::info!(%author, "joining with a token");
        Ok(Response::new(self.0.join(request.into_inner()).await?))
    }

    async fn list_links(&self, request: Request<wire::ListLinksRequest>) -> Reply<wire::LinkList> {
        Ok(Response::new(self.0.list_links(&request.into_inner().cluster)?))
    }

    async fn remove_link(&self, request: Request<wire::ClusterRequest>) -> Reply<wire::MembershipReply> {
        self.block_cluster(request).await
    }

    async fn block_cluster(&self, request: Request<wire::ClusterRequest>) -> Reply<wire::MembershipReply> {
        let author = author(&request).await?;
        Ok(Response::new(self.0.block_cluster(&request.into_inner().cluster, author).await?))
    }

    async fn approve_cluster(&self, request: Request<wire::ClusterRequest>) -> Reply<wire::MembershipReply> {
        let author = author(&request).await?;
        Ok(Response::new(self.0.approve_cluster(&request.into_inner().cluster, author).await?))
    }

    async fn evict_cluster(&self, request: Request<wire::ClusterRequest>) -> Reply<wire::MembershipReply> {
        let author = author(&request).await?;
        Ok(Response::new(self.0.evict_cluster(&request.into_inner().cluster, author).await?))
    }

    async fn set_lawmaker(&self, request: Request<wire::SetLawmakerRequest>) -> Reply<wire::MembershipReply> {
        let author = author(&request).await?;
        let wire::SetLawmakerRequest { cluster, on } = request.into_inner();
        Ok(Response::new(self.0.set_lawmaker(&cluster, on, author).await?))
    }

    async fn leave_federation(
        &self,
        request: Request<wire::LeaveFederationRequest>,
    ) -> Reply<wire::LeaveFederationReply> {
        let author = author(&request).await?;
        Ok(Response::new(self.0.leave_federation(author).await?))
    }

    async fn list_clusters(&self, _: Request<wire::ListClustersRequest>) -> Reply<wire::ClusterList> {
        Ok(Response::new(self.0.list_clusters()?))
    }

    async fn issue_workload_token(
        &self,
        request: Request<wire::IssueWorkloadTokenRequest>,
    ) -> Reply<wire::IssueWorkloadTokenReply> {
        Ok(Response::new(self.0.issue_workload_token(request.into_inner()).await?))
    }

    async fn list_workloads(&self, _: Request<wire::ListWorkloadsRequest>) -> Reply<wire::WorkloadList> {
        Ok(Response::new(self.0.list_workloads()))
    }

    async fn list_services(&self, _: Request<wire::ListServicesRequest>) -> Reply<wire::ServiceList> {
        Ok(Response::new(self.0.list_services()?))
    }

    async fn register_service(&self, request: Request<wire::RegisterServiceRequest>) -> Reply<wire::ServiceReply> {
        let author = author(&request).await?;
        Ok(Response::new(self.0.register_service(request.into_inner(), author).await?))
    }

    async fn export_service(&self, request: Request<wire::ExportServiceRequest>) -> Reply<wire::ServiceReply> {
        let author = author(&request).await?;
        Ok(Response::new(self.0.export_service(request.into_inner(), author).await?))
    }

    async fn write_intention(&self, request: Request<wire::WriteIntentionRequest>) -> Reply<wire::IntentionReply> {
        let author = author(&request).await?;
        Ok(Response::new(self.0.write_intention(request.into_inner(), author).await?))
    }

    async fn delete_intention(&self, request: Request<wire::DeleteIntentionRequest>) -> Reply<wire::IntentionReply> {
        let author = author(&request).await?;
        Ok(Response::new(self.0.delete_intention(request.into_inner(), author).await?))
    }

    async fn list_intentions(&self, _: Request<wire::ListIntentionsRequest>) -> Reply<wire::IntentionList> {
        Ok(Response::new(self.0.list_intentions()?))
    }

    async fn check_intention(&self, request: Request<wire::CheckIntentionRequest>) -> Reply<wire::CheckIntentionReply> {
        Ok(Response::new(self.0.check_intention(&request.into_inner())?))
    }

    async fn lookup_dns(&self, request: Request<wire::LookupDnsRequest>) -> Reply<wire::LookupDnsReply> {
        Ok(Response::new(self.0.lookup_dns(&request.into_inner())?))
    }

    async fn cert_status(&self, _: Request<wire::CertStatusRequest>) -> Reply<wire::CertStatusReply> {
        Ok(Response::new(self.0.cert_status().await?))
    }

    async fn rotate_root(&self, request: Request<wire::RotateRootRequest>) -> Reply<wire::RotationReply> {
        let author = author(&request).await?;
        Ok(Response::new(self.0.rotate_root(request.into_inner(), author).await?))
    }

    async fn abort_rotation(&self, request: Request<wire::AbortRotationRequest>) -> Reply<wire::RotationReply> {
        let author = author(&request).await?;
        Ok(Response::new(self.0.abort_rotation(author).await?))
    }

    async fn rotate_intermediate(
        &self,
        request: Request<wire::RotateIntermediateRequest>,
    ) -> Reply<wire::RotateIntermediateReply> {
        let author = author(&request).await?;
        Ok(Response::new(self.0.rotate_intermediate(author).await?))
    }

    async fn list_certificates(&self, _: Request<wire::ListCertificatesRequest>) -> Reply<wire::IssuedList> {
        Ok(Response::new(self.0.list_certificates()?))
    }

    async fn revoke_certificate(&self, request: Request<wire::RevokeCertificateRequest>) -> Reply<wire::RevokeReply> {
        let author = author(&request).await?;
        Ok(Response::new(self.0.revoke(request.into_inner(), author).await?))
    }

    type CreateBackupStream = backup::Pieces;

    async fn create_backup(&self, request: Request<wire::CreateBackupRequest>) -> Reply<backup::Pieces> {
        let author = author(&request).await?;
        Ok(Response::new(self.0.create_backup(author).await?))
    }

    async fn check(&self, _: Request<wire::CheckRequest>) -> Reply<wire::CheckReply> {
        Ok(Response::new(self.0.check().await))
    }

    async fn reload(&self, request: Request<wire::ReloadRequest>) -> Reply<wire::ReloadReply> {
        let author = author(&request).await?;
        let changed = self.0.system.reload().await?;
        tracing::info!(%author, ?changed, "configuration read again");
        Ok(Response::new(wire::ReloadReply { changed }))
    }

    async fn set_log_level(&self, request: Request<wire::SetLogLevelRequest>) -> Reply<wire::SetLogLevelReply> {
        let level = self.0.system.set_log_level(&request.into_inner().level)?;
        Ok(Response::new(wire::SetLogLevelReply { level }))
    }
}

/// The name of the user who asks: what records name as their author.
async fn author<T>(request: &Request<T>) -> Result<String, Refusal> {
    let Peer::Local { uid, .. } = Peer::of(request)? else {
        return Err(Refusal::new(crate::Kind::NotPermitted, "not_here", "only an operator on the Unix socket writes"));
    };
    // A directory service may be asked, and may not answer.
    let name = tokio::task::spawn_blocking(move || {
        nix::unistd::User::from_uid(uid.into()).ok().flatten().map(|user| user.name)
    });
    let name = tokio::time::timeout(AUTHOR_LIMIT, name).await.ok().and_then(Result::ok).flatten();
    let name = name.filter(|name| name.len() <= 64 && !name.chars().any(char::is_control));
    Ok(name.unwrap_or_else(|| format!("uid {uid}")))
}

impl Shared {
    pub(crate) fn status(&self) -> wire::StatusReply {
        let statuses = self.links.statuses();
        let sessions = statuses.iter().filter(|link| link.phase == LinkPhase::Up).count();
        let mut problems = self.system.problems();
        for link in statuses.iter().filter(|link| link.phase == LinkPhase::Connecting && !link.error.is_empty()) {
            problems.push(format!("the link with {} is down: {}", link.name, link.error));
        }
        let mut reply = wire::StatusReply {
            cluster: self.settings.cluster.to_string(),
            cluster_id: self.settings.cluster_id.to_string(),
            trust_domain: self.settings.trust_domain.to_string(),
            version: self.settings.version.clone(),
            uptime_seconds: self.started.elapsed().as_secs(),
            sessions: count(sessions),
            workloads: count(self.registry.connected()),
            connections: self.connections.count(),
            ..wire::StatusReply::default()
        };
        match self.ready() {
            Err(refusal) => problems.push(refusal.message),
            Ok(snapshot) => {
                reply.federation = snapshot.federation.to_string();
                reply.lawmaker = snapshot.members.get(&snapshot.own).is_some_and(|own| own.lawmaker);
                reply.revision = snapshot.revision;
                reply.members = count(snapshot.members.len());
                reply.services = count(snapshot.catalog.len());
                reply.intentions = count(snapshot.authorizer.len());
                reply.conflicts = count(snapshot.authorizer.conflict_count());
                problems.extend(members::problems(&snapshot));
                if !snapshot.held.is_empty() {
                    let held = snapshot.held.len();
                    problems.push(format!("{held} admissions are held: another member has their name or trust domain"));
                }
            }
        }
        reply.problems = problems;
        reply
    }

    async fn issue_workload_token(
        &self,
        request: wire::IssueWorkloadTokenRequest,
    ) -> Result<wire::IssueWorkloadTokenReply, Refusal> {
        let account = naming::account(&request.account)?;
        let ttl = tokens::life(request.ttl_seconds)?;
        let fresh = self.tokens.issue(&account, ttl, now()).await?;
        tracing::info!(token = %fresh.id, %account, "workload token issued");
        let token = WorkloadToken {
            id: fresh.id,
            secret: fresh.secret,
            cluster: self.settings.cluster.clone(),
            trust_domain: self.settings.trust_domain.clone(),
            pin: self.system.pin()?,
            account: account.clone(),
            expires_at: fresh.expires_at,
        };
        Ok(wire::IssueWorkloadTokenReply {
            token: workload_token_text(&token),
            id: fresh.id.to_string(),
            account: account.to_string(),
            expires_at_ms: fresh.expires_at.as_millis(),
        })
    }

    fn list_workloads(&self) -> wire::WorkloadList {
        let shown = |workload: crate::registry::Workload| {
            let account = match workload.id.role() {
                federation_model::Role::Workload(account) => account.to_string(),
                _ => workload.id.path().to_owned(),
            };
            let by = workload.enrolled_by.or_else(|| self.known_as(&workload.id));
            let serving = workload.serving;
            wire::Workload {
                account,
                spiffe_id: workload.id.to_string(),
                instance: serving.as_ref().map_or_else(String::new, |what| what.instance.to_string()),
                inbound: serving
                    .as_ref()
                    .and_then(|what| what.inbound)
                    .map_or_else(String::new, |address| address.to_string()),
                serves: serving
                    .iter()
                    .flat_map(|what| &what.serves)
                    .map(|(name, space)| format!("{name}.{space}"))
                    .collect(),
                enrolled_by: by.map_or("", EnrolledBy::as_str).to_owned(),
                connected: serving.is_some(),
                not_after_ms: workload.not_after.as_millis(),
            }
        };
        wire::WorkloadList { workloads: self.registry.workloads().into_iter().map(shown).collect() }
    }

    /// How old the data of each other member is here.
    fn ages(&self) -> Ages {
        let links = Arc::clone(&self.links);
        Ages::new(move |member| links.data_age(member))
    }

    fn lookup_dns(&self, request: &wire::LookupDnsRequest) -> Result<wire::LookupDnsReply, Refusal> {
        let snapshot = self.ready()?;
        let kind: QueryType = match request.r#type.as_str() {
            "" => QueryType::A,
            text => text.parse().map_err(|error| Refusal::invalid("bad_type", format!("{error}")))?,
        };
        if request.name.len() > 254 {
            let message = format!("a name of {} bytes: DNS names have at most 253", request.name.len());
            return Err(Refusal::invalid("bad_name", message));
        }
        self.addresses.update(&snapshot.catalog);
        let ages = self.ages();
        let answer = gateway_dns::answer(&snapshot, &self.addresses, &ages, &request.name, kind);
        let mut why = answer.why.to_string();
        if let Some(data) = answer.data {
            why = format!("{why}; {data}");
        }
        if !request.account.is_empty() {
            let account: AccountRef = naming::account(&request.account)?;
            why = format!("{why}; {}", law::may_call(&snapshot, &ages, &account, &request.name));
        }
        let records = answer.records.iter();
        Ok(wire::LookupDnsReply {
            name: request.name.clone(),
            r#type: kind.to_string(),
            rcode: answer.rcode.to_string(),
            answers: records
                .map(|record| format!("{}. {} IN {}", record.name, record.ttl.as_secs(), record.data))
                .collect(),
            why,
            data_age_ms: naming::age_ms(answer.data.and_then(|data| data.age)),
        })
    }
}

/// A count for a reply; nothing here comes near the bound.
pub(crate) fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
