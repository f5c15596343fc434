//! A workload: its sidecar process, and an echo application within the test if it serves one.

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{net::TcpStream, time::Instant};

use super::{
    World,
    app::{Conversation, EchoApp, dial},
    cluster::{Cluster, END_LIMIT, secret},
    ports,
    process::Process,
    until,
};

/// How long a sidecar may take to start and to enrol.
const START_LIMIT: Duration = Duration::from_secs(20);

/// What a workload serves: `service.namespace` and the port that clients dial.
pub type Serving<'a> = (&'a str, u16);

/// A sidecar that was started.
pub struct Workload {
    /// Its SOCKS5 listener.
    pub socks: SocketAddr,
    name: String,
    sidecar: Process,
    folder: PathBuf,
    executable: PathBuf,
    /// Its SOCKS5 listener, if this process holds it.
    held: Option<TcpListener>,
    _app: Option<EchoApp>,
}

impl Workload {
    /// Enrols `account` (`account.namespace`) in `cluster` by a token and starts its sidecar.
    ///
    /// # Errors
    /// It was refused, or did not start.
    pub async fn by_token(
        world: &World,
        cluster: &Cluster,
        account: &str,
        serves: Option<Serving<'_>>,
    ) -> Result<Self> {
        let folder = world.folder(&format!("{account}.{}", cluster.name))?;
        let enrolment = enrolment(&folder, cluster, account).await?;
        Self::start(cluster.executable(), folder, account, &enrolment, serves, None).await
    }

    /// The same with a SOCKS5 listener that this process holds, as systemd does with `ListenStream=`: whoever dials while
    /// the sidecar is replaced waits in the listener's queue.
    ///
    /// # Errors
    /// It was refused, or did not start.
    pub async fn activated(world: &World, cluster: &Cluster, account: &str, executable: &Path) -> Result<Self> {
        let folder = world.folder(&format!("{account}.{}", cluster.name))?;
        let enrolment = enrolment(&folder, cluster, account).await?;
        let held = TcpListener::bind(ports::free()?)?;
        let socks = held.local_addr()?;
        let text = format!("{enrolment}state_dir = {:?}\n\n[outbound]\nsocks5 = \"{socks}\"\n", folder.join("state"));
        std::fs::write(folder.join("sidecar.toml"), text)?;
        let sidecar = run(executable, account, &folder, Some(&held))?;
        let executable = executable.to_owned();
        let mut workload =
            Self { socks, name: account.to_owned(), sidecar, folder, executable, held: Some(held), _app: None };
        workload.ready().await?;
        Ok(workload)
    }

    /// The same for a service whose application is at `app`; the sidecar runs `executable`.
    ///
    /// # Errors
    /// It was refused, or did not start.
    pub async fn before(
        world: &World,
        cluster: &Cluster,
        account: &str,
        serves: Option<(Serving<'_>, SocketAddr)>,
        executable: &Path,
    ) -> Result<Self> {
        let folder = world.folder(&format!("{account}.{}", cluster.name))?;
        let enrolment = enrolment(&folder, cluster, account).await?;
        let (serves, app) = serves.unzip();
        Self::start(executable, folder, account, &enrolment, serves, app).await
    }

    /// Starts a sidecar that enrols by this user's id over the cluster's socket; the plan of the cluster must say as what
    /// account.
    ///
    /// # Errors
    /// It was refused, or did not start.
    pub async fn by_uid(world: &World, cluster: &Cluster, account: &str, serves: Option<Serving<'_>>) -> Result<Self> {
        let folder = world.folder(&format!("{account}.{}", cluster.name))?;
        let enrolment = format!("edge_socket = {:?}\n", cluster.socket());
        Self::start(cluster.executable(), folder, account, &enrolment, serves, None).await
    }

    async fn start(
        executable: &Path,
        folder: PathBuf,
        account: &str,
        enrolment: &str,
        serves: Option<Serving<'_>>,
        at: Option<SocketAddr>,
    ) -> Result<Self> {
        let socks = ports::free()?;
        let mut text =
            format!("{enrolment}state_dir = {:?}\n\n[outbound]\nsocks5 = \"{socks}\"\n\n", folder.join("state"));
        let mut app = None;
        if let Some((service, port)) = serves {
            let address = match at {
                Some(address) => address,
                None => app.insert(EchoApp::start().await?).address,
            };
            text.push_str(&format!("[inbound]\nlisten = \"{}\"\n\n", ports::free()?));
            text.push_str(&format!("[[serve]]\nservice = {service:?}\nport = {port}\napp = \"{address}\"\n"));
        }
        std::fs::write(folder.join("sidecar.toml"), text)?;
        let sidecar = run(executable, account, &folder, None)?;
        let executable = executable.to_owned();
        let mut workload = Self { socks, name: account.to_owned(), sidecar, folder, executable, held: None, _app: app };
        workload.ready().await?;
        Ok(workload)
    }

    /// The sidecar of a thief, who copied this one's state: its key and its certificate, and nothing to enrol with.
    ///
    /// # Errors
    /// It did not start.
    pub async fn stolen(&self, world: &World) -> Result<Self> {
        let folder = world.folder(&format!("{}.stolen", self.name))?;
        let state = folder.join("state");
        std::fs::create_dir(&state)?;
        std::fs::set_permissions(&state, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        for file in std::fs::read_dir(self.folder.join("state"))? {
            let file = file?;
            if file.file_type()?.is_file() {
                std::fs::copy(file.path(), state.join(file.file_name()))?;
            }
        }
        Self::start(&self.executable, folder, &self.name, "edge_socket = \"/nonexistent\"\n", None, None).await
    }

    async fn ready(&mut self) -> Result<()> {
        let (sidecar, socks) = (&mut self.sidecar, self.socks);
        until(&format!("{}'s sidecar is ready", self.name), START_LIMIT, async || {
            sidecar.alive()?;
            TcpStream::connect(socks).await?;
            Ok(())
        })
        .await
    }

    /// Kills the sidecar as a crash would.
    ///
    /// # Errors
    /// It had ended by itself.
    pub async fn crash(&mut self) -> Result<()> {
        self.sidecar.crash().await
    }

    /// Starts the sidecar again from its state folder and waits until it listens.
    ///
    /// # Errors
    /// It did not start.
    pub async fn restart(&mut self) -> Result<()> {
        self.sidecar = run(&self.executable, &self.name, &self.folder, self.held.as_ref())?;
        self.ready().await
    }

    /// Forgets who it is and enrols with a new token, under the same name.
    ///
    /// # Errors
    /// It had ended by itself, was refused, or did not start.
    pub async fn enrol_anew(&mut self, cluster: &Cluster) -> Result<()> {
        self.crash().await?;
        std::fs::remove_dir_all(self.folder.join("state"))?;
        std::fs::remove_file(self.folder.join("token"))?;
        enrolment(&self.folder, cluster, &self.name).await?;
        self.restart().await
    }

    /// Replaces the sidecar by `executable` as an upgrade does: SIGTERM, and the new one once the old one has ended. How
    /// long the first took to end, and the second until it listened.
    ///
    /// # Errors
    /// The old one did not end well, or the new one does not start.
    pub async fn replace(&mut self, executable: &Path) -> Result<(Duration, Duration)> {
        let ended = self.sidecar.terminate(END_LIMIT).await?;
        let began = Instant::now();
        self.executable = executable.into();
        self.restart().await?;
        Ok((ended, began.elapsed()))
    }

    /// Everything that the sidecar wrote.
    pub fn output(&self) -> String {
        self.sidecar.output()
    }

    /// Dials `name:port` once and exchanges a line.
    ///
    /// # Errors
    /// It was refused or cut.
    pub async fn call(&self, name: &str, port: u16) -> Result<Conversation> {
        let mut conversation = dial(self.socks, name, port).await?;
        conversation.exchange().await?;
        Ok(conversation)
    }

    /// Dials `name:port` until it works, at most for `limit`.
    ///
    /// # Errors
    /// It does not in time.
    pub async fn until_call(&self, name: &str, port: u16, limit: Duration) -> Result<Conversation> {
        until(&format!("{} reaches {name}", self.name), limit, async || self.call(name, port).await).await
    }
}

/// Lays a new token for `account` into `folder`. The lines of a configuration that enrol by it.
async fn enrolment(folder: &Path, cluster: &Cluster, account: &str) -> Result<String> {
    let token = cluster.run(&["workload", "token", account]).await?;
    let file = folder.join("token");
    secret(&file, token.trim())?;
    Ok(format!("token_file = {file:?}\nedge = \"{}\"\n", cluster.discovery()))
}

fn run(executable: &Path, name: &str, folder: &Path, held: Option<&TcpListener>) -> Result<Process> {
    let config = folder.join("sidecar.toml");
    let config = config.to_str().context("the temporary folder's path is not UTF-8")?;
    let (name, arguments, log) =
        (format!("{name}'s sidecar"), ["sidecar", "--config", config], folder.join("sidecar.log"));
    match held {
        None => Process::start(executable, &name, &arguments, &log),
        Some(held) => Process::start_activated(executable, &name, &arguments, &log, held),
    }
}
