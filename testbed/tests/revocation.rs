//! A key is revoked while connections stand on it: they are cut in every cluster, nobody accepts it again, and the
//! workload that it was stolen from gets another.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testbed::worlds::{CONVERGE, Cluster, Failure, Plan, Workload, World, link, until};
use tokio::time::{Instant, sleep};

const LIMIT: Duration = Duration::from_secs(180);
const PAYMENTS: &str = "payments.billing.west.mesh.internal";
const PORT: u16 = 8080;
/// How long a revocation may take until what stands on the key is cut: a round trip, here none, and a second.
const CUT: Duration = Duration::from_secs(1);
/// Exit code of a verb that was refused.
const REFUSED: i32 = 5;
/// Exit code of an argument that makes no sense.
const USAGE: i32 = 2;

/// Certificates that a cluster issued to an identity and that have not ended.
async fn issued(cluster: &Cluster, id: &str) -> Result<Vec<Value>> {
    let mut list = cluster.list(&["cert", "list"], "issued").await?;
    list.retain(|one| one["spiffe_id"].as_str().is_some_and(|shown| shown.ends_with(id)));
    Ok(list)
}

fn text<'a>(value: &'a Value, field: &str) -> Result<&'a str> {
    value[field].as_str().with_context(|| format!("no {field} in {value}"))
}

/// The one certificate of an identity that was not revoked.
async fn serial(cluster: &Cluster, id: &str) -> Result<String> {
    let list = issued(cluster, id).await?;
    let live: Vec<_> = list.iter().filter(|one| one["revoked"] != true).collect();
    ensure!(live.len() == 1, "{} live certificates of {id}: {list:?}", live.len());
    Ok(text(live[0], "serial")?.to_owned())
}

async fn until_up(cluster: &Cluster, other: &str) -> Result<()> {
    until(&format!("{}'s link with {other} is up", cluster.name), CONVERGE, async || {
        let state = cluster.link_state(other).await?;
        ensure!(state == "up", "it is {state}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_stolen_key_is_revoked_everywhere_and_its_owner_goes_on_with_another() -> Result<(), Failure> {
    World::tell(LIMIT, async |world| {
        let uid = nix::unistd::geteuid();
        let by_uid = format!("[[workload]]\nuid = {uid}\naccount = \"web\"\nnamespace = \"shop\"\n");
        let (west, mut east) = tokio::try_join!(
            Cluster::start(world, Plan::new("west").inbound()),
            Cluster::start(world, Plan::new("east").inbound().with(&by_uid)),
        )?;
        link(&[&west, &east], &[]).await?;
        let (web, other, mut payments) = tokio::try_join!(
            Workload::by_uid(world, &east, "web.shop", None),
            Workload::by_token(world, &east, "other.shop", None),
            Workload::by_token(world, &west, "payments.billing", Some(("payments.billing", PORT))),
        )?;
        let what = "payments is exported";
        until(what, CONVERGE, async || west.run(&["service", "export", "payments.billing"]).await.map(|_| ())).await?;
        west.run(&["intention", "allow", "*.shop.east", "payments.billing"]).await?;
        let thief = web.stolen(world).await?;
        let mut lives =
            [web.until_call(PAYMENTS, PORT, CONVERGE).await?, thief.until_call(PAYMENTS, PORT, CONVERGE).await?];
        let mut untouched = other.until_call(PAYMENTS, PORT, CONVERGE).await?;
        let stolen = serial(&east, "/ns/shop/sa/web").await?;

        // What nobody can revoke, or not here.
        for (cluster, given, code, wanted) in [
            (&west, stolen.as_str(), REFUSED, "only the cluster that issued a certificate revokes it"),
            (&east, "00ff", REFUSED, "no certificate with serial 00ff was issued here"),
            (&east, "web.shop", USAGE, "is no serial number"),
            (&east, "", USAGE, "it is empty"),
        ] {
            cluster.ask(&["cert", "revoke", given]).await?.refused(code, &[wanted])?;
        }
        let status = east.json(&["cert", "status"]).await?;
        let certificates = status["certificates"].as_array().context("certificates")?.clone();
        let root = certificates.iter().find(|one| one["kind"] == "root").context("no root")?;
        east.ask(&["cert", "revoke", text(root, "serial")?]).await?.refused(REFUSED, &["rotate-root"])?;
        for live in &mut lives {
            live.exchange().await?;
        }

        // Revoked: cut at both, and at nobody else's.
        let revoking = Instant::now();
        let told = east.run(&["cert", "revoke", &stolen]).await?;
        ensure!(told.contains("web") && told.contains("revoked"), "{told}");
        for live in &mut lives {
            live.cut(CUT).await?;
        }
        eprintln!("cut {:?} after the operator asked", revoking.elapsed());
        untouched.exchange().await?;
        east.ask(&["cert", "revoke", &stolen]).await?.refused(REFUSED, &["revoked already"])?;

        // The owner proves itself by its uid and gets another key; the thief has nothing to prove itself with.
        web.until_call(PAYMENTS, PORT, CONVERGE).await?;
        ensure!(serial(&east, "/ns/shop/sa/web").await? != stolen, "the same certificate again");
        for _ in 0..3 {
            thief.call(PAYMENTS, PORT).await.err().context("the stolen key still works")?;
        }
        for cluster in [&east, &west] {
            until(&format!("{} shows what was revoked", cluster.name), CONVERGE, async || {
                let revoked = cluster.list(&["cert", "status"], "revoked").await?;
                let one = revoked.iter().find(|one| one["serial"] == stolen.as_str()).context("it is not there")?;
                ensure!(one["cluster"] == "east", "{one}");
                Ok(())
            })
            .await?;
        }

        // Neither a kill nor a restart takes it back, or forgets what was issued before.
        let others = serial(&east, "/ns/shop/sa/other").await?;
        east.crash().await?;
        east.restart().await?;
        ensure!(issued(&east, "/ns/shop/sa/web").await?.iter().any(|one| one["serial"] == stolen.as_str()));
        east.ask(&["cert", "revoke", &stolen]).await?.refused(REFUSED, &["revoked already"])?;
        thief.call(PAYMENTS, PORT).await.err().context("the stolen key works after a restart")?;
        web.until_call(PAYMENTS, PORT, CONVERGE).await?;

        // A server's key: whoever reached it is cut. Its token was for that key alone, so it needs a new one.
        let mut live = other.until_call(PAYMENTS, PORT, CONVERGE).await?;
        west.run(&["cert", "revoke", &serial(&west, "/ns/billing/sa/payments").await?]).await?;
        live.cut(CUT).await?;
        until("the sidecar of payments says why it does not get on", CONVERGE, async || {
            ensure!(payments.output().contains("was revoked, and is certified no more"));
            Ok(())
        })
        .await?;
        other.call(PAYMENTS, PORT).await.err().context("a revoked server is still reached")?;
        payments.enrol_anew(&west).await?;
        other.until_call(PAYMENTS, PORT, CONVERGE).await?;
        ensure!(serial(&east, "/ns/shop/sa/other").await? == others, "another's certificate was touched");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_intermediate_is_replaced_under_live_connections_and_the_old_one_can_be_revoked() -> Result<(), Failure> {
    World::tell(LIMIT, async |world| {
        let ttl = Duration::from_secs(6);
        let (mut west, east) = tokio::try_join!(
            Cluster::start(world, Plan::new("west").inbound().svid_ttl(ttl)),
            Cluster::start(world, Plan::new("east").inbound().svid_ttl(ttl)),
        )?;
        link(&[&west, &east], &[]).await?;
        let (web, _payments) = tokio::try_join!(
            Workload::by_token(world, &east, "web.shop", None),
            Workload::by_token(world, &west, "payments.billing", Some(("payments.billing", PORT))),
        )?;
        let what = "payments is exported";
        until(what, CONVERGE, async || west.run(&["service", "export", "payments.billing"]).await.map(|_| ())).await?;
        west.run(&["intention", "allow", "web.shop.east", "payments.billing"]).await?;
        let mut live = web.until_call(PAYMENTS, PORT, CONVERGE).await?;

        let replaced = west.json(&["cert", "rotate-intermediate"]).await?;
        let (signs, before) = (text(&replaced, "signs")?.to_owned(), text(&replaced, "before")?.to_owned());
        ensure!(signs != before, "{replaced}");
        west.ask(&["cert", "revoke", &signs]).await?.refused(REFUSED, &["rotate-intermediate"])?;
        // Neither what lives nor what begins is disturbed, over several lives of an SVID and a restart.
        let started = Instant::now();
        while started.elapsed() < ttl * 2 {
            live.exchange().await?;
            web.call(PAYMENTS, PORT).await.context("a new connection")?;
            sleep(Duration::from_millis(100)).await;
        }
        west.crash().await?;
        west.restart().await?;
        let status = west.list(&["cert", "status"], "certificates").await?;
        ensure!(
            status.iter().any(|one| one["kind"] == "intermediate" && one["serial"] == signs.as_str()),
            "{status:?}"
        );
        // Nothing stands on the old one any more, so revoking it disturbs nobody.
        web.until_call(PAYMENTS, PORT, CONVERGE).await?;
        until_up(&west, "east").await?;
        let mut live = web.until_call(PAYMENTS, PORT, CONVERGE).await?;
        west.run(&["cert", "revoke", &before]).await?;
        until("east has heard of it", CONVERGE, async || {
            let revoked = east.list(&["cert", "status"], "revoked").await?;
            ensure!(revoked.iter().any(|one| one["serial"] == before.as_str()), "{revoked:?}");
            Ok(())
        })
        .await?;
        live.exchange().await?;
        web.call(PAYMENTS, PORT).await.context("a new connection")?;
        until_up(&east, "west").await
    })
    .await
}

#[tokio::test]
async fn an_edge_whose_key_is_revoked_goes_on_with_another() -> Result<(), Failure> {
    World::tell(LIMIT, async |world| {
        let (west, east) = tokio::try_join!(
            Cluster::start(world, Plan::new("west").inbound()),
            Cluster::start(world, Plan::new("east").inbound()),
        )?;
        link(&[&west, &east], &[]).await?;
        until_up(&west, "east").await?;
        let before = serial(&east, "/hanse/edge/east").await?;
        east.run(&["cert", "revoke", &before]).await?;
        let after = serial(&east, "/hanse/edge/east").await?;
        ensure!(after != before, "it shows the revoked certificate");
        until("west has heard of it", CONVERGE, async || {
            let revoked = west.list(&["cert", "status"], "revoked").await?;
            ensure!(revoked.iter().any(|one| one["serial"] == before.as_str()), "{revoked:?}");
            Ok(())
        })
        .await?;
        for (cluster, other) in [(&west, "east"), (&east, "west")] {
            until_up(cluster, other).await?;
        }
        // What is said now arrives: the session that stands is not the one of the revoked key.
        west.run(&["service", "register", "late.billing", "--port", "80"]).await?;
        west.run(&["service", "export", "late.billing"]).await?;
        east.until_sees("late.billing.west", true).await
    })
    .await
}
