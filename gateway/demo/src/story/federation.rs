//! Scenes about the federation itself: receipts, an eviction, a member that freezes, a root that is rotated.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tokio::time::Instant;

use super::{CONVERGE, PAYMENTS, PORT, Story};
use crate::{
    browse::{self, Live},
    child::until,
    world::{SVID_TTL, Workload},
};

/// Age at which a member's data counts as stale, and what it takes to look.
const STALE: Duration = Duration::from_millis(3_500);
/// How long the root of the demo may take to be rotated: until the last SVID of the old one has ended.
const ROTATED: Duration = Duration::from_secs(60);

impl Story {
    /// Whoever writes a rule sees every member confirm, in words that it signed, that the rule is in force there.
    pub(super) async fn receipts(&mut self) -> Result<String> {
        let east = self.world.cluster("east")?.client().await?;
        if self.broken("receipts-arrive") {
            self.world.cluster("west")?.signal(Signal::SIGSTOP)?;
        }
        let start = Instant::now();
        let rule = east.intention_write("*.*.*", "vault.billing", "deny", false, false, Duration::ZERO).await?;
        let written = rule.intention.context("the reply holds no rule")?;
        let members = until("every member confirms the rule", CONVERGE, || async {
            let rules = east.intention_list().await?.intentions;
            let rule = rules.iter().find(|rule| rule.id == written.id).context("the rule is not listed")?;
            ensure!(rule.members > 2 && rule.enforced == rule.members, "{} of {}", rule.enforced, rule.members);
            Ok(rule.members)
        })
        .await;
        if self.broken("receipts-arrive") {
            self.world.cluster("west")?.signal(Signal::SIGCONT)?;
        }
        let (members, took) = (members?, start.elapsed());
        Ok(format!(
            "a deny by east: enforced {members}/{members}, each in a signed receipt, after {} ms",
            took.as_millis()
        ))
    }

    /// A guest joins and calls payments. One lawmaker puts it out: west, which only hears of it, cuts its live connection.
    /// A second one makes that final.
    pub(super) async fn eviction(&mut self) -> Result<String> {
        const GUEST: &str = "guest";
        self.world.gateway(GUEST, GUEST, true).await?;
        let west = self.world.cluster("west")?.client().await?;
        let token = west.link_token(GUEST, None, false).await?.token;
        self.world.cluster(GUEST)?.client().await?.link_join(&token).await?;
        let visitor = Workload { account: "visitor.rooms", serves: None, by_uid: false };
        self.world.start_workload("visitor", GUEST, visitor).await?;
        self.allow("west", "visitor.rooms.guest", "payments.billing").await?;
        let socks = self.world.workload("visitor")?.socks;
        let mut live = until("the guest reaches payments", CONVERGE, || Live::open(socks, PAYMENTS, PORT)).await?;
        live.carries().await?;
        let (east, onprem) =
            (self.world.cluster("east")?.client().await?, self.world.cluster("onprem")?.client().await?);
        self.teller.say("a guest joined and calls payments; east, a lawmaker, evicts it");
        let start = Instant::now();
        if self.broken("eviction") {
            // Of no account to west.
            east.cluster_block(GUEST).await?;
        } else {
            east.cluster_evict(GUEST).await?;
        }
        let took = live.cut(CONVERGE).await.context("the guest's live connection to west")?.duration_since(start);
        ensure!(browse::get(socks, PAYMENTS, PORT, "/").await.is_err(), "the guest is still let through");
        self.teller.say("onprem, the other lawmaker, signs it too: it is final");
        let signed = onprem.cluster_evict(GUEST).await?;
        ensure!(signed.for_good, "with two signatures it is not final: {signed:?}");
        for name in ["east", "west", "onprem"] {
            let client = self.world.cluster(name)?.client().await?;
            until(&format!("the guest is out at {name}"), CONVERGE, || async {
                let clusters = client.cluster_list().await?.clusters;
                let guest = clusters.iter().find(|cluster| cluster.name == GUEST).context("it is not shown")?;
                ensure!(guest.state == "evicted" && guest.evicted_by == ["east", "onprem"], "{name} shows {guest:?}");
                Ok(())
            })
            .await?;
        }
        Ok(format!(
            "its live connection at west ended {} ms after east signed; final with onprem's word",
            took.as_millis()
        ))
    }

    /// An edge that stands still with all its sockets open: whoever needs its data knows within three seconds.
    pub(super) async fn frozen(&mut self) -> Result<String> {
        let east = self.world.cluster("east")?.client().await?;
        let state = async || {
            let links = east.link_list(Some("west")).await?.links;
            links.into_iter().next().context("east has no link with west")
        };
        until("the link with west is up", CONVERGE, || async {
            let link = state().await?;
            ensure!(link.state == "up", "{link:?}");
            Ok(())
        })
        .await?;
        self.teller.say("freezing west's edge (SIGSTOP): its sockets stay open, nothing answers");
        if !self.broken("frozen-member-stale") {
            self.world.cluster("west")?.signal(Signal::SIGSTOP)?;
        }
        let start = Instant::now();
        let seen = until("east notices", STALE, || async {
            let link = state().await?;
            ensure!(link.state != "up", "east still calls it up: {link:?}");
            Ok((link.state, start.elapsed()))
        })
        .await;
        self.world.cluster("west")?.signal(Signal::SIGCONT)?;
        let (word, took) = seen?;
        until("the link with west is up again", CONVERGE, || async {
            let link = state().await?;
            ensure!(link.state == "up", "{link:?}");
            Ok(())
        })
        .await?;
        Ok(format!(
            "east calls the link {word} {:.1} s after west froze, and up again once it moves",
            took.as_secs_f64()
        ))
    }

    /// West takes a new root: published, acknowledged by every member, and only then signed with.
    pub(super) async fn rotation(&mut self) -> Result<String> {
        if self.broken("rotation-acknowledged") {
            self.world.cluster("onprem")?.crash().await?;
        }
        let west = self.world.cluster("west")?.client().await?;
        self.teller.say("west rotates its root: it signs with it once every member has said that it knows it");
        let start = Instant::now();
        let mut rotation = west.rotate_root(&[]).await?.rotation.context("the reply holds no rotation")?;
        let members = rotation.members;
        ensure!(members > 1, "there is nobody to wait for: {rotation:?}");
        let mut acknowledged = None;
        while acknowledged.is_none() || rotation.ended_at_ms == 0 {
            ensure!(start.elapsed() < if acknowledged.is_some() { ROTATED } else { CONVERGE }, "{rotation:?}");
            if matches!(rotation.phase.as_str(), "signing" | "retired") && acknowledged.is_none() {
                acknowledged = Some(start.elapsed());
                ensure!(rotation.phase == "signing" && rotation.acknowledged == members, "{rotation:?}");
                self.teller.say(&format!("{members} of {members} members know west's new root: it signs from now on"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            rotation = west.cert_status().await?.rotation.context("the rotation is not shown")?;
        }
        ensure!(rotation.phase == "retired", "{rotation:?}");
        let socks = self.world.workload("web")?.socks;
        let body =
            until("web reaches payments under the new root", SVID_TTL, || browse::get(socks, PAYMENTS, PORT, "/"))
                .await?;
        ensure!(body == "hello from payments\n", "the answer was {body:?}");
        Ok(format!(
            "{members} of {members} acknowledged within {} ms; the old root was retired {:.1} s later, with its last SVID",
            acknowledged.unwrap_or_default().as_millis(),
            (start.elapsed() - acknowledged.unwrap_or_default()).as_secs_f64()
        ))
    }
}
