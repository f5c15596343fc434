//! A UDP path on loopback that takes its time: every datagram arrives a fixed delay after it was sent, each way.
//!
//! In: where it leads, and the delay. Out: an address to dial. Never: loses, reorders or limits: `wan` does that, between
//! namespaces; this one needs no root.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use tokio::{
    net::UdpSocket,
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until},
};

/// Longest datagram.
const DATAGRAM_BYTES_MAX: usize = 65_536;
/// Most datagrams on their way, each way; further ones are lost.
const UNDER_WAY_MAX: usize = 65_536;

pub(crate) struct Path {
    front: SocketAddr,
    task: JoinHandle<()>,
}

impl Path {
    pub(crate) async fn to(target: SocketAddr, delay: Duration) -> Result<Self> {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await?);
        let address = front.local_addr()?;
        Ok(Self { front: address, task: tokio::spawn(serve(front, target, delay)) })
    }

    /// Where to send what should arrive at its end.
    pub(crate) fn front(&self) -> SocketAddr {
        self.front
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A datagram, when it arrives, and to whom.
type Late = (Instant, Vec<u8>, SocketAddr);

async fn serve(front: Arc<UdpSocket>, target: SocketAddr, delay: Duration) {
    // Of each dialler, a socket of its own, so that answers find their way back.
    let mut backs: HashMap<SocketAddr, mpsc::Sender<Late>> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let Ok((length, from)) = front.recv_from(&mut buffer).await else { continue };
        let back = match backs.entry(from) {
            Entry::Occupied(held) => held.into_mut(),
            Entry::Vacant(vacant) => {
                let Ok(socket) = UdpSocket::bind("127.0.0.1:0").await else { continue };
                let socket = Arc::new(socket);
                let (there, late) = mpsc::channel(UNDER_WAY_MAX);
                tasks.spawn(deliver(socket.clone(), late));
                let (here, late) = mpsc::channel(UNDER_WAY_MAX);
                tasks.spawn(deliver(front.clone(), late));
                tasks.spawn(answers(socket, from, delay, here));
                vacant.insert(there)
            }
        };
        let bytes = buffer.get(..length).unwrap_or_default().to_vec();
        let _ = back.try_send((Instant::now() + delay, bytes, target));
    }
}

async fn answers(socket: Arc<UdpSocket>, to: SocketAddr, delay: Duration, late: mpsc::Sender<Late>) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let Ok(length) = socket.recv(&mut buffer).await else { continue };
        let bytes = buffer.get(..length).unwrap_or_default().to_vec();
        let _ = late.try_send((Instant::now() + delay, bytes, to));
    }
}

async fn deliver(socket: Arc<UdpSocket>, mut late: mpsc::Receiver<Late>) {
    while let Some((at, bytes, to)) = late.recv().await {
        sleep_until(at).await;
        let _ = socket.send_to(&bytes, to).await;
    }
}
