//! A federation of real gateways over the emulated WAN: every member a lawmaker, linked with every other.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use testbed::{
    netns::{Change, Schedule, Wan},
    worlds::{World, until},
};

use crate::member::{Member, Operator};

/// How long all links may take to come up.
const LINKED_LIMIT: Duration = Duration::from_secs(180);
/// Service that every intention of these stories is about; the second member's.
const SERVICE: &str = "payments.billing";

pub(crate) struct Federation {
    // Before the WAN: processes end before their namespaces go.
    pub(crate) members: Vec<Member>,
    /// Name of the service for intentions.
    pub(crate) service: String,
    pub(crate) wan: Wan,
}

impl Federation {
    /// Starts `count` gateways on a WAN without loss, each pair `rtt` apart, links them by tokens, and waits until
    /// everybody has every link and sees the service.
    pub(crate) async fn start(world: &World, count: usize, rtt: Duration, seed: u64, log: &str) -> Result<Self> {
        ensure!(count >= 2, "a federation has at least two members");
        let clusters = (1..=count).map(|number| format!("m{number:02}")).collect();
        let wan = Wan::start(Schedule::new(clusters, &[distance(rtt)], Vec::new())?, seed)?;
        let mut members = Vec::new();
        for site in wan.sites() {
            members.push(Member::start(world, site, log).await?);
        }
        let (issuer, joiners) = members.split_first().context("no member")?;
        for joiner in joiners {
            issuer.operator.admit(&joiner.operator).await?;
        }
        let server = members.get(1).context("no second member")?;
        server.operator.serve(SERVICE).await?;
        let federation = Self { service: format!("{SERVICE}.{}", server.operator.cluster), members, wan };
        federation.until_linked(LINKED_LIMIT).await?;
        for member in federation.operators() {
            until(&format!("{} sees the service", member.cluster), LINKED_LIMIT, async || {
                ensure!(member.sees(&federation.service).await?, "not yet");
                Ok(())
            })
            .await?;
        }
        Ok(federation)
    }

    /// Whoever operates each member, in order.
    pub(crate) fn operators(&self) -> impl Iterator<Item = &Operator> {
        self.members.iter().map(|member| &member.operator)
    }

    /// Waits until every link is up.
    pub(crate) async fn until_linked(&self, limit: Duration) -> Result<()> {
        for member in self.operators() {
            until(&format!("{}'s links are up", member.cluster), limit, async || {
                let up = member.links_up().await?.len();
                ensure!(up + 1 == self.members.len(), "{up} are up; {:?}", member.troubles().await?);
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Copies every member's log to `folder`.
    pub(crate) fn keep_logs(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        for Member { cluster, .. } in &self.members {
            std::fs::write(folder.join(format!("{}.log", cluster.name)), cluster.output())?;
        }
        Ok(())
    }
}

/// Every pair of clusters is `rtt` apart.
pub(crate) fn distance(rtt: Duration) -> Change {
    Change { delay: Some(rtt / 2), ..Change::default() }
}
