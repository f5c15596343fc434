//! Who sees a service that is shown to some: in lists, names and decisions, and in what a cluster has on its disk.

use std::{path::Path, time::Duration};

use anyhow::{Result, ensure};
use testbed::worlds::{CONVERGE, Cluster, Failure, Plan, World, link, until};

/// Names that stand nowhere else.
const ROOM: &str = "strongroom.vault.west";
const ROOM_DNS: &str = "strongroom.vault.west.mesh.internal";
const MARK: &str = "marketplace.open.west";

/// Whether a word stands anywhere in what the cluster has on its disk.
fn keeps(cluster: &Cluster, word: &str) -> Result<bool> {
    fn within(folder: &Path, word: &[u8]) -> Result<bool> {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let found = match path.is_dir() {
                true => within(&path, word)?,
                false => std::fs::read(&path)?.windows(word.len()).any(|bytes| bytes == word),
            };
            if found {
                return Ok(true);
            }
        }
        Ok(false)
    }
    within(&cluster.folder().join("data"), word.as_bytes())
}

/// West shows one service to `reader`, and another, after it, to all.
async fn show(west: &Cluster, reader: &str) -> Result<()> {
    west.run(&["service", "register", "strongroom.vault", "--port", "8080"]).await?;
    west.run(&["service", "export", "strongroom.vault", "--to", reader]).await?;
    west.run(&["service", "register", "marketplace.open", "--port", "1"]).await?;
    west.run(&["service", "export", "marketplace.open"]).await?;
    Ok(())
}

/// A cluster has what west told everybody after that, and nothing of what it told one.
async fn knows_nothing(cluster: &Cluster) -> Result<()> {
    cluster.until_sees(MARK, true).await?;
    ensure!(!cluster.sees(ROOM).await?, "{} lists it", cluster.name);
    ensure!(!cluster.resolves(ROOM_DNS).await?, "{} resolves it", cluster.name);
    let source = format!("web.shop.{}", cluster.name);
    ensure!(cluster.check(&source, ROOM).await? == (false, "unknown_service".into()), "{} knows of it", cluster.name);
    ensure!(keeps(cluster, "marketplace")?, "the search finds nothing at all in {}'s data", cluster.name);
    ensure!(!keeps(cluster, "strongroom")?, "its record lies on {}'s disk", cluster.name);
    Ok(())
}

#[tokio::test]
async fn a_service_that_is_shown_to_one_member_is_known_to_no_other() -> Result<(), Failure> {
    World::tell(Duration::from_secs(120), async |world| {
        let (east, west, onprem) = tokio::try_join!(
            Cluster::start(world, Plan::new("east").inbound()),
            Cluster::start(world, Plan::new("west").inbound()),
            Cluster::start(world, Plan::new("onprem").inbound()),
        )?;
        link(&[&east, &west, &onprem], &[]).await?;
        show(&west, "onprem").await?;
        onprem.until_sees(ROOM, true).await?;
        ensure!(onprem.resolves(ROOM_DNS).await?, "its name does not resolve where it is shown");
        ensure!(keeps(&onprem, "strongroom")?, "where it is shown, its record is on the disk");
        knows_nothing(&east).await?;

        // To another one instead: the first is told that it is gone.
        west.run(&["service", "export", "strongroom.vault", "--to", "east"]).await?;
        east.until_sees(ROOM, true).await?;
        onprem.until_sees(ROOM, false).await?;
        ensure!(!onprem.resolves(ROOM_DNS).await?, "the name still resolves where it was taken back");
        west.run(&["service", "export", "strongroom.vault", "--nobody"]).await?;
        east.until_sees(ROOM, false).await?;
        ensure!(west.sees(ROOM).await?, "west lost it itself");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_member_between_owner_and_reader_does_not_hear_what_is_for_the_reader_alone() -> Result<(), Failure> {
    World::tell(Duration::from_secs(120), async |world| {
        let (east, hub, west) = tokio::try_join!(
            Cluster::start(world, Plan::new("east")),
            Cluster::start(world, Plan::new("hub").inbound()),
            Cluster::start(world, Plan::new("west")),
        )?;
        for joiner in [&east, &west] {
            joiner.join(&hub.token(&joiner.name, &[]).await?, &[]).await?.done()?;
        }
        // East and west only dial: each has a session with the hub alone.
        until("west knows east", CONVERGE, async || {
            ensure!(west.link_state("east").await? == "waiting", "not yet");
            Ok(())
        })
        .await?;
        show(&west, "east").await?;
        knows_nothing(&hub).await?;
        // Nor does east, as long as there is no session with west over which it could come.
        knows_nothing(&east).await
    })
    .await
}
