//! Stage 6: the next hop, dialled with a leave in hand.

use std::{future::Future, pin::Pin};

use federation_model::{Denial, DenialReason, Passage, Permit, SpiffeId};
use tokio::time::{Instant, timeout, timeout_at};

use crate::{Core, Inputs, Route, authorize::Refusal, metrics, stream::BoxStream};

/// A future that a trait object returns.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What lets a stream be dialled. Only the authorizer makes either.
#[derive(Clone, Copy, Debug)]
pub enum Leave<'a> {
    Permit(&'a Permit),
    Passage(&'a Passage),
}

impl Leave<'_> {
    /// Who may pass.
    pub fn source(&self) -> &SpiffeId {
        match self {
            Self::Permit(permit) => permit.source(),
            Self::Passage(passage) => passage.source(),
        }
    }
}

/// Opens the next hop. An edge: a local instance, or a tunnel to the member that owns the service. A sidecar: an
/// instance in its cluster, its edge, or its application.
pub trait Dial: Send + Sync + 'static {
    /// # Errors
    /// [`DenialReason::NoInstance`] or [`DenialReason::Unreachable`], as a denial of the caller.
    fn dial<'a>(&'a self, leave: Leave<'a>, route: &'a Route) -> BoxFuture<'a, Result<BoxStream, Denial>>;

    /// Resolves once what could not be dialled is worth another try: `true`. `false` at once if nothing says that it
    /// comes back. Whoever waits has a bound of its own.
    fn back<'a>(&'a self, _route: &'a Route) -> BoxFuture<'a, bool> {
        Box::pin(std::future::ready(false))
    }
}

/// Dials within the time limit. If the next hop is away but expected back, waits for it, in one of a bounded number of
/// places and for a bounded time, and tries again.
pub(crate) async fn dial(core: &Core, leave: Leave<'_>, route: &Route) -> Result<BoxStream, Refusal> {
    let Inputs { dial, limits, .. } = &core.inputs;
    let end = Instant::now() + limits.hold;
    let mut place = None;
    loop {
        let refusal = match timeout(limits.dial_timeout, dial.dial(leave, route)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(denial)) => Refusal::from(denial),
            Err(_) => Refusal::new(DenialReason::Unreachable, Some(leave.source()), &route.service.name)
                .because("dial_timeout", format!("nothing answered within {:?}", limits.dial_timeout)),
        };
        let first = place.is_none();
        if first {
            place = core.held.try_acquire().ok();
        }
        if place.is_none() || !timeout_at(end, dial.back(route)).await.unwrap_or(false) {
            return Err(refusal);
        }
        if first {
            metrics::held();
        }
    }
}
