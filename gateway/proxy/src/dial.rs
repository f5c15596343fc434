//! Stage 6: the next hop, dialled with a leave in hand.

use std::{future::Future, pin::Pin};

use federation_model::{Denial, DenialReason, Passage, Permit, SpiffeId};
use tokio::time::timeout;

use crate::{Route, authorize::Refusal, limits::Limits, stream::BoxStream};

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
}

/// Dials within the time limit.
pub(crate) async fn dial(
    dial: &dyn Dial,
    leave: Leave<'_>,
    route: &Route,
    limits: &Limits,
) -> Result<BoxStream, Refusal> {
    match timeout(limits.dial_timeout, dial.dial(leave, route)).await {
        Ok(dialled) => dialled.map_err(Refusal::from),
        Err(_) => Err(Refusal::new(DenialReason::Unreachable, Some(leave.source()), &route.service.name)
            .because("dial_timeout", format!("nothing answered within {:?}", limits.dial_timeout))),
    }
}
