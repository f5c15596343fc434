//! How a sidecar goes in good order, so that its successor costs time and no request.
//!
//! First it waits, while it serves as ever, until each connection that lives had a quiet moment. Then it closes its doors
//! and tells the edge, which sends it nothing new and asks the callers to end what goes to it at their next quiet moment;
//! what it opened itself it ends so too. What is left after that is cut.
//!
//! Never: longer than `patience` and [`WIND_UP_MAX`].

use std::time::Duration;

use gateway_proxy::{Direction, Proxy, WIND_UP_MAX};
use proto::workload::{Withdraw, feed_request::Request};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// How long the edge may take to send nothing new any more.
const GRACE: Duration = Duration::from_millis(100);
/// Pause between two looks whether all have ended.
const LOOK: Duration = Duration::from_millis(20);

/// Drains the proxy. `doors` closes what applications dial; `requests` go to the edge by the feed.
pub(crate) async fn run(
    proxy: &Proxy,
    patience: Duration,
    doors: &CancellationToken,
    requests: &mpsc::Sender<Request>,
) {
    let busy = proxy.settle(patience).await;
    doors.cancel();
    // Also without a connection: nothing new shall come. A full queue means that the edge is away.
    let _ = requests.try_send(Request::Withdraw(Withdraw::default()));
    let told = Instant::now();
    let gone = async {
        // Those that come meanwhile are asked as well.
        loop {
            proxy.wind_up();
            if proxy.connections().count() == 0 && told.elapsed() >= GRACE {
                return;
            }
            sleep(LOOK).await;
        }
    };
    let in_time = timeout(WIND_UP_MAX, gone).await.is_ok();
    let inbound = proxy.connections().list().iter().filter(|held| held.direction == Direction::Inbound).count();
    tracing::info!(busy, in_time, wound_up = ?told.elapsed(), inbound, "drained");
}
