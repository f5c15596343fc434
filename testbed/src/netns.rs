//! A WAN on one machine: a network namespace per cluster, and between them one process that treats IP packets as the
//! internet would.
//!
//! In: a [`Schedule`] and a seed. Out: namespaces `hanse-<cluster>`, each with an IPv4 and an IPv6 address, whose packets
//! are delayed, lost, reordered, doubled, held up and swallowed on their way. Never: needs netem, touches the machine's own
//! network, or leaves a namespace behind unless it is killed.
//!
//! `path` and `heap` are pure and need no root; `device` and `engine` are what makes it real.

mod device;
mod engine;
pub mod heap;
pub mod packet;
pub mod path;
mod probe;
pub mod schedule;

use std::{
    io::Write,
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::net::UnixStream,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool, atomic::Ordering},
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, bail};

pub use device::{missing, namespace};
pub use engine::Figures;
pub use probe::round_trips;
pub use schedule::{Change, Quality, Schedule};

use heap::Emulator;
use packet::{ipv4, ipv6};

/// One cluster's place in the WAN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    pub cluster: String,
    /// Name for `ip netns exec`.
    pub namespace: String,
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
}

/// A WAN that runs. Dropping it removes every namespace; whatever still runs in one is then alone.
pub struct Wan {
    sites: Vec<Site>,
    shared: Arc<engine::Shared>,
    waker: UnixStream,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Wan {
    /// Makes every namespace and begins to move packets; the schedule's time begins now.
    ///
    /// # Errors
    /// This machine lacks something (see [`missing`]), or a namespace of that name exists.
    pub fn start(schedule: Schedule, seed: u64) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("namespaces and TUN devices are made by root alone: run it with sudo");
        }
        let mut namespaces = Vec::new();
        let mut sites = Vec::new();
        for (number, cluster) in schedule.clusters().iter().enumerate() {
            namespaces.push(device::Namespace::create(cluster, number)?);
            let (cluster, namespace) = (cluster.clone(), namespace(cluster));
            sites.push(Site { cluster, namespace, ipv4: ipv4(number), ipv6: ipv6(number) });
        }
        let (waker, woken) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        waker.set_nonblocking(true)?;
        let shared = Arc::new(engine::Shared {
            emulator: Mutex::new(Emulator::new(schedule, seed)),
            figures: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let of_thread = shared.clone();
        let thread = thread::Builder::new().name("wan".into());
        let thread = thread.spawn(move || engine::run(&of_thread, &namespaces, woken))?;
        Ok(Self { sites, shared, waker, thread: Some(thread) })
    }

    /// Every cluster's place, in order of its number.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// Changes paths from now on.
    ///
    /// # Errors
    /// It names a cluster that is not there, or a number that makes no sense.
    pub fn change(&self, change: &Change) -> Result<()> {
        self.shared.emulator.lock().unwrap_or_else(PoisonError::into_inner).change(change)
    }

    /// What became of all packets so far.
    pub fn figures(&self) -> Figures {
        *self.shared.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it and removes every namespace.
    ///
    /// # Errors
    /// It had failed before.
    pub fn stop(mut self) -> Result<Figures> {
        self.end()?;
        Ok(self.figures())
    }

    fn end(&mut self) -> Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        self.shared.ended.store(true, Ordering::Release);
        // If it cannot be woken it looks within a second.
        let _ = self.waker.write(&[1]);
        thread.join().unwrap_or_else(|_| bail!("the thread that moves packets panicked")).context("the WAN")
    }
}

impl Drop for Wan {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{error:#}");
        }
    }
}
