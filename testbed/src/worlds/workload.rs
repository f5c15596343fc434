//! A workload: its sidecar process, and an echo application within the test if it serves one.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use tokio::net::TcpStream;

use super::{
    World,
    app::{Conversation, EchoApp, dial},
    cluster::{Cluster, secret},
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
    folder: std::path::PathBuf,
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
        let token = cluster.run(&["workload", "token", account]).await?;
        let file = folder.join("token");
        secret(&file, token.trim())?;
        let enrolment = format!("token_file = {file:?}\nedge = \"{}\"\n", cluster.discovery());
        Self::start(folder, account, &enrolment, serves).await
    }

    /// Starts a sidecar that enrols by this user's id over the cluster's socket; the plan of the cluster must say as what
    /// account.
    ///
    /// # Errors
    /// It was refused, or did not start.
    pub async fn by_uid(world: &World, cluster: &Cluster, account: &str, serves: Option<Serving<'_>>) -> Result<Self> {
        let folder = world.folder(&format!("{account}.{}", cluster.name))?;
        let enrolment = format!("edge_socket = {:?}\n", cluster.socket());
        Self::start(folder, account, &enrolment, serves).await
    }

    async fn start(
        folder: std::path::PathBuf,
        account: &str,
        enrolment: &str,
        serves: Option<Serving<'_>>,
    ) -> Result<Self> {
        let socks = ports::free()?;
        let mut text =
            format!("{enrolment}state_dir = {:?}\n\n[outbound]\nsocks5 = \"{socks}\"\n\n", folder.join("state"));
        let mut app = None;
        if let Some((service, port)) = serves {
            let started = EchoApp::start().await?;
            text.push_str(&format!("[inbound]\nlisten = \"{}\"\n\n", ports::free()?));
            text.push_str(&format!("[[serve]]\nservice = {service:?}\nport = {port}\napp = \"{}\"\n", started.address));
            app = Some(started);
        }
        std::fs::write(folder.join("sidecar.toml"), text)?;
        let sidecar = run(account, &folder)?;
        let mut workload = Self { socks, name: account.to_owned(), sidecar, folder, _app: app };
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
        Self::start(folder, &self.name, "edge_socket = \"/nonexistent\"\n", None).await
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
        self.sidecar = run(&self.name, &self.folder)?;
        self.ready().await
    }

    /// Forgets who it is and enrols with a new token, under the same name.
    ///
    /// # Errors
    /// It had ended by itself, was refused, or did not start.
    pub async fn enrol_anew(&mut self, cluster: &Cluster) -> Result<()> {
        self.crash().await?;
        std::fs::remove_dir_all(self.folder.join("state"))?;
        let token = cluster.run(&["workload", "token", &self.name]).await?;
        let file = self.folder.join("token");
        std::fs::remove_file(&file)?;
        secret(&file, token.trim())?;
        self.restart().await
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

fn run(name: &str, folder: &std::path::Path) -> Result<Process> {
    let config = folder.join("sidecar.toml");
    let config = config.to_str().context("the temporary folder's path is not UTF-8")?;
    Process::start(&format!("{name}'s sidecar"), &["sidecar", "--config", config], &folder.join("sidecar.log"))
}
