//! The one thread that holds all devices and moves packets between them.
//!
//! In: packets of every namespace, changes by hand. Out: packets when they are due. Never: waits for a namespace that does
//! not read.

use std::{
    io::{self, Read},
    os::{fd::AsFd, unix::net::UnixStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};
use serde::Serialize;
use tokio::time::Instant;

use super::{
    device::Namespace,
    heap::{Counts, Emulator},
};

/// Largest packet that a device gives.
const PACKET_BYTES_MAX: usize = 65_536;
/// Packets taken from one device before the others get their turn.
const READS_MAX: usize = 64;
/// Longest sleep.
const SLEEP_MAX: Duration = Duration::from_secs(1);
/// Nice value of the thread: a network does not wait for the computers at its ends.
const NICE: i32 = -20;
/// A delivery that comes this much after its time is told of: the machine was too busy for the figures to be trusted.
const LATE: Duration = Duration::from_millis(5);

/// What became of all packets, and how well the machine kept up.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Figures {
    #[serde(flatten)]
    pub counts: Counts,
    /// Deliveries more than 5 ms after their time.
    pub late: u64,
    /// The latest of all, in microseconds.
    pub late_max_us: u64,
    /// Packets that a namespace did not take: its kernel was out of room, or its device was down.
    pub refused: u64,
}

/// What the thread shares with those who change the WAN and look at it.
pub(super) struct Shared {
    pub(super) emulator: Mutex<Emulator>,
    pub(super) figures: Mutex<Figures>,
    pub(super) ended: AtomicBool,
}

/// Moves packets until `shared` says that it ended; a byte on `waker` makes it look.
pub(super) fn run(shared: &Arc<Shared>, namespaces: &[Namespace], mut waker: UnixStream) -> Result<()> {
    // For this thread alone. If root may not even do that, late packets will tell.
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        eprintln!("the WAN runs with no priority over the programs on it: {error}");
    }
    let started = Instant::now();
    let mut packet = vec![0; PACKET_BYTES_MAX];
    let mut figures = Figures::default();
    while !shared.ended.load(Ordering::Acquire) {
        let mut emulator = shared.emulator.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(due) = emulator.due(started.elapsed()) {
            let late = started.elapsed().saturating_sub(due.at);
            figures.late += u64::from(late > LATE);
            figures.late_max_us = figures.late_max_us.max(u64::try_from(late.as_micros()).unwrap_or(u64::MAX));
            let device = namespaces.get(due.to).map(|namespace| &namespace.device);
            figures.refused += u64::from(device.is_none_or(|device| device.send(&due.packet).is_err()));
        }
        figures.counts = emulator.counts();
        let sleep = emulator.next().map_or(SLEEP_MAX, |at| at.saturating_sub(started.elapsed()).min(SLEEP_MAX));
        drop(emulator);
        *shared.figures.lock().unwrap_or_else(PoisonError::into_inner) = figures;

        let mut ready: Vec<PollFd<'_>> = namespaces.iter().map(|n| readable(&n.device)).collect();
        ready.push(readable(&waker));
        match ppoll(&mut ready, Some(TimeSpec::from_duration(sleep)), None) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error).context("waiting for packets"),
        }
        let ready: Vec<bool> = ready.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        for (number, namespace) in namespaces.iter().enumerate().filter(|(number, _)| ready.get(*number) == Some(&true))
        {
            for _ in 0..READS_MAX {
                let Ok(length) = namespace.device.recv(&mut packet) else { break };
                let mut emulator = shared.emulator.lock().unwrap_or_else(PoisonError::into_inner);
                emulator.packet(started.elapsed(), number, packet.get(..length).unwrap_or_default());
            }
        }
        if ready.last() == Some(&true) {
            match waker.read(&mut packet) {
                // Whoever started us is gone.
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("the waker"),
            }
        }
    }
    Ok(())
}

fn readable(file: &impl AsFd) -> PollFd<'_> {
    PollFd::new(file.as_fd(), PollFlags::POLLIN)
}
