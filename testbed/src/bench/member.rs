//! One cluster of this process: real keys, real QUIC on loopback, a store of its own on the disk.
//!
//! In: a name, and how far away it is. Out: a `Link` to measure. Never: more than a gateway's federation half; whole
//! gateways over an emulated WAN are what `wan` measures.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use federation_identity::{LiveSvid, LocalSigner, SVID_TTL_DEFAULT, Signer, Svid, SvidKey, Verifier, now, seal::Kek};
use federation_link::{Incoming, Limits, Link, Options};
use federation_model::{
    Action, Audience, Body, ClusterName, DestinationPattern, Intention, IntentionKey, Label, Layer, MemberTerms,
    RuleState, Snapshot, SourcePattern, TrustDomain,
};
use tempfile::TempDir;
use tokio::{net::UdpSocket, time::timeout};

use crate::path::Path;

/// Longest wait for anything that should happen.
pub(crate) const SOON: Duration = Duration::from_secs(120);

pub(crate) struct Member {
    pub(crate) name: ClusterName,
    pub(crate) link: Link,
    // Drained by nobody: a bench opens no tunnels.
    _incoming: Incoming,
    _path: Option<Path>,
    _folder: TempDir,
}

impl Member {
    /// Opens a cluster that founds a federation of its own; packets to it take `delay`.
    pub(crate) async fn open(name: &str, delay: Duration) -> Result<Self> {
        let (name, domain): (ClusterName, TrustDomain) = (name.parse()?, format!("{name}.mesh.internal").parse()?);
        let (signer, _) = LocalSigner::generate(&domain, &name, now())?;
        let key = SvidKey::generate();
        let issued = signer.sign_svid(&domain.edge(&name), &key.csr(), SVID_TTL_DEFAULT, now())?;
        let live_svid = LiveSvid::new();
        live_svid.set(Svid::assemble(key, issued.full_chain())?);
        let folder = tempfile::tempdir()?;
        let store = federation_store::open_sled(folder.path().join("store"), [7; 32]).await?;
        let listen: SocketAddr = UdpSocket::bind("127.0.0.1:0").await?.local_addr()?;
        let path = if delay.is_zero() { None } else { Some(Path::to(listen, delay).await?) };
        let front = path.as_ref().map_or(listen, Path::front);
        let options = Options {
            store,
            candidate: signer.candidate(),
            signer: Arc::new(signer),
            live_svid,
            verifier: Verifier::new(),
            listen: Some(listen),
            advertise: vec![front.to_string().parse().map_err(anyhow::Error::msg)?],
            terms: MemberTerms::default(),
            // All come from one address here.
            limits: Limits { pending_per_address_max: 1_024, ..Limits::default() },
            seal: Arc::new(Kek::generate()),
            epoch_floor: 1,
        };
        let (link, incoming) = Link::open(options).await?;
        Ok(Self { name, link, _incoming: incoming, _path: path, _folder: folder })
    }

    /// Joins by a token of `issuer`, as a lawmaker.
    pub(crate) async fn join(&self, issuer: &Self) -> Result<()> {
        let (token, _) = issuer.link.issue_token(self.name.clone(), Duration::from_secs(600), true).await?;
        self.link.join(&token).await?;
        Ok(())
    }

    /// Waits until there is a session with every one of `others`.
    pub(crate) async fn until_linked(&self, others: &[Self]) -> Result<()> {
        let wait = async {
            for other in others.iter().filter(|other| other.link.own() != self.link.own()) {
                while self.link.session_peer(other.link.own()).is_none() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        };
        timeout(SOON, wait).await.with_context(|| format!("{} has no session with everybody", self.name))
    }

    /// Waits for a snapshot, and says nothing of how it came.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&Snapshot) -> bool) -> Result<()> {
        let mut snapshots = self.link.snapshot();
        let found = snapshots.wait_for(|held| held.as_ref().is_some_and(|held| wanted(held)));
        timeout(SOON, found).await.with_context(|| format!("{}: {what}: not within {SOON:?}", self.name))??;
        Ok(())
    }

    /// Writes `count` intentions that differ, from `first` on, many at a time.
    pub(crate) async fn legislate(&self, first: u32, count: u32) -> Result<()> {
        let before = self.intentions();
        let mut writes = tokio::task::JoinSet::new();
        for number in first..first + count {
            let link = self.link.clone();
            let body = Body::Intention(Intention { key: rule(number), state: RuleState::Is(Action::Allow) });
            writes.spawn(async move { link.write(Audience::Law, body, "bench".into()).await });
            if writes.len() >= 512 {
                writes.join_next().await.context("a write")???;
            }
        }
        while let Some(written) = writes.join_next().await {
            written??;
        }
        ensure!(self.intentions() == before + count as usize, "not every intention was written");
        Ok(())
    }

    pub(crate) fn intentions(&self) -> usize {
        self.link.snapshot().borrow().as_ref().map_or(0, |held| held.authorizer.len())
    }
}

/// The key of one of many rules that concern different pairs.
pub(crate) fn rule(number: u32) -> IntentionKey {
    fn label<T: std::str::FromStr>(text: &str) -> Label<T> {
        text.parse().map_or(Label::Any, Label::Is)
    }
    IntentionKey {
        source: SourcePattern::Account {
            account: label(&format!("account-{}", number % 1_000)),
            namespace: label(&format!("team-{}", number / 1_000)),
            cluster: Label::Any,
        },
        destination: DestinationPattern {
            service: label(&format!("service-{}", number % 997)),
            namespace: label(&format!("team-{}", number / 1_000)),
            cluster: Label::Any,
        },
        layer: Layer::Rule,
    }
}
