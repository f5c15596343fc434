//! Listening sockets: bound anew, or taken over from whoever holds them while programs come and go.
//!
//! systemd holds sockets (`ListenStream=` in a `.socket` unit) and hands them to each life of a service as descriptors 3
//! and up (sd_listen_fds(3)). What is dialled while one life ends and the next begins waits in the socket's queue instead of
//! being refused. A socket is known by its address: no configuration names it.
//!
//! In: the address to listen on. Out: a listener. Never: takes a socket twice, or one that was meant for another process.

use std::{
    io,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

use listenfd::ListenFd;
use tokio::net::TcpListener;

/// Most descriptors that are looked at.
const HANDED_MAX: usize = 64;

/// What was handed over and not taken yet.
#[derive(Debug)]
pub struct Sockets(Mutex<Vec<std::net::TcpListener>>);

impl Sockets {
    /// Takes what was handed to this process, by `LISTEN_PID` and `LISTEN_FDS`. To be called once, before the first file is
    /// opened; what is no TCP listener is left alone.
    pub fn handed() -> Self {
        let mut handed = ListenFd::from_env();
        let count = handed.len().min(HANDED_MAX);
        Self(Mutex::new((0..count).filter_map(|at| handed.take_tcp_listener(at).ok().flatten()).collect()))
    }

    /// A listener at `address`: the one that was handed over, if there is one, or a new one.
    ///
    /// # Errors
    /// The address is taken, or is not this host's.
    pub async fn listen(&self, address: SocketAddr) -> io::Result<TcpListener> {
        let held = {
            let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let at = held.iter().position(|held| held.local_addr().is_ok_and(|found| found == address));
            at.map(|at| held.swap_remove(at))
        };
        let Some(held) = held else { return TcpListener::bind(address).await };
        tracing::debug!(%address, "listening on a socket that was handed over");
        held.set_nonblocking(true)?;
        TcpListener::from_std(held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_was_handed_over_is_taken_by_its_address_once() {
        let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = held.local_addr().expect("bound");
        // Dialled before anybody listens: it waits in the queue.
        let early = std::net::TcpStream::connect(address).expect("queued");
        let sockets = Sockets(Mutex::new(vec![held]));
        let other = sockets.listen("127.0.0.1:0".parse().expect("address")).await.expect("a new one");
        assert_ne!(other.local_addr().expect("bound"), address);
        let taken = sockets.listen(address).await.expect("taken over");
        let (_, from) = taken.accept().await.expect("it was waiting");
        assert_eq!(from, early.local_addr().expect("bound"));
        let again = sockets.listen(address).await.expect_err("it is in use");
        assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
    }
}
