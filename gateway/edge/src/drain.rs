//! How an edge goes in good order, so that its successor costs time and no request.
//!
//! First it waits, while it serves as ever, until each connection that lives had a quiet moment: what was asked before gets
//! its answer. Then it says that it goes: sidecars and members hold what is new until the successor is there, and whoever
//! opened a connection ends it at its next quiet moment. What is left after that is cut.
//!
//! In: the word to end. Out: nothing on the wire that is missed. Never: longer than [`limit`], and cut short by a second
//! word.

use std::time::Duration;

use federation_link::Link;
use gateway_api::Registry;
use gateway_proxy::{Proxy, WIND_UP_MAX};
use tokio::time::{Instant, sleep, timeout};

/// How long those who are told may take to act on it, besides a round trip: what they sent before is still served.
const GRACE: Duration = Duration::from_millis(100);
/// Pause between two looks whether all have ended.
const LOOK: Duration = Duration::from_millis(20);

/// What an edge that goes has to do with.
pub(crate) struct Parting {
    pub(crate) proxy: Proxy,
    pub(crate) link: Link,
    pub(crate) registry: Registry,
    /// How long it waits for what is under way before it says that it goes.
    pub(crate) patience: Duration,
}

/// The longest that [`Parting::run`] takes.
pub(crate) fn limit(patience: Duration) -> Duration {
    patience + WIND_UP_MAX
}

impl Parting {
    /// Returns once nothing is carried any more, or the time is up.
    pub(crate) async fn run(&self) {
        let began = Instant::now();
        let busy = self.proxy.settle(self.patience).await;
        let settled = began.elapsed();
        self.registry.leave();
        let grace = GRACE + self.link.leave_sessions();
        let told = Instant::now();
        let gone = async {
            // Those that came meanwhile are asked as well.
            loop {
                self.proxy.wind_up();
                if self.proxy.connections().count() == 0 && told.elapsed() >= grace {
                    return;
                }
                sleep(LOOK).await;
            }
        };
        let in_time = timeout(WIND_UP_MAX, gone).await.is_ok();
        let cut = if in_time { 0 } else { self.proxy.connections().count() };
        tracing::info!(?settled, busy, wound_up = ?told.elapsed(), cut, "drained");
    }
}
