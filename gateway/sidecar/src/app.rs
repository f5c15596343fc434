//! The sidecar: wiring only, in the order in which things start.

use std::{net::SocketAddr, path::Path, sync::Arc};

use anyhow::{Context, Result};
use federation_identity::{LiveSvid, Verifier, token};
use federation_model::{Ages, ConnectionId, DenialReason, Service, Snapshot};
use gateway_admin::{Readiness, Sockets, shutdown, telemetry};
use gateway_dns::Addresses;
use gateway_proxy::{Control, HOLD, NoAudit, Notice, Proxy, Told};
use proto::workload::{Extend, Inbound, Serves, Subscribe, Withdraw, feed_request::Request};
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::{Notify, mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    ages::Heard,
    config::Settings,
    dial::SidecarDial,
    drain,
    feed::{Feed, Instances, OUTGOING_MAX},
    identity, loopback,
    presence::Presence,
    state::State,
};

/// Most refusals by edges that wait to be acted on.
const REFUSED_MAX: usize = 1024;
/// How long live connections may take to end after SIGTERM.
const DRAIN_LIMIT: std::time::Duration = std::time::Duration::from_secs(2);
/// How often it is looked whether they have.
const DRAIN_STEP: std::time::Duration = std::time::Duration::from_millis(10);

/// Runs a sidecar until it is told to end.
///
/// # Errors
/// The configuration is wrong, an address is taken, or the edge refuses this workload for good.
pub async fn run(config: &Path, check: bool) -> Result<()> {
    let sockets = Sockets::handed();
    let settings = Settings::load(config)?;
    if check {
        println!("{}: a sidecar's configuration, all understood", config.display());
        return Ok(());
    }
    let _log = telemetry::init(settings.log.format.parse()?, &settings.log.level)?;
    let stop = CancellationToken::new();
    // Closes what applications dial, before the rest stops.
    let doors = stop.child_token();
    let mut tasks = JoinSet::new();
    let readiness = Readiness::new();
    let enrolled = readiness.block("enrolment");
    let synced = readiness.block("first snapshot");

    // Bound first, so that a taken port is known before anything is promised.
    let state = State::open(&settings.state_dir)?;
    let inbound = match (settings.inbound.listen, settings.serves.is_empty()) {
        (None, true) => None,
        (listen, _) => {
            Some(bind(&sockets, "inbound.listen", listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)))).await?)
        }
    };
    let socks5 = match settings.outbound.socks5 {
        Some(address) => Some(bind(&sockets, "outbound.socks5", address).await?),
        None => None,
    };
    let dns = match settings.dns_listen {
        Some(address) => {
            let udp = UdpSocket::bind(address).await.with_context(|| format!("dns.listen {address} (UDP)"))?;
            Some((udp, bind(&sockets, "dns.listen", address).await?))
        }
        None => None,
    };
    if let Some(address) = settings.admin_listen {
        let listener = bind(&sockets, "admin.listen", address).await?;
        let exporter = gateway_admin::metrics::install("sidecar", env!("CARGO_PKG_VERSION"))?;
        gateway_proxy::metrics::describe();
        gateway_dns::metrics::describe();
        let inputs = gateway_admin::Inputs {
            readiness: readiness.clone(),
            exporter: Some(exporter),
            status: None,
            hosts: settings.admin_hosts.clone(),
        };
        tasks.spawn(gateway_admin::serve(vec![listener], inputs, stop.clone()));
    }
    let advertised = match (&settings.inbound.advertise, &inbound) {
        (Some(advertise), _) => advertise.clone(),
        (None, Some(listener)) => listener.local_addr()?.to_string(),
        (None, None) => String::new(),
    };

    let live = LiveSvid::new();
    let home = tokio::select! {
        home = identity::establish(&state, &settings.enrolment, &live) => home?,
        signal = shutdown::signal() => {
            tracing::info!(signal = ?signal?, "ended before enrolment");
            return Ok(());
        }
    };
    enrolled.done();
    let verifier = Verifier::new();
    verifier.publish(&home.bundles()?);

    let (home, home_seen) = watch::channel(home);
    let astray = Arc::new(Notify::new());
    let instance = token::instance_id();
    let instances = Instances::default();
    let heard = Heard::default();
    let ages = Ages::new({
        let heard = heard.clone();
        move |cluster| heard.age(cluster)
    });
    let (snapshot_sender, snapshot) = watch::channel(None);
    let (requests, outgoing) = mpsc::channel(OUTGOING_MAX);
    let presence = Presence::new();
    let (refused_sender, mut refused) = mpsc::channel(REFUSED_MAX);
    let dial = SidecarDial::new(home_seen.clone(), settings.serves.clone(), instances.clone(), presence.clone());
    let proxy = Proxy::new(gateway_proxy::Inputs {
        snapshot: snapshot.clone(),
        ages: ages.clone(),
        verifier: verifier.clone(),
        svid: live.clone(),
        dial: Arc::new(dial),
        audit: Arc::new(NoAudit),
        control: Arc::new(ToEdge(requests.clone())),
        instance,
        limits: gateway_proxy::Limits::default(),
    });

    let serves = settings.serves.iter().map(|served| Serves {
        service: served.service.to_string(),
        namespace: served.namespace.to_string(),
        port: u32::from(served.port),
        when_stale: served.when_stale.to_string(),
        lease_ms: served.lease.map_or(0, |lease| u64::try_from(lease.as_millis()).unwrap_or(u64::MAX)),
    });
    let subscribe =
        Subscribe { instance: instance.0.to_vec(), inbound: advertised, serves: serves.collect(), held: Vec::new() };
    let feed = Feed {
        home: home_seen,
        astray: Arc::clone(&astray),
        live: live.clone(),
        verifier: verifier.clone(),
        state: state.clone(),
        subscribe,
        instances,
        heard,
        snapshot: snapshot_sender,
        outgoing,
        presence,
        proxy: proxy.clone(),
        refused: refused_sender,
    };
    tasks.spawn(feed.run(stop.clone()));
    let keeper =
        identity::Keeper { state: state.clone(), enrolment: settings.enrolment.clone(), home, live, verifier, astray };
    tasks.spawn(keeper.run(stop.clone()));
    tasks.spawn({
        let proxy = proxy.clone();
        async move { proxy.run_enforcer().await }
    });
    tasks.spawn({
        let proxy = proxy.clone();
        async move {
            while let Some((connection, reason, detail)) = refused.recv().await {
                // A word that this version does not know still means refused.
                let reason = DenialReason::from_word(&reason).unwrap_or(DenialReason::Unreachable);
                proxy.denied(connection, None, reason, &detail);
            }
        }
    });
    let addresses = Addresses::new();
    addresses.import(state.addresses());
    tasks.spawn(loopback::run(
        snapshot.clone(),
        addresses.clone(),
        state,
        settings.outbound.loopback,
        proxy.clone(),
        doors.clone(),
    ));
    if let Some((udp, tcp)) = dns {
        let inputs = gateway_dns::Inputs { snapshot: snapshot.clone(), addresses: addresses.clone(), ages };
        tasks.spawn(gateway_dns::serve(vec![udp], vec![tcp], inputs, stop.clone()));
    }
    if let Some(listener) = socks5 {
        let (proxy, addresses) = (proxy.clone(), addresses.clone());
        let accept = gateway_proxy::listen(listener, doors.clone(), move |stream| {
            let (proxy, addresses) = (proxy.clone(), addresses.clone());
            async move {
                // Whatever went wrong was answered and logged by the proxy.
                let _ = proxy.socks5(stream, |address| addresses.service(address)).await;
            }
        });
        tasks.spawn(once_lawful(snapshot.clone(), accept));
    }
    if let Some(listener) = inbound {
        let proxy = proxy.clone();
        let accept = gateway_proxy::listen(listener, stop.clone(), move |stream| {
            let proxy = proxy.clone();
            async move { proxy.serve(Box::new(stream)).await }
        });
        tasks.spawn(once_lawful(snapshot.clone(), accept));
    }
    tasks.spawn({
        let mut snapshot = snapshot.clone();
        async move {
            if snapshot.wait_for(Option::is_some).await.is_ok() {
                synced.done();
                tracing::info!("ready");
            }
        }
    });

    let signal = shutdown::signal().await?;
    tracing::info!(?signal, connections = proxy.connections().count(), "ending");
    // Never done: who is told to go is not ready any more.
    let _draining = readiness.block("draining");
    tokio::select! {
        () = drain::run(&proxy, settings.drain, &doors, &requests) => {}
        signal = shutdown::signal() => tracing::warn!(?signal, "told again: it no longer waits for what is under way"),
    }
    stop.cancel();
    proxy.cut_where(&gateway_proxy::Cut::Shutdown, |_| true);
    // Those that were cut still tell their ends so; the kernel does the rest.
    let deadline = tokio::time::Instant::now() + DRAIN_LIMIT;
    while proxy.connections().count() > 0 && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(DRAIN_STEP).await;
    }
    tasks.shutdown().await;
    Ok(())
}

/// Lets those who dial wait in the listener's queue until there is a snapshot; without one they would be refused. After
/// [`HOLD`] they are.
async fn once_lawful(mut snapshot: watch::Receiver<Option<Arc<Snapshot>>>, accept: impl Future<Output = ()>) {
    let _ = timeout(HOLD, snapshot.wait_for(Option::is_some)).await;
    accept.await;
}

async fn bind(sockets: &Sockets, key: &'static str, address: SocketAddr) -> Result<TcpListener> {
    sockets.listen(address).await.with_context(|| format!("{key}: cannot listen on {address}"))
}

/// What the proxy tells goes to the edge by the feed.
struct ToEdge(mpsc::Sender<Request>);

impl Control for ToEdge {
    /// A sidecar answers in the stream; there is nobody behind it to tell.
    fn denied(&self, _told: Told) {}

    fn extend(&self, connection: ConnectionId, _service: &Service, header: Vec<u8>) {
        let extend = Extend { connection: connection.0.to_vec(), header };
        if self.0.try_send(Request::Extend(extend)).is_err() {
            tracing::warn!(%connection, "too many extensions wait; this passage will end early");
        }
    }

    fn leaving(&self, notice: Notice) {
        let source = notice.source.to_string();
        let inbound = |id: &ConnectionId| Inbound { connection: id.0.to_vec(), source: source.clone() };
        let withdraw = Withdraw { connections: notice.connections.iter().map(inbound).collect() };
        // Without it they are cut in the end.
        let _ = self.0.try_send(Request::Withdraw(withdraw));
    }
}
