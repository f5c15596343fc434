//! The signer as a part of a gateway: its process, and the edge's end of its socket.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use federation_identity::{
    RemoteSigner,
    seal::Kek,
    signer::{ANSWER_LIMIT, Server},
    token,
};
use gateway_admin::{Blocker, Readiness, telemetry};
use nix::unistd::Pid;
use tokio_util::sync::CancellationToken;

use crate::{config::Settings, confine};

/// How often the edge looks whether its signer answers.
const WATCH: Duration = Duration::from_millis(500);

/// Runs the signer until its edge and `parent` are gone. Its end of the socket is its standard input.
///
/// # Errors
/// The key file cannot be used, or the kernel does not confine it.
pub fn run(config: &Path, parent: u32) -> Result<()> {
    let parent = Pid::from_raw(parent.try_into()?);
    confine::end_with(parent)?;
    confine::name(c"hanse-signer")?;
    let settings = Settings::load(config)?;
    let _log = telemetry::init(settings.log.format.parse()?, &settings.log.level)?;
    let is_new = !settings.data_dir.join("store").exists();
    let kek = kek(&settings.kek_file, is_new)?;
    let channel = channel()?;
    // Random numbers are set up before nothing can be opened any more.
    let _ = token::random::<32>();
    let network_namespace = confine::signer(parent)?;
    tracing::info!(network_namespace, "the signer runs apart, without a network");
    let server = Server::new(kek, settings.trust_domain, settings.cluster);
    server.serve(channel.as_fd()).context("the signer's socket")
}

/// This part's end of the socket between edge and signer, which it got as its standard input.
fn channel() -> Result<OwnedFd> {
    io::stdin().as_fd().try_clone_to_owned().context("taking the signer's socket")
}

/// The edge's end.
///
/// # Errors
/// Standard input is none.
pub(crate) fn remote(settings: &Settings) -> Result<RemoteSigner> {
    RemoteSigner::new(channel()?, settings.trust_domain.clone(), settings.cluster.clone())
        .context("standard input is not a signer's socket: an edge is started by `hanse gateway`")
}

/// Keeps `readiness` blocked while the signer does not answer, until `stop`. What was signed before serves on.
pub(crate) async fn watch(signer: Arc<RemoteSigner>, readiness: Readiness, stop: CancellationToken) {
    let mut blocked: Option<Blocker> = None;
    loop {
        let asked = Arc::clone(&signer);
        let answer = tokio::task::spawn_blocking(move || asked.ping()).await;
        match (answer, blocked.take()) {
            (Ok(Ok(())), None) => {}
            (Ok(Ok(())), Some(blocker)) => {
                blocker.done();
                tracing::info!("the signer answers again");
            }
            (_, Some(blocker)) => blocked = Some(blocker),
            (Ok(Err(error)), None) => {
                tracing::error!(%error, limit = ?ANSWER_LIMIT, "no signer: nothing new is issued or written");
                blocked = Some(readiness.block("signer"));
            }
            // The runtime is ending.
            (Err(_), None) => return,
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(WATCH) => {}
        }
    }
}

/// Opens the file of the key-encryption key, or makes it if the store is new.
fn kek(path: &Path, store_is_new: bool) -> Result<Kek> {
    let shown = path.display();
    if path.exists() {
        return Kek::load(path).with_context(|| format!("kek_file {shown}"));
    }
    if !store_is_new {
        bail!(
            "kek_file {shown} is gone, and the store in data_dir was sealed with it: put it back from where you keep it"
        );
    }
    let kek = Kek::create(path).with_context(|| format!("making kek_file {shown}"))?;
    tracing::info!(
        path = %shown,
        "made a key that seals private keys in the store; keep a copy apart from the data. It guards copies of the \
         data, not a host that was broken into"
    );
    Ok(kek)
}
