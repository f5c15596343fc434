//! What the API asks of this program, answered by link and proxy.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use federation_identity::{LiveSvid, SignerError};
use federation_link::{Link, WriteError};
use federation_model::{
    Audience, Body, ClusterId, ClusterName, ConnectionId, Digest, Enforcement, RecordId, Records, Snapshot, SpiffeId,
    VerifiedPeer,
};
use federation_store::Store;
use gateway_admin::telemetry::LogControl;
use gateway_api::{
    BoxFuture, Certificate, Check, CheckState, Connections, Departed, Direction, IssuedToken, Joined, Kind, LinkPhase,
    LinkState, Links, Probed, Refusal, Registry, System, TokenState, TokenSummary,
};
use gateway_proxy::Proxy;
use tokio::{sync::watch, time::Instant};

use crate::{backup, config::Settings, rotation::Rotation};

/// The federation, as the API sees it.
pub(crate) struct Federation(pub(crate) Link);

impl Links for Federation {
    fn snapshot(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.0.snapshot()
    }

    fn records(&self) -> watch::Receiver<Records> {
        self.0.records()
    }

    fn issue_token(
        &self,
        joiner: ClusterName,
        ttl: Duration,
        lawmaker: bool,
    ) -> BoxFuture<'_, Result<IssuedToken, Refusal>> {
        Box::pin(async move {
            let (text, summary) = self
                .0
                .issue_token(joiner, ttl, lawmaker)
                .await
                .map_err(|error| Refusal::new(Kind::State, error.reason(), error.to_string()))?;
            let endpoints = self.own_endpoints();
            Ok(IssuedToken { text, id: summary.id, expires_at: summary.expires_at, endpoints })
        })
    }

    fn tokens(&self) -> BoxFuture<'_, Result<Vec<TokenSummary>, Refusal>> {
        Box::pin(async move {
            let tokens = self.0.tokens().await.map_err(internal)?;
            let shown = |token: federation_link::TokenSummary| TokenSummary {
                id: token.id,
                joiner: token.joiner,
                state: match token.state {
                    federation_link::TokenState::Open => TokenState::Open,
                    federation_link::TokenState::Used(_) => TokenState::Used,
                    federation_link::TokenState::Expired => TokenState::Expired,
                    federation_link::TokenState::Burned => TokenState::Burned,
                },
                expires_at: token.expires_at,
                refusals: token.refusals,
            };
            Ok(tokens.into_iter().map(shown).collect())
        })
    }

    fn join(&self, token: String) -> BoxFuture<'_, Result<Joined, Refusal>> {
        Box::pin(async move {
            let joined = self
                .0
                .join(&token)
                .await
                .map_err(|error| Refusal::new(Kind::State, error.reason(), error.to_string()))?;
            let members = joined.members.into_iter().map(|(name, _)| name).collect();
            Ok(Joined { federation: joined.federation, issuer: joined.issuer_name, members })
        })
    }

    fn enforcement(&self, record: &RecordId) -> Enforcement {
        self.0.enforcement(record)
    }

    fn receipts(&self) -> watch::Receiver<u64> {
        self.0.receipts()
    }

    fn data_age(&self, member: &ClusterId) -> Option<Duration> {
        self.0.data_age(member)
    }

    fn statuses(&self) -> Vec<LinkState> {
        self.0.statuses().into_iter().map(link_state).collect()
    }

    fn block(&self, member: ClusterId, author: String) -> BoxFuture<'_, Result<bool, Refusal>> {
        Box::pin(async move { self.0.block(member, author).await.map_err(unwritten) })
    }

    fn approve(&self, member: ClusterId, author: String) -> BoxFuture<'_, Result<bool, Refusal>> {
        Box::pin(async move { self.0.approve(member, author).await.map_err(unwritten) })
    }

    fn evict(&self, member: ClusterId, author: String) -> BoxFuture<'_, Result<RecordId, Refusal>> {
        Box::pin(async move { self.0.evict(member, author).await.map_err(unwritten) })
    }

    fn leave(&self, author: String) -> BoxFuture<'_, Result<Departed, Refusal>> {
        Box::pin(async move {
            let departure = self.0.leave(author).await.map_err(unwritten)?;
            Ok(Departed { federation: departure.federation, untold: departure.untold })
        })
    }

    fn write(&self, audience: Audience, body: Body, author: String) -> BoxFuture<'_, Result<RecordId, Refusal>> {
        Box::pin(async move { self.0.write(audience, body, author).await.map_err(unwritten) })
    }

    fn probe(&self, member: ClusterId) -> BoxFuture<'_, Result<Probed, Refusal>> {
        Box::pin(async move {
            let report = self
                .0
                .probe(member)
                .await
                .map_err(|error| Refusal::new(Kind::NotReady, error.reason(), error.to_string()))?;
            let clock_offset_ms = report.clock_offset_ms.unwrap_or_default();
            if let Some((address, rtt)) = report.handshakes.iter().find_map(|(a, took)| Some((a, *took.as_ref().ok()?)))
            {
                return Ok(Probed { rtt, clock_offset_ms, detail: format!("full handshake with {address}") });
            }
            if let Some(rtt) = report.heartbeat {
                return Ok(Probed { rtt, clock_offset_ms, detail: "heartbeat on the session that it dialled".into() });
            }
            let tried: Vec<String> = report
                .handshakes
                .iter()
                .filter_map(|(a, took)| Some(format!("{a}: {}", took.as_ref().err()?)))
                .collect();
            let message = match tried.is_empty() {
                true => format!("{} names no endpoint and has not dialled: start its gateway", report.name),
                false => format!("{} cannot be reached: {}", report.name, tried.join("; ")),
            };
            Err(Refusal::new(Kind::NotReady, "unreachable", message))
        })
    }
}

impl Federation {
    fn own_endpoints(&self) -> Vec<federation_model::Endpoint> {
        let snapshot = self.0.snapshot();
        let current = snapshot.borrow();
        let own = current.as_ref().and_then(|snapshot| snapshot.members.get(&snapshot.own).cloned());
        own.map(|member| member.endpoints).unwrap_or_default()
    }
}

fn unwritten(error: WriteError) -> Refusal {
    let kind = match &error {
        WriteError::Signer(SignerError::Busy { .. }) => Kind::Exhausted,
        WriteError::Signer(_) => Kind::NotReady,
        _ => Kind::State,
    };
    Refusal::new(kind, error.reason(), error.to_string())
}

fn internal(error: impl std::fmt::Display) -> Refusal {
    tracing::error!(%error, "request failed");
    Refusal::new(Kind::Internal, "internal", "the store refused; the gateway's log says why")
}

pub(crate) fn link_state(status: federation_link::LinkStatus) -> LinkState {
    LinkState {
        member: status.member,
        name: status.name,
        phase: match status.state {
            federation_link::LinkState::Up => LinkPhase::Up,
            // A session over which nothing comes is no link that is up.
            federation_link::LinkState::Degraded | federation_link::LinkState::Dialling => LinkPhase::Connecting,
            federation_link::LinkState::Waiting => LinkPhase::Waiting,
            federation_link::LinkState::Out(state) => LinkPhase::Out(state),
        },
        direction: status.direction.map(|direction| match direction {
            federation_link::Direction::Dialled => Direction::Dialled,
            federation_link::Direction::Accepted => Direction::Accepted,
        }),
        address: status.address.map(|address| address.to_string()).unwrap_or_default(),
        rtt: status.rtt,
        build: status.build.unwrap_or_default(),
        relay: status.relay.map(|way| (way.name, way.rtt)),
        clock_offset_ms: status.clock_offset_ms.unwrap_or_default(),
        data_age: status.data_age,
        tunnels: status.tunnels,
        deadline: status.deadline,
        error: match status.state {
            federation_link::LinkState::Degraded => "its heartbeats are not answered in time".into(),
            _ => status.error.unwrap_or_default(),
        },
        bytes_sent: status.bytes_sent,
        bytes_received: status.bytes_received,
    }
}

/// The connections that this edge passes on.
pub(crate) struct Passages {
    pub(crate) proxy: Proxy,
    pub(crate) registry: Registry,
}

impl Connections for Passages {
    fn count(&self) -> u64 {
        self.proxy.connections().count() as u64
    }

    fn extend(&self, connection: ConnectionId, header: Vec<u8>, _from: VerifiedPeer) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Err(denial) = self.proxy.extend(connection, &header, None) {
                tracing::debug!(%connection, %denial, "extension refused");
            }
        })
    }

    fn leaving(&self, connections: Vec<(ConnectionId, SpiffeId)>) {
        let ids: Vec<_> = connections.iter().map(|(id, _)| *id).collect();
        self.proxy.leaving(&ids, None);
        // Callers of this cluster come straight, past this edge; of another's connections their sidecars know nothing.
        let mut direct: BTreeMap<SpiffeId, Vec<ConnectionId>> = BTreeMap::new();
        for (id, source) in connections {
            direct.entry(source).or_default().push(id);
        }
        for (source, ids) in direct {
            self.registry.leaving(&source, &ids);
        }
    }
}

/// The program: its configuration file, log, keys and store.
pub(crate) struct Program {
    pub(crate) config: PathBuf,
    pub(crate) settings: Settings,
    pub(crate) log: LogControl,
    pub(crate) rotation: Arc<Rotation>,
    pub(crate) live: LiveSvid,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) backups: Arc<backup::Source>,
    /// What a reload changed, for whoever acts on it.
    pub(crate) reloaded: watch::Sender<Option<Arc<Settings>>>,
}

impl System for Program {
    fn reload(&self) -> BoxFuture<'_, Result<Vec<String>, Refusal>> {
        Box::pin(async move {
            let invalid = |error: String| Refusal::new(Kind::Invalid, "bad_config", error);
            let new = Settings::load(&self.config).map_err(|error| invalid(error.to_string()))?;
            let fixed = new.fixed_changes(&self.settings);
            if let Some(key) = fixed.first() {
                return Err(invalid(format!(
                    "{key} cannot change while the gateway runs: restart it; the old configuration stays in force"
                )));
            }
            let before = self.reloaded.borrow().clone();
            let changed = new.live_changes(before.as_deref().unwrap_or(&self.settings));
            if changed.iter().any(|key| key == "log.level") {
                self.log.set_level(&new.log.level).map_err(|error| invalid(error.to_string()))?;
            }
            tracing::info!(?changed, "configuration read again");
            self.reloaded.send_replace(Some(Arc::new(new)));
            Ok(changed)
        })
    }

    fn set_log_level(&self, level: &str) -> Result<String, Refusal> {
        let refused = |error: gateway_admin::telemetry::TelemetryError| {
            Refusal::new(Kind::Invalid, "bad_log_level", error.to_string())
        };
        self.log.set_level(level).map_err(refused)?;
        Ok(self.log.level())
    }

    fn certificates(&self) -> Vec<Certificate> {
        let authority = self.rotation.authority().ok();
        let authority = authority.iter().flat_map(|held| held.certificates().clone()).map(|certificate| Certificate {
            kind: certificate.kind,
            spiffe_id: certificate.spiffe_id,
            serial: certificate.serial,
            not_before: certificate.not_before,
            not_after: certificate.not_after,
            key_sha256: certificate.key_sha256,
        });
        let edge = self.live.get().map(|svid| Certificate {
            kind: "edge",
            spiffe_id: svid.id().clone(),
            serial: svid.serial().to_vec(),
            not_before: svid.not_before(),
            not_after: svid.not_after(),
            key_sha256: svid.key_digest(),
        });
        authority.chain(edge).collect()
    }

    fn pin(&self) -> Result<Digest, Refusal> {
        self.rotation.pin()
    }

    fn renew_edge(&self) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(self.rotation.renew_edge())
    }

    fn rotate_intermediate(&self) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(self.rotation.intermediate())
    }

    fn rotation(&self) -> BoxFuture<'_, Result<Option<gateway_api::Rotation>, Refusal>> {
        Box::pin(self.rotation.status())
    }

    fn rotate_root(
        &self,
        without: Vec<ClusterId>,
        author: String,
    ) -> BoxFuture<'_, Result<gateway_api::Rotation, Refusal>> {
        Box::pin(self.rotation.start(without, author))
    }

    fn abort_rotation(&self, author: String) -> BoxFuture<'_, Result<gateway_api::Rotation, Refusal>> {
        Box::pin(async move { self.rotation.abort(&author).await })
    }

    fn problems(&self) -> Vec<String> {
        let damaged = self.store.damaged();
        let overdue = self.settings.backup.as_ref().and_then(|config| backup::overdue(&self.settings.cluster, config));
        damaged.iter().map(ToString::to_string).chain(self.rotation.trouble()).chain(overdue).collect()
    }

    fn backup(&self) -> BoxFuture<'_, Result<gateway_api::Backup, Refusal>> {
        Box::pin(self.backups.begin())
    }

    fn checks(&self) -> BoxFuture<'_, Vec<Check>> {
        Box::pin(async move {
            let start = Instant::now();
            let damaged = self.store.damaged();
            let listed = self.store.list(federation_store::Kind::Record, b"").await;
            let (state, detail) = match (&listed, damaged.first()) {
                (Ok(rows), None) => (CheckState::Ok, format!("{} records, all readable", rows.len())),
                (_, Some(damage)) => (CheckState::Failed, damage.to_string()),
                (Err(error), None) => (CheckState::Failed, error.to_string()),
            };
            let fix = match state {
                CheckState::Ok => String::new(),
                _ => "stop the gateway, move data_dir aside, and run `hanse backup restore` (docs/operate/backup.md)"
                    .into(),
            };
            let subject = self.settings.data_dir.display().to_string();
            vec![Check { id: "store.rows", state, subject, detail, fix, took: start.elapsed() }]
        })
    }
}
