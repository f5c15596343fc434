//! Processes replaced under load: a request may take longer meanwhile, and none fails.

use std::time::Duration;

use anyhow::ensure;
use testbed::{
    upgrade::{Rate, rolling},
    worlds::{Failure, World, hanse},
};

const LIMIT: Duration = Duration::from_secs(300);
/// A request that is due while nothing is replaced takes less, on a machine that is busy with other tests.
const UNDISTURBED: Duration = Duration::from_secs(1);
/// Less than a connection may be held.
const LONGEST: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn each_process_is_replaced_under_load_and_no_request_fails() -> Result<(), Failure> {
    World::tell(LIMIT, async |world| {
        // 150 requests a second on kept connections, 50 on new ones.
        let rate = Rate { keeping: 15, anew: 5, pace: Duration::from_millis(100) };
        let report = rolling(world, hanse(), &[hanse(), hanse()], rate).await?;
        eprintln!("{report}");
        ensure!(report.seen.failed.is_empty(), "{report}");
        ensure!(report.seen.reopened > 0, "nothing was ended and opened anew: {report}");
        ensure!(report.undisturbed(0.99) < UNDISTURBED, "{report}");
        ensure!(report.longest() < LONGEST, "{report}");
        Ok(())
    })
    .await
}
