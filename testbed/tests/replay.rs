//! Tokens that must not work, key files and stores that must not be used: each refused, with the exit code for scripts and
//! the sentence that says what to do.

use std::{os::unix::fs::PermissionsExt, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use testbed::worlds::{CONVERGE, Cluster, Failure, Plan, Process, World, hanse, until};
use tokio::time::timeout;

/// Exit codes of docs: wrong usage, and refused by the state of things.
const USAGE: i32 = 2;
const FAILED: i32 = 5;

const LIMIT: Duration = Duration::from_secs(90);

/// It has nobody but itself, as before.
async fn is_alone(cluster: &Cluster) -> Result<()> {
    let clusters = cluster.list(&["cluster", "list"], "clusters").await?;
    ensure!(clusters.len() == 1, "a refused join left traces: {clusters:?}");
    Ok(())
}

async fn token_state(issuer: &Cluster, joiner: &str) -> Result<String> {
    let tokens = issuer.list(&["link", "tokens"], "tokens").await?;
    let token = tokens.iter().rev().find(|token| token["cluster"] == joiner);
    let token = token.with_context(|| format!("no token for {joiner} in {tokens:?}"))?;
    Ok(token["state"].as_str().context("state")?.to_owned())
}

#[tokio::test]
async fn a_used_token_is_worth_nothing_to_another_cluster_nor_to_the_one_that_used_it() -> Result<(), Failure> {
    World::tell(LIMIT, async |world| {
        let (east, west, thief, liar) = tokio::try_join!(
            Cluster::start(world, Plan::new("east").inbound()),
            Cluster::start(world, Plan::new("west")),
            Cluster::start(world, Plan::new("west").under("thief")),
            Cluster::start(world, Plan::new("west").under("liar").trust_domain("liar.example.com")),
        )?;
        let token = east.token("west", &[]).await?;
        west.join(&token, &[]).await?.done()?;
        ensure!(token_state(&east, "west").await? == "used", "the token is not used up");

        // Another cluster that calls itself west too.
        thief.join(&token, &[]).await?.refused(FAILED, &["was the token used by another cluster of this name?"])?;
        is_alone(&thief).await?;
        // One that did not even take the same trust domain.
        liar.join(&token, &[]).await?.refused(FAILED, &["used", "ask for a new one"])?;
        is_alone(&liar).await?;
        west.join(&token, &[]).await?.refused(FAILED, &["other member", "one federation at a time"])?;
        let members = east.list(&["cluster", "list"], "clusters").await?;
        ensure!(members.len() == 2, "east has {members:?}");

        // A joiner that has members is refused before anything is sent: even with a token that would work.
        let fresh = thief.ask(&["link", "token", "west"]).await?;
        fresh.refused(USAGE, &["this very cluster"])?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_joiner_that_has_members_is_told_so_and_the_token_stays_open() -> Result<(), Failure> {
    World::tell(LIMIT, async |world| {
        let (east, west, north) = tokio::try_join!(
            Cluster::start(world, Plan::new("east").inbound()),
            Cluster::start(world, Plan::new("west")),
            Cluster::start(world, Plan::new("north").inbound()),
        )?;
        west.join(&east.token("west", &[]).await?, &[]).await?.done()?;
        let token = north.token("west", &[]).await?;
        west.join(&token, &[]).await?.refused(FAILED, &["1 other member", "one federation at a time"])?;
        ensure!(token_state(&north, "west").await? == "open", "the token was spent on nothing");
        is_alone(&north).await?;
        // Who is a member needs no token.
        east.ask(&["link", "token", "west"]).await?.refused(FAILED, &["member already", "hanse link list"])
    })
    .await
}

#[tokio::test]
async fn tokens_that_cannot_work_are_refused_with_what_to_do_instead() -> Result<(), Failure> {
    World::tell(LIMIT, async |world| {
        let (mut east, north) = tokio::try_join!(
            Cluster::start(world, Plan::new("east").inbound()),
            Cluster::start(world, Plan::new("north")),
        )?;
        let good = east.token("north", &[]).await?;

        // Texts that are no token: wrong usage.
        let workload = east.run(&["workload", "token", "web.shop"]).await?;
        let half = good.get(..good.len() / 2).context("a token is ASCII")?;
        let short = good.get(..good.len() - 1).context("a token is ASCII")?;
        for (text, wanted) in [
            ("", "hanse link token"),
            ("open sesame", "paste the whole line"),
            (half, "cut or changed on its way"),
            (short, "cut or changed on its way"),
            (&good.replace("hanse1.", "hanse1.!"), "copy it again"),
            (workload.trim(), "hanse link token"),
            (&"x".repeat(5000), "at most 4096"),
        ] {
            let shown: String = text.chars().take(20).collect();
            let answer = north.join(text, &[]).await?;
            answer.refused(USAGE, &[wanted]).with_context(|| format!("token {shown:?}…"))?;
            ensure!(text.len() < 12 || !answer.words.contains(text), "the message quotes the token");
        }
        let missing = north.ask(&["link", "join", "-f", "/nowhere/token"]).await?;
        missing.refused(USAGE, &["/nowhere/token"])?;

        // Tokens that are for somebody else, somewhere else, or some other time: refused by the state of things.
        let others = east.token("south", &[]).await?;
        north.join(&others, &[]).await?.refused(FAILED, &["is for cluster south", "hanse link token north"])?;
        east.join(&good, &[]).await?.refused(FAILED, &["this very cluster", "hanse link join", "other one"])?;
        let brief = east.token("north", &["--ttl", "1s"]).await?;
        until("the brief token has ended", CONVERGE, async || {
            let tokens = east.list(&["link", "tokens"], "tokens").await?;
            ensure!(tokens.iter().any(|token| token["state"] == "expired"), "{tokens:?}");
            Ok(())
        })
        .await?;
        north.join(&brief, &[]).await?.refused(FAILED, &["expired", "ago", "hanse link token north"])?;
        for ttl in ["0s", "soon"] {
            east.ask(&["link", "token", "west", "--ttl", ttl]).await?.refused(USAGE, &[ttl])?;
        }
        east.ask(&["link", "token", "west", "--ttl", "25h"]).await?.refused(USAGE, &["24h"])?;
        // Nobody could join through an edge that accepts nothing.
        north.ask(&["link", "token", "west"]).await?.refused(FAILED, &["accepts no sessions", "listen"])?;

        // Somebody else answers at the issuer's address.
        is_alone(&north).await?;
        east.crash().await?;
        let folder = east.folder().join("data");
        std::fs::rename(&folder, east.folder().join("data-of-the-true-east"))?;
        std::fs::remove_file(east.folder().join("kek"))?;
        east.restart().await?;
        north.join(&good, &[]).await?.refused(FAILED, &["pin", "somebody may stand in between"])?;
        is_alone(&north).await
    })
    .await
}

/// Starts a gateway that must refuse to start, and what it says.
async fn refuses(cluster: &Cluster, config: &Path) -> Result<String> {
    let log = cluster.folder().join("refused.txt");
    let _ = std::fs::remove_file(&log);
    let config = config.to_str().context("UTF-8")?;
    let mut process =
        Process::start(hanse(), "the gateway that must not start", &["gateway", "--config", config], &log)?;
    let status = timeout(CONVERGE, process.ended()).await.context("it runs, and must not")??;
    let words = process.output();
    ensure!(status.code() == Some(FAILED), "exit {status}: {words}");
    Ok(words)
}

fn says(words: &str, wanted: &[&str]) -> Result<()> {
    for text in wanted {
        ensure!(words.contains(text), "the message does not hold {text:?}: {words}");
    }
    Ok(())
}

#[tokio::test]
async fn keys_and_stores_that_others_can_touch_or_own_are_not_used() -> Result<(), Failure> {
    World::tell(LIMIT, async |world| {
        let mut west = Cluster::start(world, Plan::new("west")).await?;
        let config = west.config().to_owned();
        let (kek, data) = (west.folder().join("kek"), west.folder().join("data"));
        for (path, wanted) in [(&kek, 0o400), (&data, 0o700)] {
            let mode = std::fs::metadata(path)?.permissions().mode() & 0o7777;
            ensure!(mode == wanted, "{} was made with mode {mode:o}", path.display());
        }

        // A second process on the same store.
        let second = west.folder().join("second.toml");
        let text = std::fs::read_to_string(&config)?;
        let own_ports = text.lines().filter(|line| !line.starts_with("listen")).collect::<Vec<_>>().join("\n");
        std::fs::write(&second, own_ports.replace("hanse.sock", "second.sock"))?;
        says(&refuses(&west, &second).await?, &["in use by another process", "stop it first"])?;
        west.alive().context("the first process, after the second tried")?;
        west.run(&["status"]).await?;
        west.crash().await?;

        // A key that others may read, is not itself, is too short, or is gone.
        let permit = |mode| std::fs::set_permissions(&kek, std::fs::Permissions::from_mode(mode));
        for mode in [0o644, 0o440, 0o404] {
            permit(mode)?;
            let words = refuses(&west, &config).await?;
            says(&words, &["kek", &format!("{mode:04o}"), "chmod 0400"])?;
        }
        permit(0o400)?;
        let aside = west.folder().join("kek-aside");
        std::fs::rename(&kek, &aside)?;
        says(&refuses(&west, &config).await?, &["kek", "gone", "put it back"])?;
        std::os::unix::fs::symlink(&aside, &kek)?;
        says(&refuses(&west, &config).await?, &["symbolic link", "name the file itself"])?;
        std::fs::remove_file(&kek)?;
        let key = std::fs::read(&aside)?;
        for (bytes, wanted) in [(key.get(..31).context("32 bytes")?.to_vec(), "exactly 32"), (vec![7; 32], "no key")] {
            std::fs::write(&kek, bytes)?;
            permit(0o400)?;
            says(&refuses(&west, &config).await?, &[wanted])?;
            std::fs::remove_file(&kek)?;
        }
        let mut other = key.clone();
        other.reverse();
        std::fs::write(&kek, other)?;
        permit(0o400)?;
        says(&refuses(&west, &config).await?, &["sealed with another key", "give the key that made it"])?;
        std::fs::remove_file(&kek)?;
        std::fs::rename(&aside, &kek)?;

        // The store of west, opened as another cluster's, or as another trust domain's.
        let foreign = west.folder().join("foreign.toml");
        for (from, to) in [
            ("cluster = \"west\"", "cluster = \"south\""),
            ("cluster = \"west\"", "cluster = \"west\"\ntrust_domain = \"west.example.com\""),
        ] {
            std::fs::write(&foreign, text.replacen(from, to, 1))?;
            says(&refuses(&west, &foreign).await?, &["is the store of cluster west", "data_dir of its own"])?;
        }

        // The folder of the store, open to others.
        let store = data.join("store");
        std::fs::set_permissions(&store, std::fs::Permissions::from_mode(0o755))?;
        says(&refuses(&west, &config).await?, &["store", "chmod"])?;
        std::fs::set_permissions(&store, std::fs::Permissions::from_mode(0o700))?;

        // After all that it starts as if nothing had been.
        west.restart().await
    })
    .await
}
