//! Capture by address: each visible service has a loopback address, and the sidecar listens on it.
//!
//! In: snapshots. Out: connections, each with the service that its address stands for. Never: needs root.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use federation_model::{ServiceRef, Snapshot};
use gateway_dns::Addresses;
use gateway_proxy::Proxy;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::state::State;

/// Most services that get a listener; the others are reached by SOCKS5.
pub(crate) const LISTENERS_MAX: usize = 1024;

/// Keeps addresses and listeners in step with the catalog until `stop`.
pub(crate) async fn run(
    mut snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    addresses: Addresses,
    state: State,
    listen: bool,
    proxy: Proxy,
    stop: CancellationToken,
) {
    let mut listeners: BTreeMap<(ServiceRef, u16), CancellationToken> = BTreeMap::new();
    loop {
        let current = snapshot.borrow_and_update().clone();
        if let Some(current) = current {
            let changes = addresses.update(&current.catalog);
            if (!changes.added.is_empty() || !changes.removed.is_empty())
                && let Err(error) = state.keep_addresses(&addresses.export())
            {
                tracing::error!(error = format!("{error:#}"), "cannot keep the loopback addresses");
            }
            if listen {
                let wanted: BTreeMap<(ServiceRef, u16), Ipv4Addr> = current
                    .catalog
                    .iter()
                    .filter_map(|s| Some(((s.name.clone(), s.port), addresses.address(&s.name)?)))
                    .take(LISTENERS_MAX)
                    .collect();
                listeners.retain(|key, task| {
                    let keep = wanted.contains_key(key);
                    if !keep {
                        task.cancel();
                    }
                    keep
                });
                for ((name, port), address) in wanted {
                    let key = (name.clone(), port);
                    if listeners.contains_key(&key) {
                        continue;
                    }
                    match TcpListener::bind(SocketAddr::from((address, port))).await {
                        Ok(listener) => {
                            let end = stop.child_token();
                            tokio::spawn(accept(listener, name, port, proxy.clone(), end.clone()));
                            listeners.insert(key, end);
                        }
                        // Tried again with the next snapshot.
                        Err(error) => {
                            tracing::warn!(service = %name, %address, port, %error, "cannot listen for a service");
                        }
                    }
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = snapshot.changed() => if changed.is_err() { return },
        }
    }
}

async fn accept(listener: TcpListener, name: ServiceRef, port: u16, proxy: Proxy, stop: CancellationToken) {
    gateway_proxy::listen(listener, stop, move |stream| {
        let (proxy, name) = (proxy.clone(), name.clone());
        async move {
            // A refusal was logged and audited by the proxy, and the stream was reset.
            let _ = proxy.connect(stream, &name, port).await;
        }
    })
    .await;
}
