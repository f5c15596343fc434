//! Network namespaces and the TUN device in each: what needs root.
//!
//! In: clusters' names. Out: namespaces `hanse-<name>` whose only way out is a TUN device that this process holds.
//! Never: touches the network of the machine itself, or a namespace that it did not make.

use std::{
    fs::File,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use tun_rs::{DeviceBuilder, SyncDevice};

use super::packet::{MTU, ipv4, ipv6};

/// The device's name in each namespace.
const DEVICE: &str = "wan0";
/// Packets that the kernel keeps for us in each namespace; what is beyond is dropped and not counted by us.
const KERNEL_QUEUE: usize = 8_192;
/// Where `ip netns` keeps its namespaces.
const NAMESPACES: &str = "/run/netns";

/// Name of a cluster's namespace.
pub fn namespace(cluster: &str) -> String {
    format!("hanse-{cluster}")
}

/// What this machine lacks to run namespaces, each with what to do; empty if nothing.
pub fn missing() -> Vec<String> {
    let mut missing = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        missing.push("root: namespaces and TUN devices are made by root alone; run it with sudo".to_owned());
    }
    if let Err(error) = File::options().read(true).write(true).open("/dev/net/tun") {
        missing.push(format!("/dev/net/tun: {error}; load the module `tun`, or pass the device to this container"));
    }
    match ip(&["netns", "list"], None) {
        Ok(_) => {}
        Err(error) => missing.push(format!("`ip netns`: {error:#}; install iproute2")),
    }
    if missing.is_empty() {
        let probe = format!("check-{}", std::process::id());
        if let Err(error) = Namespace::create(&probe, 0) {
            missing.push(format!("a namespace: {error:#}"));
        }
    }
    missing
}

/// A namespace with its device. Dropping it removes both.
pub(super) struct Namespace {
    pub(super) device: SyncDevice,
    _made: Made,
}

impl Namespace {
    /// Makes the namespace of cluster number `number`.
    pub(super) fn create(cluster: &str, number: usize) -> Result<Self> {
        let name = namespace(cluster);
        ensure!(
            !Path::new(NAMESPACES).join(&name).exists(),
            "namespace {name} exists: another run holds it, or one that was killed left it; `ip netns del {name}`"
        );
        ip(&["netns", "add", &name], None).with_context(|| format!("making namespace {name}"))?;
        // From here on dropping it removes the namespace.
        let made = Made(name);
        let device = open(&made.0).with_context(|| format!("a TUN device in namespace {}", made.0))?;
        let (four, six) = (ipv4(number), ipv6(number));
        let setup = format!(
            "link set lo up\n\
             link set {DEVICE} mtu {MTU} txqueuelen {KERNEL_QUEUE} up\n\
             address add {four}/32 dev {DEVICE}\n\
             address add {six}/128 dev {DEVICE} nodad\n\
             route add 0.0.0.0/0 dev {DEVICE} src {four}\n\
             route add ::/0 dev {DEVICE}\n"
        );
        ip(&["-n", &made.0, "-batch", "-"], Some(&setup))?;
        Ok(Self { device, _made: made })
    }
}

/// A namespace that shall go.
struct Made(String);

impl Drop for Made {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "del", &self.0], None) {
            eprintln!("namespace {} stays: {error:#}", self.0);
        }
    }
}

/// Opens a TUN device in a namespace; it may be used from anywhere.
fn open(namespace: &str) -> Result<SyncDevice> {
    within(namespace, || {
        let device = DeviceBuilder::new().name(DEVICE).enable(false).build_sync().context("opening /dev/net/tun")?;
        device.set_nonblocking(true)?;
        Ok(device)
    })
}

/// Does something within a namespace, on a thread that enters it and ends there.
pub(super) fn within<T: Send>(namespace: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let path = Path::new(NAMESPACES).join(namespace);
    thread::scope(|scope| {
        let entering = scope.spawn(|| {
            let file = File::open(&path).with_context(|| format!("{}", path.display()))?;
            setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {namespace}"))?;
            work()
        });
        entering.join().unwrap_or_else(|_| bail!("the thread in namespace {namespace} panicked"))
    })
}

/// Runs `ip` to its end.
fn ip(arguments: &[&str], input: Option<&str>) -> Result<Output> {
    let mut command = Command::new("ip");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("running `ip`")?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        writeln!(stdin, "{input}")?;
    }
    let output = child.wait_with_output()?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`ip {}`: {}", arguments.join(" "), words.trim_end());
    Ok(output)
}
