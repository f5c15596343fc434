//! Where an edge's connections go next: to an instance in its cluster, or through a tunnel to another member's edge.

use std::sync::atomic::{AtomicUsize, Ordering};

use federation_link::Link;
use federation_model::{ClusterId, Denial, DenialReason, TrustDomain};
use gateway_api::Registry;
use gateway_proxy::{BoxFuture, BoxStream, Dial, HOLD, Leave, Route};
use tokio::net::TcpStream;

use crate::relays::Relays;

/// The edge's knowledge of addresses: its own sidecars, and the sessions that stand.
pub(crate) struct EdgeDial {
    pub(crate) own: ClusterId,
    pub(crate) own_domain: TrustDomain,
    pub(crate) link: Link,
    pub(crate) registry: Registry,
    pub(crate) relays: Relays,
    /// Spreads connections over the instances of a service.
    pub(crate) turn: AtomicUsize,
}

impl Dial for EdgeDial {
    fn dial<'a>(&'a self, leave: Leave<'a>, route: &'a Route) -> BoxFuture<'a, Result<BoxStream, Denial>> {
        Box::pin(async move {
            let denial = |reason| Denial::without_rule(reason, Some(leave.source()), &route.service.name);
            let id = &route.service.id;
            if id.cluster != self.own {
                // What already came over a session goes straight on: one relay is enough.
                let relaying = leave.source().trust_domain() != &self.own_domain;
                let opened = match relaying {
                    true => self.link.open_tunnel(id.cluster).await,
                    false => self.link.open_tunnel_toward(id.cluster).await,
                };
                return match opened {
                    Ok(tunnel) => Ok(gateway_proxy::boxed(self.relays.note(route.connection, id.cluster, tunnel))),
                    Err(error) => {
                        tracing::warn!(service = %route.service.name, %error, "no tunnel");
                        Err(denial(DenialReason::Unreachable))
                    }
                };
            }
            let all = self.registry.instances(&id.service, &id.namespace);
            let chosen = match route.instance {
                Some(wanted) => all.iter().find(|instance| instance.id == wanted),
                None => {
                    let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                    turn.checked_rem(all.len()).and_then(|at| all.get(at))
                }
            };
            let address = chosen.ok_or_else(|| denial(DenialReason::NoInstance))?.address;
            let stream = TcpStream::connect(address).await.map_err(|error| {
                tracing::warn!(service = %route.service.name, %address, %error, "an instance cannot be dialled");
                denial(DenialReason::NoInstance)
            })?;
            // Requests and answers are often one segment; waiting to fill it costs a delayed acknowledgement.
            let _ = stream.set_nodelay(true);
            Ok(Box::new(stream) as BoxStream)
        })
    }

    fn back<'a>(&'a self, route: &'a Route) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let id = &route.service.id;
            match (id.cluster == self.own, route.instance) {
                (false, _) => self.link.back(id.cluster, HOLD).await,
                // The very process that was asked for is not replaced by another.
                (true, Some(_)) => false,
                (true, None) => self.registry.back(&id.service, &id.namespace, HOLD).await,
            }
        })
    }
}
