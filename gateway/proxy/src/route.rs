//! Stage 5: where a connection goes next.

use federation_model::{ConnectionId, InstanceId, Service};

/// Which side of this process the next hop is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The application beside this process: mTLS ends here.
    Application,
    /// Nearer to the service: an instance of it in this cluster, this cluster's edge, or the edge of the service's.
    Mesh,
}

/// What to dial. Names, never addresses: those are the dialler's own knowledge.
#[derive(Clone, Debug)]
pub struct Route {
    pub service: Service,
    pub next: Next,
    /// The one process that must be reached, for a renewal; any otherwise.
    pub instance: Option<InstanceId>,
    pub connection: ConnectionId,
}
