//! The network between clusters: every relayed edge advertises a UDP relay, which forwards to its real listener.
//!
//! A partition between real processes is made here: the relay knows by its source port whose packet it holds, and drops it
//! while the two are cut from each other. Nothing is told to anybody, as with a broken cable.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result, bail};
use tokio::{net::UdpSocket, task::JoinHandle};

/// Largest UDP payload.
const DATAGRAM_BYTES_MAX: usize = 65_536;
/// Most far ends that one relay forwards for at a time.
const CLIENTS_MAX: usize = 256;

/// Who may reach whom. Clones are one network.
#[derive(Clone, Default)]
pub struct Network(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Whose UDP socket has this port.
    owners: BTreeMap<u16, String>,
    /// Pairs that are cut from each other, each in order of name.
    cut: BTreeSet<(String, String)>,
}

fn pair(a: &str, b: &str) -> (String, String) {
    if a < b { (a.into(), b.into()) } else { (b.into(), a.into()) }
}

impl Network {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts two clusters from each other: from now on no packet passes, either way.
    pub fn cut(&self, a: &str, b: &str) {
        self.state().cut.insert(pair(a, b));
    }

    /// Heals every cut.
    pub fn heal(&self) {
        self.state().cut.clear();
    }

    /// Says that the sockets with these ports are those of `cluster`'s edge.
    pub(super) fn own(&self, cluster: &str, ports: BTreeSet<u16>) {
        let mut state = self.state();
        state.owners.retain(|_, owner| owner != cluster);
        state.owners.extend(ports.into_iter().map(|port| (port, cluster.to_owned())));
    }

    /// Whether a packet between the socket at `port` and `cluster` passes. One of an unknown sender passes only while
    /// nothing is cut: it might be anybody's.
    fn passes(&self, port: u16, cluster: &str) -> bool {
        let state = self.state();
        match state.owners.get(&port) {
            Some(owner) => !state.cut.contains(&pair(owner, cluster)),
            None => state.cut.is_empty(),
        }
    }

    /// Starts the relay of `cluster`, whose edge listens at `target`.
    pub(super) async fn relay(&self, cluster: &str, target: SocketAddr) -> Result<Relay> {
        let front = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
        let address = front.local_addr()?;
        let (network, cluster) = (self.clone(), cluster.to_owned());
        let task = tokio::spawn(async move {
            // Ended only with the relay: a test that needs it fails for want of packets.
            let _ = forward(network, cluster, front, target).await;
        });
        Ok(Relay { address, task })
    }
}

/// A running relay; it ends when dropped.
pub(super) struct Relay {
    pub(super) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The far side of one client: its own socket towards the target, and the task that brings answers back.
struct Far {
    socket: Arc<UdpSocket>,
    back: JoinHandle<()>,
}

impl Drop for Far {
    fn drop(&mut self) {
        self.back.abort();
    }
}

async fn forward(network: Network, cluster: String, front: Arc<UdpSocket>, target: SocketAddr) -> Result<()> {
    let mut clients: BTreeMap<SocketAddr, Far> = BTreeMap::new();
    let mut packet = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        // An error here is the echo of an earlier packet that found a closed port.
        let Ok((length, client)) = front.recv_from(&mut packet).await else { continue };
        if !network.passes(client.port(), &cluster) {
            continue;
        }
        if !clients.contains_key(&client) {
            if clients.len() >= CLIENTS_MAX {
                bail!("the relay of {cluster} has too many clients");
            }
            let socket = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
            socket.connect(target).await?;
            let back = tokio::spawn(answer(network.clone(), cluster.clone(), front.clone(), socket.clone(), client));
            clients.insert(client, Far { socket, back });
        }
        let far = clients.get(&client).context("it was put in just now")?;
        // The edge may be dead at the moment; so is a packet then.
        let _ = far.socket.send(packet.get(..length).unwrap_or_default()).await;
    }
}

async fn answer(network: Network, cluster: String, front: Arc<UdpSocket>, socket: Arc<UdpSocket>, client: SocketAddr) {
    let mut packet = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let Ok(length) = socket.recv(&mut packet).await else { continue };
        if network.passes(client.port(), &cluster) {
            let _ = front.send_to(packet.get(..length).unwrap_or_default(), client).await;
        }
    }
}
