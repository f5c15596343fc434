//! The edge: wiring only, in the order in which things start.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use federation_identity::{LiveSvid, Signer, Verifier, seal::Kek, tls, token};
use federation_link::{Event, Link};
use federation_model::{Ages, ClusterId, ConnectionId, DenialReason, Endpoint, MemberTerms, Service};
use federation_store::Store;
use gateway_admin::{Readiness, shutdown, telemetry};
use gateway_api::{Access, Api, Issued, Registry};
use gateway_proxy::{Control, NoAudit, Notice, Proxy, Told};
use nix::unistd::Pid;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    backend::{Federation, Passages, Program},
    backup,
    config::{Settings, StoreKind},
    confine,
    dial::EdgeDial,
    drain::Parting,
    freshness, keys, metrics,
    page::Page,
    relays::Relays,
    rotation::{self, Rotation},
    signer, svid,
};

/// How long everything may take to end after it was drained.
pub(crate) const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// Where sidecars come unless the configuration says otherwise: this host only.
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// Runs an edge with its control plane until it is told to end or `parent`, its gateway, is gone.
///
/// # Errors
/// The configuration is wrong, an address is taken, the store is another cluster's or cannot be trusted.
pub fn run(config: &Path, parent: u32) -> Result<()> {
    confine::end_with(Pid::from_raw(parent.try_into()?))?;
    confine::name(c"hanse-edge")?;
    confine::edge()?;
    // After the filter, so that each of its threads has it.
    tokio::runtime::Runtime::new()?.block_on(edge(config))
}

async fn edge(config: &Path) -> Result<()> {
    let settings = Settings::load(config)?;
    let log = telemetry::init(settings.log.format.parse()?, &settings.log.level)?;
    let stop = CancellationToken::new();
    let mut tasks: JoinSet<()> = JoinSet::new();
    let readiness = Readiness::new();
    let first = readiness.block("first snapshot");

    // Bound first, so that a taken port is known before anything is promised.
    let mesh = bind("mesh.listen", settings.mesh.listen.unwrap_or(LOOPBACK)).await?;
    let discovery = bind("discovery.listen", settings.discovery.listen.unwrap_or(LOOPBACK)).await?;
    let admin = match settings.admin_listen {
        Some(address) => Some(bind("admin.listen", address).await?),
        None => None,
    };
    let exporter = match &admin {
        Some(_) => {
            let exporter = gateway_admin::metrics::install("gateway", env!("CARGO_PKG_VERSION"))?;
            gateway_proxy::metrics::describe();
            gateway_api::metrics::describe();
            federation_store::describe_metrics();
            metrics::describe();
            Some(exporter)
        }
        None => None,
    };

    // Identity, from the store or made anew.
    let remote = Arc::new(signer::remote(&settings)?);
    let derived = remote.start().context("the signer")?;
    let store: Arc<dyn Store> = match settings.store {
        StoreKind::Memory => federation_store::memory(),
        StoreKind::Sled => {
            let path = settings.data_dir.join("store");
            federation_store::open_sled(&path, *derived.store_mac)
                .await
                .with_context(|| format!("store {}", path.display()))?
        }
    };
    let authority = keys::load_or_make(&store, &settings, &remote).await?;
    let restored = backup::restored(store.as_ref()).await?.unwrap_or_default();
    let epoch_floor = restored.epoch.max(1);
    let signer: Arc<dyn Signer> = Arc::clone(&remote) as _;
    let live = LiveSvid::new();
    let edge_id = settings.trust_domain.edge(&settings.cluster);
    let issued = Issued::open(Arc::clone(&store)).await?;
    svid::issue(signer.as_ref(), &issued, &edge_id, settings.svid_ttl, &live).await?;
    let verifier = Verifier::new();

    // The federation.
    let advertise = match (settings.federation_listen, settings.advertise.is_empty()) {
        (Some(address), true) => vec![address.to_string().parse::<Endpoint>().map_err(anyhow::Error::msg)?],
        _ => settings.advertise.clone(),
    };
    let candidate = authority.candidate();
    let own = candidate.id;
    let terms = MemberTerms {
        accept: settings.accept,
        approval: settings.approval,
        relay: settings.relay,
        endpoints: advertise.clone(),
    };
    let (link, mut incoming) = Link::open(federation_link::Options {
        store: Arc::clone(&store),
        signer: Arc::clone(&signer),
        candidate,
        live_svid: live.clone(),
        verifier: verifier.clone(),
        listen: settings.federation_listen,
        advertise,
        terms,
        limits: federation_link::Limits::default(),
        seal: Arc::new(Kek::from_bytes(*derived.token_seal)),
        epoch_floor,
    })
    .await?;
    if settings.store == StoreKind::Sled {
        let ledger = backup::Ledger::new(&settings.kek_file, *derived.backup);
        tasks.spawn(ledger.keep(link.clone(), epoch_floor, stop.clone()));
    }
    let backups = Arc::new(backup::Source::new(Arc::clone(&store), Arc::clone(&remote), derived.backup));
    if let Some(config) = settings.backup.clone() {
        tasks.spawn(backup::run_schedule(Arc::clone(&backups), settings.cluster.clone(), config, stop.clone()));
    }

    // The proxy.
    let registry = Registry::new();
    let relays = Relays::default();
    let dial = EdgeDial {
        own,
        own_domain: settings.trust_domain.clone(),
        link: link.clone(),
        registry: registry.clone(),
        relays: relays.clone(),
        turn: AtomicUsize::new(0),
    };
    let proxy = Proxy::new(gateway_proxy::Inputs {
        snapshot: link.snapshot(),
        ages: Ages::new({
            let link = link.clone();
            move |member| link.data_age(member)
        }),
        verifier: verifier.clone(),
        svid: live.clone(),
        dial: Arc::new(dial),
        audit: Arc::new(NoAudit),
        control: Arc::new(Back { link: link.clone(), registry: registry.clone(), relays: relays.clone() }),
        instance: token::instance_id(),
        limits: gateway_proxy::Limits::default(),
    });
    tasks.spawn({
        let proxy = proxy.clone();
        async move { proxy.run_enforcer().await }
    });

    // The API.
    let (reloaded, mut changes) = watch::channel(None);
    let socket_path = settings.socket.clone();
    if let Some(folder) = socket_path.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("socket {}: making its folder", socket_path.display()))?;
    }
    let workload_uids = settings.workloads.iter().map(|(uid, _)| *uid);
    let socket = gateway_api::bind(&socket_path, Access::for_workloads(workload_uids))
        .with_context(|| format!("socket {}", socket_path.display()))?;
    let told = |advertise: &Option<String>, listener: &TcpListener| -> Result<String> {
        Ok(match advertise {
            Some(text) => text.clone(),
            None => listener.local_addr()?.to_string(),
        })
    };
    let parting =
        Parting { proxy: proxy.clone(), link: link.clone(), registry: registry.clone(), patience: settings.drain };
    let api_settings = gateway_api::Settings {
        cluster: settings.cluster.clone(),
        cluster_id: own,
        trust_domain: settings.trust_domain.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        mesh_endpoint: told(&settings.mesh.advertise, &mesh)?,
        discovery_endpoint: told(&settings.discovery.advertise, &discovery)?,
        svid_ttl: settings.svid_ttl,
        operators: Vec::new(),
        workloads: settings.workloads.clone(),
    };
    let rotation = Rotation::new(rotation::Inputs {
        signer: Arc::clone(&remote),
        store: Arc::clone(&store),
        ground: Arc::new(link.clone()),
        live: live.clone(),
        issued: issued.clone(),
        edge: edge_id.clone(),
        svid_ttl: settings.svid_ttl,
        sequence_floor: restored.bundle_sequence,
    });
    tasks.spawn(Arc::clone(&rotation).run(stop.clone()));
    let (ttl, admin_hosts) = (settings.svid_ttl, settings.admin_hosts.clone());
    let program = Program {
        config: config.to_owned(),
        settings,
        log,
        rotation,
        live: live.clone(),
        store: Arc::clone(&store),
        backups,
        reloaded,
    };
    let system: Arc<dyn gateway_api::System> = Arc::new(program);
    let inputs = gateway_api::Inputs {
        settings: api_settings,
        links: Arc::new(Federation(link.clone())),
        connections: Arc::new(Passages { proxy: proxy.clone(), registry: registry.clone() }),
        system: Arc::clone(&system),
        signer: Arc::clone(&signer),
        store,
        registry,
        issued: issued.clone(),
    };
    let api = Api::new(inputs, stop.clone());
    if let Some(listener) = admin {
        let inputs = gateway_admin::Inputs {
            readiness: readiness.clone(),
            exporter,
            status: Some(Arc::new(Page { api: api.clone(), link: link.clone() })),
            hosts: admin_hosts,
        };
        tasks.spawn(gateway_admin::serve(vec![listener], inputs, stop.clone()));
    }
    tasks.spawn({
        let api = api.clone();
        async move {
            if let Err(error) = api.serve_socket(socket).await {
                tracing::error!(%error, "the manage API ended");
            }
        }
    });
    tasks.spawn({
        let (api, tls, verifier) = (api.clone(), tls::workload_server(&live, &verifier)?, verifier.clone());
        async move {
            if let Err(error) = api.serve_tls(discovery, tls, verifier).await {
                tracing::error!(%error, "the discovery API ended");
            }
        }
    });

    // What runs on its own.
    tasks.spawn(freshness::watch(link.clone(), readiness.clone(), stop.clone()));
    tasks.spawn(signer::watch(remote, readiness.clone(), stop.clone()));
    tasks.spawn(svid::keep(signer, issued, edge_id, ttl, live, stop.clone()));
    tasks.spawn({
        let proxy = proxy.clone();
        gateway_proxy::listen(mesh, stop.clone(), move |stream| {
            let proxy = proxy.clone();
            async move { proxy.pass(Box::new(stream), None).await }
        })
    });
    tasks.spawn({
        let proxy = proxy.clone();
        async move {
            while let Some(tunnel) = incoming.tunnels.recv().await {
                let proxy = proxy.clone();
                let from = Some((tunnel.member, tunnel.peer.clone()));
                tokio::spawn(async move { proxy.pass(gateway_proxy::boxed(tunnel), from).await });
            }
        }
    });
    tasks.spawn({
        let proxy = proxy.clone();
        async move {
            while let Some(event) = incoming.events.recv().await {
                handle(&proxy, &relays, event);
            }
        }
    });
    tasks.spawn({
        let api = api.clone();
        async move {
            while changes.changed().await.is_ok() {
                let settings: Option<Arc<Settings>> = changes.borrow_and_update().clone();
                if let Some(settings) = settings {
                    api.set_workloads(settings.workloads.clone());
                }
            }
        }
    });
    tasks.spawn({
        let mut snapshot = link.snapshot();
        async move {
            if snapshot.wait_for(Option::is_some).await.is_ok() {
                first.done();
                tracing::info!("ready");
            }
        }
    });

    let mut signals = shutdown::Signals::new()?;
    loop {
        let signal = signals.next().await;
        if signal.ends() {
            tracing::info!(?signal, connections = proxy.connections().count(), "ending");
            break;
        }
        if let Err(refusal) = system.reload().await {
            tracing::error!(error = %refusal, "the configuration was not taken; the old one stays in force");
        }
    }
    // Never done: who is told to go is not ready any more.
    let _draining = readiness.block("draining");
    tokio::select! {
        () = parting.run() => {}
        // Told again, or that the configuration changed while it goes: the first ends the waiting.
        signal = next_end(&mut signals) => tracing::warn!(?signal, "told again: it no longer waits for what is under way"),
    }
    stop.cancel();
    proxy.cut_where(&gateway_proxy::Cut::Shutdown, |_| true);
    let drained = tokio::time::timeout(DRAIN_LIMIT, link.shutdown()).await;
    if drained.is_err() {
        bail!("the link did not end within {DRAIN_LIMIT:?}");
    }
    tasks.shutdown().await;
    Ok(())
}

async fn next_end(signals: &mut shutdown::Signals) -> shutdown::Signal {
    loop {
        let signal = signals.next().await;
        if signal.ends() {
            return signal;
        }
    }
}

async fn bind(key: &'static str, address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{key}: cannot listen on {address}: is the port taken?"))
}

/// What another member's edge tells of connections.
fn handle(proxy: &Proxy, relays: &Relays, event: Event) {
    match event {
        Event::Denied { member, connection, reason, detail } => {
            // A word that this version does not know still means refused.
            let reason = DenialReason::from_word(&reason).unwrap_or(DenialReason::Unreachable);
            // A relay tells what the member behind it told; it alone knows the connection's id.
            let way = relays.way(&connection).filter(|way| way.relay == member);
            proxy.denied(connection, Some(way.map_or(member, |way| way.to)), reason, &detail);
        }
        Event::Extend { member, connection, header, .. } => {
            if let Err(denial) = proxy.extend(connection, &header, Some(member)) {
                tracing::debug!(%connection, %denial, "extension refused");
            }
        }
        Event::Leaving { member, connections } => {
            // Of what it relays the relay tells; whose it is then is whoever is behind it.
            let mut by: BTreeMap<ClusterId, Vec<ConnectionId>> = BTreeMap::new();
            for connection in connections {
                let way = relays.way(&connection).filter(|way| way.relay == member);
                by.entry(way.map_or(member, |way| way.to)).or_default().push(connection);
            }
            for (member, connections) in by {
                proxy.leaving(&connections, Some(member));
            }
        }
        // The tunnels of a session end with it; nothing else stands on it.
        _ => {}
    }
}

/// Tells refusals back, and extensions forward, over sessions and feeds.
struct Back {
    link: Link,
    registry: Registry,
    relays: Relays,
}

impl Control for Back {
    fn denied(&self, told: Told) {
        match told.to {
            Some(member) => {
                self.link.notify_denied(member, told.connection, told.reason, &told.detail);
            }
            None => {
                if let Some(source) = &told.source {
                    self.registry.denied(source, told.connection, told.reason.as_str(), &told.detail);
                }
            }
        }
    }

    fn extend(&self, connection: ConnectionId, service: &Service, header: Vec<u8>) {
        let next = self.relays.way(&connection).map_or(service.id.cluster, |way| way.relay);
        self.link.notify_extend(next, connection, header);
    }

    fn leaving(&self, notice: Notice) {
        match notice.to {
            Some(member) => {
                self.link.notify_leaving(member, &notice.connections);
            }
            None => self.registry.leaving(&notice.source, &notice.connections),
        }
    }
}
