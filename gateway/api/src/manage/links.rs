//! Join tokens, joining, and links.

use federation_model::{ClusterName, Timestamp};
use proto::{convert::parse_join_token, manage as wire};

use super::{count, naming};
use crate::{Direction, Kind, LinkState, Refusal, server::Shared, tokens};

impl Shared {
    pub(super) async fn issue_token(&self, request: wire::IssueTokenRequest) -> Result<wire::IssueTokenReply, Refusal> {
        let joiner: ClusterName = request.cluster.parse()?;
        let ttl = tokens::life(request.ttl_seconds)?;
        let snapshot = self.ready()?;
        if joiner == snapshot.own_name {
            let message = format!("{joiner} is this very cluster: name the one that will join");
            return Err(Refusal::invalid("own_cluster", message));
        }
        if snapshot.members.by_name(&joiner).is_some() {
            let message = format!("{joiner} is a member already: `hanse link list` shows its link");
            return Err(Refusal::new(Kind::Exists, "member_already", message));
        }
        if request.lawmaker && !snapshot.members.get(&snapshot.own).is_some_and(|own| own.lawmaker) {
            let message = format!("{} is no lawmaker, and only a lawmaker makes another", snapshot.own_name);
            return Err(Refusal::new(Kind::NotPermitted, "not_a_lawmaker", message));
        }
        let issued = self.links.issue_token(joiner.clone(), ttl, request.lawmaker).await?;
        tracing::info!(token = %issued.id, %joiner, lawmaker = request.lawmaker, "join token issued");
        Ok(wire::IssueTokenReply {
            token: issued.text,
            id: issued.id.to_string(),
            cluster: joiner.to_string(),
            expires_at_ms: issued.expires_at.as_millis(),
            endpoints: issued.endpoints.iter().map(ToString::to_string).collect(),
        })
    }

    pub(super) async fn list_tokens(&self) -> Result<wire::TokenList, Refusal> {
        let tokens = self.links.tokens().await?.into_iter().map(|token| wire::Token {
            id: token.id.to_string(),
            cluster: token.joiner.to_string(),
            state: token.state.as_str().to_owned(),
            expires_at_ms: token.expires_at.as_millis(),
            refusals: token.refusals,
        });
        Ok(wire::TokenList { tokens: tokens.collect() })
    }

    pub(super) async fn join(&self, request: wire::JoinRequest) -> Result<wire::JoinReply, Refusal> {
        let token = request.token.trim();
        // What the token itself tells is wrong is said before anybody is dialled; the text stays out of every message.
        let parsed = parse_join_token(token).map_err(|error| Refusal::invalid(error.reason(), error.to_string()))?;
        parsed.check(&self.settings.cluster, federation_identity::now()).map_err(|error| {
            let reason = match &error {
                federation_model::TokenError::Expired { .. } => "token_expired",
                federation_model::TokenError::OtherJoiner { .. } => "token_other_joiner",
                federation_model::TokenError::OwnCluster { .. } => "token_own_cluster",
                _ => "token",
            };
            Refusal::new(Kind::State, reason, error.to_string())
        })?;
        let joined = self.links.join(token.to_owned()).await?;
        Ok(wire::JoinReply {
            cluster: self.settings.cluster.to_string(),
            federation: joined.federation.to_string(),
            issuer: joined.issuer.to_string(),
            members: joined.members.iter().map(ToString::to_string).collect(),
        })
    }

    pub(super) fn list_links(&self, cluster: &str) -> Result<wire::LinkList, Refusal> {
        let mut states = self.links.statuses();
        if !cluster.is_empty() {
            let snapshot = self.ready()?;
            let wanted = naming::other(cluster, &snapshot)?.id;
            states.retain(|state| state.member == wanted);
        }
        Ok(wire::LinkList { links: states.into_iter().map(link).collect() })
    }
}

fn link(state: LinkState) -> wire::Link {
    let micros = |span: std::time::Duration| u64::try_from(span.as_micros()).unwrap_or(u64::MAX).max(1);
    wire::Link {
        cluster: state.name.to_string(),
        cluster_id: state.member.to_string(),
        state: state.phase.as_str().to_owned(),
        direction: state.direction.map_or("", Direction::as_str).to_owned(),
        address: state.address,
        rtt_us: state.rtt.map_or(0, micros),
        clock_offset_ms: state.clock_offset_ms,
        data_age_ms: naming::age_ms(state.data_age),
        tunnels: count(state.tunnels as usize),
        deadline_ms: state.deadline.map_or(0, Timestamp::as_millis),
        error: state.error,
        build: state.build,
        bytes_sent: state.bytes_sent,
        bytes_received: state.bytes_received,
        relay_rtt_us: state.relay.as_ref().map_or(0, |(_, rtt)| micros(*rtt)),
        relay: state.relay.map_or_else(String::new, |(name, _)| name.to_string()),
    }
}
