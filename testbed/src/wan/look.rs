//! Looking at every member until each holds something, and how long that took.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::member::Operator;

/// Pause between two looks at one member. What is measured is up to this much too long.
const PAUSE: Duration = Duration::from_millis(5);
/// How long it may take at all.
const LIMIT: Duration = Duration::from_secs(60);

/// Looks at several members at once; each stops with the first yes.
pub(crate) struct Looks {
    started: Instant,
    /// Before this has passed nobody bothers the gateways.
    soonest: Duration,
    running: JoinSet<Result<Duration>>,
}

impl Looks {
    /// Time counts from now; no answer can be yes before `soonest` has passed.
    pub(crate) fn new(soonest: Duration) -> Self {
        Self { started: Instant::now(), soonest, running: JoinSet::new() }
    }

    /// How long it has been.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Asks `member` again and again.
    pub(crate) fn at<F>(&mut self, member: &Operator, mut ask: impl FnMut(Operator) -> F + Send + 'static)
    where
        F: Future<Output = Result<bool>> + Send,
    {
        let (member, started, soonest) = (member.clone(), self.started, self.soonest);
        self.running.spawn(async move {
            let look = async {
                sleep(soonest).await;
                while !ask(member.clone()).await? {
                    sleep(PAUSE).await;
                }
                Ok(started.elapsed())
            };
            timeout(LIMIT, look).await.with_context(|| format!("not at {} within {LIMIT:?}", member.cluster))?
        });
    }

    /// How long each took.
    pub(crate) async fn all(mut self) -> Result<Vec<Duration>> {
        let mut took = Vec::new();
        while let Some(seen) = self.running.join_next().await {
            took.push(seen??);
        }
        Ok(took)
    }
}
