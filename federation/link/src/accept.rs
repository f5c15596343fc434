//! The door: connections that come in, held against budgets before anything is computed for them.
//!
//! The loop never ends before the link does; one bad connection costs itself alone.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex},
};

use quinn::Incoming;

use crate::{
    Shared,
    endpoint::{self, ALPN_JOIN, ALPN_SESSION, code},
    join, metrics,
    registry::lock,
    session,
};

/// Bits of an IPv6 address that its network gives to one host or site (RFC 6177): whoever has one such address has them all.
const SITE_BITS: u32 = 64;

/// Whose budget a handshake from `address` uses: the address itself, or of IPv6 its site.
fn site(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => (six & Ipv6Addr::from_bits(u128::MAX << (128 - SITE_BITS))).into(),
        four => four,
    }
}

/// Handshakes under way, by address.
#[derive(Default)]
struct Pending {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One handshake under way; counts until it is dropped.
struct Turn {
    pending: Arc<Mutex<Pending>>,
    address: IpAddr,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut pending = lock(&self.pending);
        pending.all = pending.all.saturating_sub(1);
        if let Some(count) = pending.by_address.get_mut(&self.address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                pending.by_address.remove(&self.address);
            }
        }
    }
}

pub(crate) async fn run(shared: Arc<Shared>, endpoint: quinn::Endpoint) {
    let pending = Arc::new(Mutex::new(Pending::default()));
    loop {
        let incoming = tokio::select! {
            () = shared.cancel.cancelled() => return,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        if let Some((incoming, turn)) = admit(&shared, &pending, incoming) {
            let shared = shared.clone();
            tokio::spawn(serve(shared, incoming, turn));
        }
    }
}

/// Takes a turn for a connection, or sends it away.
fn admit(shared: &Shared, pending: &Arc<Mutex<Pending>>, incoming: Incoming) -> Option<(Incoming, Turn)> {
    let address = site(incoming.remote_address().ip());
    let limits = &shared.limits;
    let mut held = lock(pending);
    if held.all >= limits.retry_above && !incoming.remote_address_validated() {
        drop(held);
        refused("retry");
        // An address that proves itself comes again.
        let _ = incoming.retry();
        return None;
    }
    let count = held.by_address.get(&address).copied().unwrap_or(0);
    if held.all >= limits.incoming_max || count >= limits.pending_per_address_max {
        drop(held);
        refused("too_many_pending");
        incoming.refuse();
        return None;
    }
    held.all += 1;
    *held.by_address.entry(address).or_default() += 1;
    drop(held);
    Some((incoming, Turn { pending: pending.clone(), address }))
}

fn refused(reason: &'static str) {
    ::metrics::counter!(metrics::REFUSALS, "reason" => reason).increment(1);
}

async fn serve(shared: Arc<Shared>, incoming: Incoming, turn: Turn) {
    let address = incoming.remote_address();
    // Read before the handshake: whichever SVID it shows, this one ends no later.
    let Some(own_end) = session::own_end(&shared) else {
        incoming.refuse();
        return;
    };
    let limit = shared.limits.handshake;
    let connection = match incoming.accept() {
        Ok(connecting) => tokio::time::timeout(limit, connecting).await,
        Err(error) => Ok(Err(error)),
    };
    let connection = match connection {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            refused("handshake");
            tracing::debug!(%address, %error, "handshake failed");
            return;
        }
        Err(_) => {
            refused("handshake_timed_out");
            return;
        }
    };
    match endpoint::alpn(&connection).as_deref() {
        Some(ALPN_SESSION) => {
            let outcome = session::begin_accepted(&shared, connection, own_end).await;
            drop(turn);
            if let Err(error) = outcome {
                tracing::debug!(%address, reason = error.reason(), %error, "session did not begin");
            }
        }
        Some(ALPN_JOIN) => {
            drop(turn);
            join::serve(shared, connection).await;
        }
        _ => {
            refused("alpn");
            connection.close(code::REFUSED, b"alpn");
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn all_addresses_of_one_ipv6_site_have_one_budget() {
        let site = |text: &str| super::site(text.parse().expect(text)).to_string();
        assert_eq!(site("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(site("2001:db8:1:2:ffff::1"), "2001:db8:1:2::");
        assert_ne!(site("2001:db8:1:3::1"), site("2001:db8:1:2::1"));
        assert_eq!(site("192.0.2.7"), "192.0.2.7");
        assert_eq!(site("::ffff:192.0.2.7"), "192.0.2.7", "the same host, whichever socket it came to");
    }
}
