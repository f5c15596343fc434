//! One cluster: its gateway process, the files it lives from, and an operator at its socket.

use std::{
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::{net::UnixStream, time::Instant};

use super::{
    CONVERGE, World,
    cli::Answer,
    network::{Network, Relay},
    ports,
    process::{Process, hanse},
    until,
};
use crate::netns::Site;

/// Port of the edge at a site of the emulated WAN.
const SITE_PORT: u16 = 7_443;
/// How long a program that is told to end may take, with all that it waits for.
pub(super) const END_LIMIT: Duration = Duration::from_secs(50);
/// How long a gateway may take to start.
const START_LIMIT: Duration = Duration::from_secs(20);

/// What a cluster shall be.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The cluster's name.
    name: String,
    /// Folder in the world, which tells two clusters of one name apart.
    key: String,
    inbound: bool,
    relayed: bool,
    fixed: bool,
    svid_ttl: Option<Duration>,
    trust_domain: Option<String>,
    federation: String,
    site: Option<Site>,
    more: String,
    executable: PathBuf,
}

impl Plan {
    /// A cluster that accepts nothing inbound.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            key: name.into(),
            inbound: false,
            relayed: false,
            fixed: true,
            svid_ttl: None,
            trust_domain: None,
            federation: String::new(),
            site: None,
            more: String::new(),
            executable: hanse().to_owned(),
        }
    }

    /// Its gateway, and the operator at its socket, run this executable; `hanse` as it was built with this program if left
    /// out.
    pub fn executable(mut self, executable: &Path) -> Self {
        self.executable = executable.into();
        self
    }

    /// Its files lie under another name than the cluster's.
    pub fn under(mut self, key: &str) -> Self {
        self.key = key.into();
        self
    }

    /// It accepts sessions.
    pub fn inbound(mut self) -> Self {
        self.inbound = true;
        self
    }

    /// It accepts sessions, and others reach it through a relay of the world's [`Network`].
    pub fn relayed(mut self) -> Self {
        self.relayed = true;
        self.inbound()
    }

    /// It carries connections between others.
    pub fn relay(self) -> Self {
        self.federation("relay = \"members\"")
    }

    /// It runs in a namespace of the emulated WAN and accepts sessions at that site's IPv4 address.
    pub fn at(mut self, site: &Site) -> Self {
        self.site = Some(site.clone());
        self
    }

    /// The listeners for its sidecars are the default ones: free ports, others at each start.
    pub fn any_ports(mut self) -> Self {
        self.fixed = false;
        self
    }

    /// Life of its SVIDs; the program's default if left out.
    pub fn svid_ttl(mut self, ttl: Duration) -> Self {
        self.svid_ttl = Some(ttl);
        self
    }

    /// Its trust domain; `<name>.mesh.internal` if left out.
    pub fn trust_domain(mut self, domain: &str) -> Self {
        self.trust_domain = Some(domain.into());
        self
    }

    /// More keys of its `[federation]` table; it has to accept sessions.
    pub fn federation(mut self, more: &str) -> Self {
        self.federation.push_str(more);
        self.federation.push('\n');
        self
    }

    /// More text of the configuration: tables that no other method of this plan writes.
    pub fn with(mut self, more: &str) -> Self {
        self.more.push_str(more);
        self.more.push('\n');
        self
    }
}

/// A cluster whose gateway was started.
pub struct Cluster {
    /// Its name.
    pub name: String,
    key: String,
    folder: PathBuf,
    socket: PathBuf,
    config: PathBuf,
    /// Where its sidecars enrol by token.
    discovery: SocketAddr,
    namespace: Option<String>,
    executable: PathBuf,
    gateway: Process,
    network: Network,
    _relay: Option<Relay>,
}

impl Cluster {
    /// Starts a gateway and waits until it answers.
    ///
    /// # Errors
    /// It did not start.
    pub async fn start(world: &World, plan: Plan) -> Result<Self> {
        let folder = world.folder(&plan.key)?;
        let socket = folder.join("hanse.sock");
        let discovery = ports::free()?;
        let mut text = format!(
            "cluster = {:?}\ndata_dir = {:?}\nsocket = {socket:?}\nkek_file = {:?}\n\n",
            plan.name,
            folder.join("data"),
            folder.join("kek"),
        );
        if let Some(domain) = &plan.trust_domain {
            text.push_str(&format!("trust_domain = {domain:?}\n\n"));
        }
        if plan.fixed {
            text.push_str(&format!(
                "[mesh]\nlisten = \"{}\"\n\n[discovery]\nlisten = \"{discovery}\"\n\n",
                ports::free()?
            ));
        }
        if let Some(site) = &plan.site {
            text.push_str(&format!("[federation]\nlisten = \"{}:{SITE_PORT}\"\n\n", site.ipv4));
        }
        let mut relay = None;
        if plan.inbound {
            let listen = ports::free()?;
            text.push_str(&format!("[federation]\nlisten = \"{listen}\"\n"));
            if plan.relayed {
                let started = world.network().relay(&plan.key, listen).await?;
                text.push_str(&format!("advertise = [\"{}\"]\n", started.address));
                relay = Some(started);
            }
            text.push_str(&plan.federation);
            text.push('\n');
        }
        if let Some(ttl) = plan.svid_ttl {
            text.push_str(&format!("[svid]\nttl = \"{}ms\"\n\n", ttl.as_millis()));
        }
        text.push_str(&plan.more);
        let config = folder.join("gateway.toml");
        std::fs::write(&config, text)?;
        let namespace = plan.site.map(|site| site.namespace);
        let gateway = start(&plan.executable, &plan.key, namespace.as_deref(), &folder, &config)?;
        let network = world.network().clone();
        let Plan { name, key, executable, .. } = plan;
        let mut cluster = Self {
            name,
            key,
            folder,
            socket,
            config,
            discovery,
            namespace,
            executable,
            gateway,
            network,
            _relay: relay,
        };
        cluster.ready().await?;
        Ok(cluster)
    }

    /// Kills the gateway as a crash would.
    ///
    /// # Errors
    /// It had ended by itself.
    pub async fn crash(&mut self) -> Result<()> {
        self.gateway.crash().await
    }

    /// Starts the gateway again from what is on its disk, without waiting for it.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn start_again(&mut self) -> Result<()> {
        self.gateway = start(&self.executable, &self.key, self.namespace.as_deref(), &self.folder, &self.config)?;
        Ok(())
    }

    /// Replaces the gateway by `executable` as an upgrade does: SIGTERM, and the new one once the old one has ended. How
    /// long the first took to end, and the second until it answered.
    ///
    /// # Errors
    /// The old one did not end well, or the new one does not start.
    pub async fn replace(&mut self, executable: &Path) -> Result<(Duration, Duration)> {
        let ended = self.gateway.terminate(END_LIMIT).await?;
        let began = Instant::now();
        self.executable = executable.into();
        self.restart().await?;
        Ok((ended, began.elapsed()))
    }

    /// The executable that its gateway runs.
    pub fn executable(&self) -> &Path {
        &self.executable
    }

    /// Starts the gateway again from what is on its disk and waits until it answers.
    ///
    /// # Errors
    /// It did not start.
    pub async fn restart(&mut self) -> Result<()> {
        self.start_again()?;
        self.ready().await
    }

    /// Waits until the gateway answers with a snapshot.
    ///
    /// # Errors
    /// It ended, or does not answer.
    pub async fn ready(&mut self) -> Result<()> {
        let (gateway, socket) = (&mut self.gateway, self.socket.as_path());
        until(&format!("{}'s gateway is ready", self.key), START_LIMIT, async || {
            gateway.alive()?;
            // Cheaper than a process that finds nothing.
            UnixStream::connect(socket).await?;
            let status = Answer::of(socket, &["status", "-o", "json"]).await?;
            ensure!(status.json()?["revision"].as_u64() > Some(0), "no snapshot yet");
            Ok(())
        })
        .await?;
        self.network.own(&self.key, self.gateway.udp_ports()?);
        Ok(())
    }

    /// An error if the gateway ended.
    ///
    /// # Errors
    /// It did.
    pub fn alive(&mut self) -> Result<()> {
        self.gateway.alive()
    }

    /// The gateway's process.
    pub fn gateway(&mut self) -> &mut Process {
        &mut self.gateway
    }

    /// Everything that the gateway wrote in all its lives.
    pub fn output(&self) -> String {
        self.gateway.output()
    }

    /// Unix socket of its manage API.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Its folder: `data`, `kek`, `gateway.toml`, `gateway.log`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where sidecars enrol by token.
    pub(super) fn discovery(&self) -> SocketAddr {
        self.discovery
    }

    /// Runs one verb.
    ///
    /// # Errors
    /// The verb did not run to its end; a refusal is an answer.
    pub async fn ask(&self, arguments: &[&str]) -> Result<Answer> {
        Answer::by(&self.executable, &self.socket, arguments).await
    }

    /// Runs one verb that must end with 0; its data.
    ///
    /// # Errors
    /// It was refused.
    pub async fn run(&self, arguments: &[&str]) -> Result<String> {
        let answer = self.ask(arguments).await?;
        answer.done().with_context(|| format!("{}: hanse {}", self.key, arguments.join(" ")))
    }

    /// Runs one verb that must end with 0 with `-o json`; its data.
    ///
    /// # Errors
    /// It was refused.
    pub async fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[arguments, &["-o", "json"]].concat()).await?;
        serde_json::from_str(&text).with_context(|| format!("{}: {text:?}", self.key))
    }

    /// The rows of a list verb: what stands under its one field.
    ///
    /// # Errors
    /// It was refused, or is no list.
    pub async fn list(&self, arguments: &[&str], field: &str) -> Result<Vec<Value>> {
        let reply = self.json(arguments).await?;
        reply[field].as_array().cloned().with_context(|| format!("no {field} in {reply}"))
    }

    /// A join token for `joiner`.
    ///
    /// # Errors
    /// It was refused.
    pub async fn token(&self, joiner: &str, more: &[&str]) -> Result<String> {
        Ok(self.run(&[&["link", "token", joiner], more].concat()).await?.trim().to_owned())
    }

    /// Tries to join with `token`; `more` are further arguments.
    ///
    /// # Errors
    /// The verb did not run to its end; a refusal is an answer.
    pub async fn join(&self, token: &str, more: &[&str]) -> Result<Answer> {
        let file = self.folder.join("join.token");
        secret(&file, token)?;
        let file = file.to_str().context("the temporary folder's path is not UTF-8")?;
        self.ask(&[&["link", "join", "-f", file], more].concat()).await
    }

    /// What `hanse intention check` says: whether the call may be, and the fixed word if not.
    ///
    /// # Errors
    /// No answer.
    pub async fn check(&self, source: &str, destination: &str) -> Result<(bool, String)> {
        let answer = self.ask(&["intention", "check", source, destination, "-o", "json"]).await?;
        let reply = answer.json()?;
        let allowed = reply["allowed"].as_bool().context("allowed")?;
        ensure!(answer.code == i32::from(!allowed), "exit code {} for {reply}", answer.code);
        Ok((allowed, reply["reason"].as_str().unwrap_or_default().to_owned()))
    }

    /// Waits until `hanse intention check` says so.
    ///
    /// # Errors
    /// It does not in time.
    pub async fn until_check(&self, source: &str, destination: &str, allowed: bool) -> Result<()> {
        let word = if allowed { "allowed" } else { "denied" };
        until(&format!("{source} -> {destination} is {word} at {}", self.key), CONVERGE, async || {
            let (says, reason) = self.check(source, destination).await?;
            ensure!(says == allowed, "it says allowed={says} {reason}");
            Ok(())
        })
        .await
    }

    /// Whether `service list` shows a service, by its whole name.
    ///
    /// # Errors
    /// The gateway does not answer.
    pub async fn sees(&self, service: &str) -> Result<bool> {
        let services = self.list(&["service", "list"], "services").await?;
        Ok(services.iter().any(|shown| shown["name"] == service))
    }

    /// Waits until `service list` shows a service, or does not.
    ///
    /// # Errors
    /// It did not come true.
    pub async fn until_sees(&self, service: &str, wanted: bool) -> Result<()> {
        until(&format!("{} sees {service}: {wanted}", self.name), CONVERGE, async || {
            ensure!(self.sees(service).await? == wanted, "not yet");
            Ok(())
        })
        .await
    }

    /// Whether the mesh DNS knows a name; the verb's exit code says the same.
    ///
    /// # Errors
    /// The gateway does not answer, or contradicts itself.
    pub async fn resolves(&self, name: &str) -> Result<bool> {
        let answer = self.ask(&["dns", name, "-o", "json"]).await?;
        let found = answer.json()?["rcode"] == "NOERROR";
        ensure!(answer.code == i32::from(!found), "exit code {} for {}", answer.code, answer.data);
        Ok(found)
    }

    /// State of the link with `other`.
    ///
    /// # Errors
    /// No answer, or no such link.
    pub async fn link_state(&self, other: &str) -> Result<String> {
        let links = self.list(&["link", "list"], "links").await?;
        let link = links.iter().find(|link| link["cluster"] == other);
        let link = link.with_context(|| format!("{} has no link with {other}: {links:?}", self.key))?;
        Ok(link["state"].as_str().context("state")?.to_owned())
    }
}

/// Links clusters: the first issues a token for each other one, with `more` arguments, and waits until every link is up.
///
/// # Errors
/// A token or a join was refused, or a link does not come up.
pub async fn link(clusters: &[&Cluster], more: &[&str]) -> Result<()> {
    let (issuer, joiners) = clusters.split_first().context("no cluster")?;
    for joiner in joiners {
        let token = issuer.token(&joiner.name, more).await?;
        joiner.join(&token, &[]).await?.done().with_context(|| format!("{} joins", joiner.name))?;
    }
    for cluster in clusters {
        until(&format!("{} knows all and every link is up", cluster.name), CONVERGE, async || {
            let links = cluster.list(&["link", "list"], "links").await?;
            let up = links.iter().filter(|link| link["state"] == "up").count();
            ensure!(up + 1 == clusters.len(), "{up} links are up: {links:?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// Writes a file that only its owner reads.
pub(super) fn secret(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(path)?;
    Ok(writeln!(file, "{text}")?)
}

fn start(executable: &Path, key: &str, namespace: Option<&str>, folder: &Path, config: &Path) -> Result<Process> {
    let config = config.to_str().context("the temporary folder's path is not UTF-8")?;
    let (name, arguments, log) =
        (format!("{key}'s gateway"), ["gateway", "--config", config], folder.join("gateway.log"));
    match namespace {
        None => Process::start(executable, &name, &arguments, &log),
        Some(namespace) => Process::start_within(namespace, executable, &name, &arguments, &log),
    }
}
