//! The processes of the demo and the files they read: gateways, sidecars and applications on loopback.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use gateway_cli::Client;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::task::JoinSet;

use crate::{
    child::{Process, until},
    sockets::children,
};

/// Life of every SVID in the demo: short, so that renewal and expiry happen while one watches.
pub(crate) const SVID_TTL: Duration = Duration::from_secs(6);
/// How long a program may take to start.
const START_LIMIT: Duration = Duration::from_secs(20);

/// One cluster: its gateway and the files it lives from.
pub(crate) struct Cluster {
    pub(crate) name: String,
    folder: PathBuf,
    socket: PathBuf,
    config: PathBuf,
    /// Where its sidecars enrol by token.
    discovery: SocketAddr,
    gateway: Process,
}

/// What a sidecar is for.
pub(crate) struct Workload {
    /// `account.namespace`.
    pub(crate) account: &'static str,
    /// What it serves: service and the port that clients dial.
    pub(crate) serves: Option<(&'static str, u16)>,
    /// Whether it enrols by this user's id over the Unix socket, rather than by token.
    pub(crate) by_uid: bool,
}

/// A workload's sidecar, and its application if it serves one.
pub(crate) struct Running {
    pub(crate) socks: SocketAddr,
    /// Where its mesh DNS answers.
    pub(crate) dns: SocketAddr,
    pub(crate) sidecar: Process,
    app: Option<Process>,
}

/// Everything that runs.
pub(crate) struct World {
    folder: tempfile::TempDir,
    clusters: BTreeMap<String, Cluster>,
    workloads: BTreeMap<&'static str, Running>,
}

impl World {
    pub(crate) fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("hanse-demo-").tempdir()?;
        Ok(Self { folder, clusters: BTreeMap::new(), workloads: BTreeMap::new() })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Leaves the files where they are, for whoever wants to know why something failed.
    pub(crate) fn keep(&mut self) {
        self.folder.disable_cleanup(true);
    }

    /// Starts a gateway called `name`. `directory` tells two gateways of one name apart; `inbound` is whether its edge
    /// accepts sessions.
    pub(crate) async fn gateway(&mut self, name: &str, key: &str, inbound: bool) -> Result<()> {
        let folder = self.folder.path().join(key);
        std::fs::create_dir(&folder)?;
        let socket = folder.join("hanse.sock");
        let discovery = free_tcp()?;
        let mut text = format!(
            "cluster = {name:?}\ndata_dir = {:?}\nsocket = {socket:?}\nkek_file = {:?}\n\n[svid]\nttl = \"{}s\"\n\n\
             [mesh]\nlisten = \"127.0.0.1:0\"\n\n[discovery]\nlisten = \"{discovery}\"\n\n\
             [admin]\nlisten = \"{}\"\n\n[log]\nformat = \"json\"\n\n",
            folder.join("data"),
            folder.join("kek"),
            SVID_TTL.as_secs(),
            free_tcp()?,
        );
        if key != name {
            // Another cluster that took the name: its root and its trust domain are its own.
            text = format!("trust_domain = \"{key}.mesh.internal\"\n{text}");
        }
        if inbound {
            // One listener of each family, so that both are used.
            let address = if key == "west" { free_udp_six()? } else { free_udp()? };
            text.push_str(&format!("[federation]\nlisten = \"{address}\"\n\n"));
        }
        text.push_str(&format!(
            "[[workload]]\nuid = {}\naccount = \"ledger\"\nnamespace = \"books\"\n",
            nix::unistd::getuid()
        ));
        let config = folder.join("gateway.toml");
        std::fs::write(&config, text)?;
        let gateway = start_gateway(key, &folder, &config)?;
        let mut cluster = Cluster { name: name.to_owned(), folder, socket, config, discovery, gateway };
        cluster.ready().await?;
        self.clusters.insert(key.to_owned(), cluster);
        Ok(())
    }

    pub(crate) fn cluster(&mut self, key: &str) -> Result<&mut Cluster> {
        self.clusters.get_mut(key).with_context(|| format!("no cluster {key}"))
    }

    pub(crate) fn workload(&mut self, key: &str) -> Result<&mut Running> {
        self.workloads.get_mut(key).with_context(|| format!("no workload {key}"))
    }

    /// Starts the sidecar of a workload in `cluster`, and its application first if it serves one.
    pub(crate) async fn start_workload(&mut self, key: &'static str, cluster: &str, what: Workload) -> Result<()> {
        let folder = self.folder.path().join(key);
        std::fs::create_dir(&folder)?;
        let home = self.cluster(cluster)?;
        let enrolment = if what.by_uid {
            format!("edge_socket = {:?}\n", home.socket)
        } else {
            let issued = home.client().await?.workload_token(what.account).await?;
            let file = folder.join("token");
            std::fs::write(&file, issued.token)?;
            format!("token_file = {file:?}\nedge = \"{}\"\n", home.discovery)
        };
        let (socks, dns) = (free_tcp()?, free_udp()?);
        let mut text = format!(
            "{enrolment}state_dir = {:?}\n\n[outbound]\nsocks5 = \"{socks}\"\nloopback = {}\n\n[dns]\nlisten = \"{dns}\"\n\n\
             [log]\nformat = \"json\"\n\n",
            folder.join("state"),
            what.serves.is_none(),
        );
        let mut app = None;
        if let Some((service, port)) = what.serves {
            let listen = free_tcp()?;
            let arguments = ["demo", "--serve-http", &listen.to_string(), "--serve-name", key];
            app = Some(Process::start(&format!("{key}'s application"), &arguments, &folder.join("app.log"))?);
            text.push_str(&format!("[[serve]]\nservice = {service:?}\nport = {port}\napp = \"{listen}\"\n"));
        }
        let config = folder.join("sidecar.toml");
        std::fs::write(&config, text)?;
        let arguments = ["sidecar", "--config", path_text(&config)?];
        let mut sidecar = Process::start(&format!("{key}'s sidecar"), &arguments, &folder.join("sidecar.log"))?;
        until(&format!("{key}'s sidecar is ready"), START_LIMIT, || {
            let state = sidecar.alive();
            async move {
                state?;
                tokio::net::TcpStream::connect(socks).await?;
                Ok(())
            }
        })
        .await?;
        self.workloads.insert(key, Running { socks, dns, sidecar, app });
        Ok(())
    }

    /// A process that [`World::end`] does not know of.
    pub(crate) fn stray(&self) -> Result<Process> {
        let listen = free_tcp()?.to_string();
        Process::start("a stray", &["demo", "--serve-http", &listen], &self.folder.path().join("stray.log"))
    }

    /// Every process id that runs now, the parts of gateways included.
    pub(crate) fn pids(&self) -> Result<Vec<u32>> {
        let gateways = self.clusters.values().map(|cluster| &cluster.gateway);
        let workloads = self.workloads.values().flat_map(|running| running.app.iter().chain([&running.sidecar]));
        let mut pids: Vec<u32> = gateways.chain(workloads).filter_map(Process::pid).collect();
        for pid in pids.clone() {
            pids.extend(children(pid)?);
        }
        Ok(pids)
    }

    /// Ends one gateway for good.
    pub(crate) async fn end_gateway(&mut self, key: &str) -> Result<()> {
        match self.clusters.remove(key) {
            Some(mut cluster) => cluster.gateway.end().await,
            None => Ok(()),
        }
    }

    /// Ends every process: workloads first, then gateways, each kind at once. The first error is kept, the rest still end.
    pub(crate) async fn end(&mut self) -> Result<()> {
        let mut processes = JoinSet::new();
        for (_, mut running) in std::mem::take(&mut self.workloads) {
            processes.spawn(async move {
                let sidecar = running.sidecar.end().await;
                match &mut running.app {
                    Some(app) => sidecar.and(app.end().await),
                    None => sidecar,
                }
            });
        }
        let mut result = all(processes).await;
        let mut processes = JoinSet::new();
        for (_, mut cluster) in std::mem::take(&mut self.clusters) {
            processes.spawn(async move { cluster.gateway.end().await });
        }
        result = result.and(all(processes).await);
        result
    }
}

async fn all(mut processes: JoinSet<Result<()>>) -> Result<()> {
    let mut result = Ok(());
    while let Some(ended) = processes.join_next().await {
        result = result.and(ended?);
    }
    result
}

impl Cluster {
    pub(crate) async fn client(&self) -> Result<Client> {
        Ok(Client::connect(&self.socket).await?)
    }

    pub(crate) fn pid(&self) -> Result<u32> {
        self.gateway.pid().with_context(|| format!("{}'s gateway has ended", self.name))
    }

    /// Kills the gateway as a crash would.
    pub(crate) async fn crash(&mut self) -> Result<()> {
        self.gateway.crash().await
    }

    /// Sends a signal to the gateway and to the processes that it started.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let gateway = self.pid()?;
        for pid in children(gateway)?.into_iter().chain([gateway]) {
            kill(Pid::from_raw(i32::try_from(pid)?), signal)?;
        }
        Ok(())
    }

    /// Starts the gateway again from what is on its disk.
    pub(crate) async fn restart(&mut self) -> Result<()> {
        self.gateway = start_gateway(&self.name, &self.folder, &self.config)?;
        self.ready().await
    }

    async fn ready(&mut self) -> Result<()> {
        let (name, socket) = (self.name.clone(), self.socket.clone());
        let gateway = &mut self.gateway;
        until(&format!("{name}'s gateway is ready"), START_LIMIT, || {
            let state = gateway.alive();
            let socket = socket.clone();
            async move {
                state?;
                let status = Client::connect(&socket).await?.status().await?;
                if status.revision == 0 { bail!("no snapshot yet") } else { Ok(()) }
            }
        })
        .await
    }
}

fn start_gateway(name: &str, folder: &Path, config: &Path) -> Result<Process> {
    let arguments = ["gateway", "--config", path_text(config)?];
    Process::start(&format!("{name}'s gateway"), &arguments, &folder.join("gateway.log"))
}

fn path_text(path: &Path) -> Result<&str> {
    path.to_str().context("the temporary folder's path is not UTF-8")
}

/// A TCP port that was free a moment ago.
fn free_tcp() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// A port that was free a moment ago for UDP and for TCP.
fn free_udp() -> Result<SocketAddr> {
    for _ in 0..100 {
        let address = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no port is free for both UDP and TCP")
}

/// The same on IPv6, or on IPv4 where the host has no IPv6.
fn free_udp_six() -> Result<SocketAddr> {
    match UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)) {
        Ok(socket) => Ok(socket.local_addr()?),
        Err(_) => free_udp(),
    }
}
