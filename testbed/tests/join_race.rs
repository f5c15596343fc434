//! A join token has one winner, however many redeem it and whenever the issuer's edge is killed. `.ci/campaign
//! join-race` does the same a thousand times.

use std::time::Duration;

use anyhow::ensure;
use testbed::{
    race::{self, Race},
    worlds::{Cluster, Failure, Plan, World},
};

const LIMIT: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_has_one_winner_though_the_edge_is_killed_between_its_use_and_the_answer() -> Result<(), Failure> {
    World::tell(LIMIT, async |world| {
        let mut east = Cluster::start(world, Plan::new("east").inbound()).await?;
        let race = Race { tokens: 3, redeemers: 12, kill: false, seed: 1 };
        let calm = race::run(&mut east, race).await?;
        ensure!(calm.rounds == 3 && calm.too_late == 3 * 11, "{calm:?}");
        Ok(())
    })
    .await?;
    World::tell(LIMIT, async |world| {
        let mut east = Cluster::start(world, Plan::new("east").inbound()).await?;
        let report = race::run(&mut east, Race { tokens: 4, redeemers: 12, kill: true, seed: 1 }).await?;
        ensure!(report.rounds == 4, "{report:?}");
        Ok(())
    })
    .await
}
