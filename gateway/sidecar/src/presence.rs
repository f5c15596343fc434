//! Whether the edge is there for new connections, as the feed knows it.
//!
//! In: feeds that begin and end, and the edge's word that it goes. Out: a wait for its successor. Never: asks the edge.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

/// Pause before another try at an edge that cannot be dialled although its feed has not ended yet.
const AGAIN: Duration = Duration::from_millis(50);

/// Where the edge is. A clone is another handle on the same.
#[derive(Clone, Debug)]
pub(crate) struct Presence(Arc<watch::Sender<Option<Away>>>);

#[derive(Clone, Copy, Debug)]
struct Away {
    since: Instant,
    /// It said so itself, and still serves what it has: nothing new is to be sent to it.
    said: bool,
}

impl Presence {
    /// At the start the edge was there a moment ago: it let this sidecar enrol, or the sidecar before it.
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }

    pub(crate) fn here(&self) {
        self.0.send_if_modified(|away| away.take().is_some());
    }

    /// It said that it goes, or nothing is heard from it; the first moment counts.
    pub(crate) fn away(&self, said: bool) {
        self.0.send_modify(|away| {
            let held = away.get_or_insert_with(|| Away { since: Instant::now(), said });
            held.said |= said;
        });
    }

    /// Whether it said that it goes: nothing new is to be sent to it. Where only the feed is lost it may still serve.
    pub(crate) fn is_leaving(&self) -> bool {
        self.0.borrow().is_some_and(|away| away.said)
    }

    /// Whether it went less than `within` ago.
    pub(crate) fn went_lately(&self, within: Duration) -> bool {
        self.0.borrow().is_some_and(|away| away.since.elapsed() < within)
    }

    /// Waits until it is worth dialling again. `false` at once if it has been away for longer than `hold`.
    pub(crate) async fn back(&self, hold: Duration) -> bool {
        let mut seen = self.0.subscribe();
        let away = *seen.borrow_and_update();
        let Some(Away { since, .. }) = away else {
            // It came back just now, or the end of its feed is on its way.
            let _ = timeout(AGAIN, seen.changed()).await;
            return true;
        };
        let Some(rest) = hold.checked_sub(since.elapsed()) else { return false };
        matches!(timeout(rest, seen.wait_for(Option::is_none)).await, Ok(Ok(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn who_waits_goes_on_as_soon_as_the_edge_is_back() {
        let presence = Presence::new();
        presence.away(true);
        assert!(presence.is_leaving());
        let began = Instant::now();
        let waiting = tokio::spawn({
            let presence = presence.clone();
            async move { presence.back(HOLD).await }
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        presence.here();
        assert!(waiting.await.expect("task"));
        assert_eq!(began.elapsed(), Duration::from_millis(300));
        assert!(!presence.is_leaving());
    }

    #[tokio::test(start_paused = true)]
    async fn an_edge_that_stays_away_is_not_waited_for_longer_than_that_in_all() {
        let presence = Presence::new();
        presence.away(false);
        tokio::time::sleep(HOLD / 2).await;
        // Said again: it has been away since the first time.
        presence.away(false);
        let began = Instant::now();
        assert!(!presence.back(HOLD).await);
        assert_eq!(began.elapsed(), HOLD / 2);
        tokio::time::sleep(Duration::from_millis(1)).await;
        let began = Instant::now();
        assert!(!presence.back(HOLD).await);
        assert_eq!(began.elapsed(), Duration::ZERO, "those who come later are refused at once");
    }

    #[tokio::test(start_paused = true)]
    async fn an_edge_whose_end_was_not_noticed_yet_is_tried_again_after_a_pause() {
        let began = Instant::now();
        assert!(Presence::new().back(HOLD).await);
        assert_eq!(began.elapsed(), AGAIN);
    }
}
