//! Where a sidecar's connections go next: to its application, to an instance in its cluster, or to its edge.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
};

use federation_model::{ClusterId, Denial, DenialReason, InstanceId};
use gateway_proxy::{BoxFuture, BoxStream, Dial, HOLD, Leave, Next, Route};
use tokio::{net::TcpStream, sync::watch};

use crate::{config::Served, feed::Instances, identity::Home, presence::Presence};

/// The sidecar's knowledge of addresses. Everything but the edge's name is taken from the feed or the configuration.
pub(crate) struct SidecarDial {
    own: ClusterId,
    /// Says `host:port` of the edge's mesh listener, which is resolved anew at each attempt.
    home: watch::Receiver<Home>,
    serves: Vec<Served>,
    instances: Instances,
    presence: Presence,
    /// Spreads connections over the instances of a service.
    turn: AtomicUsize,
}

impl SidecarDial {
    pub(crate) fn new(
        home: watch::Receiver<Home>,
        serves: Vec<Served>,
        instances: Instances,
        presence: Presence,
    ) -> Self {
        let own = home.borrow().cluster;
        Self { own, home, serves, instances, presence, turn: AtomicUsize::new(0) }
    }

    fn application(&self, route: &Route) -> Option<SocketAddr> {
        let id = &route.service.id;
        let served = self.serves.iter().find(|s| s.service == id.service && s.namespace == id.namespace)?;
        (id.cluster == self.own).then_some(served.app)
    }

    fn instance(&self, route: &Route) -> Option<SocketAddr> {
        let id = &route.service.id;
        let all: Vec<(InstanceId, SocketAddr)> = self.instances.of(&id.service, &id.namespace);
        match route.instance {
            Some(wanted) => all.iter().find(|(instance, _)| *instance == wanted).map(|(_, address)| *address),
            None => {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                all.get(turn.checked_rem(all.len())?).map(|(_, address)| *address)
            }
        }
    }
}

impl Dial for SidecarDial {
    fn dial<'a>(&'a self, leave: Leave<'a>, route: &'a Route) -> BoxFuture<'a, Result<BoxStream, Denial>> {
        Box::pin(async move {
            let denial = |reason| Denial::without_rule(reason, Some(leave.source()), &route.service.name);
            let dialled = match route.next {
                Next::Application => {
                    let address = self.application(route).ok_or_else(|| denial(DenialReason::NoInstance))?;
                    TcpStream::connect(address).await.map_err(|error| {
                        tracing::warn!(service = %route.service.name, %address, %error, "the application cannot be dialled");
                        denial(DenialReason::NoInstance)
                    })?
                }
                Next::Mesh if route.service.id.cluster == self.own => {
                    let address = self.instance(route).ok_or_else(|| denial(DenialReason::NoInstance))?;
                    TcpStream::connect(address).await.map_err(|_| denial(DenialReason::NoInstance))?
                }
                Next::Mesh if self.presence.is_leaving() => return Err(denial(DenialReason::Unreachable)),
                Next::Mesh => {
                    let edge = self.home.borrow().mesh.clone();
                    TcpStream::connect(&edge).await.map_err(|error| {
                        tracing::warn!(edge, %error, "the edge cannot be dialled");
                        denial(DenialReason::Unreachable)
                    })?
                }
            };
            // Requests and answers are often one segment; waiting to fill it costs a delayed acknowledgement.
            let _ = dialled.set_nodelay(true);
            Ok(Box::new(dialled) as BoxStream)
        })
    }

    fn back<'a>(&'a self, route: &'a Route) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let id = &route.service.id;
            match (route.next, id.cluster == self.own, route.instance) {
                (Next::Application, ..) => false,
                (Next::Mesh, false, _) => self.presence.back(HOLD).await,
                // The very process that was asked for is not replaced by another.
                (Next::Mesh, true, Some(_)) => false,
                (Next::Mesh, true, None) => self.instances.back(&id.service, &id.namespace, HOLD).await,
            }
        })
    }
}
