//! What the parts of a gateway can no longer do once they run, by their own wish and for good.
//!
//! In: nothing. Out: a process from which less can be had. Never: undone; a kernel that refuses the filter ends the
//! start, since a signer that could reach the network would be no signer apart.

use std::{collections::BTreeMap, ffi::CStr};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    libc,
    sched::{CloneFlags, unshare},
    sys::{prctl, resource, signal::Signal},
    unistd::{Pid, getppid},
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// All that a signer needs to answer over a socket that it has, to take and give back memory, to log, and to end. What
/// opens, connects, starts or looks at anything is not among them.
const SIGNER_MAY: [libc::c_long; 28] = [
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];
/// Needed for memory, but never for memory that can be executed: the third argument says which.
const SIGNER_MAY_BUT_EXECUTABLE: [libc::c_long; 2] = [libc::SYS_mmap, libc::SYS_mprotect];
/// What an edge has no use for, and who breaks into it has: another program, and another process's memory.
const EDGE_MAY_NOT: [libc::c_long; 12] = [
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_bpf,
    libc::SYS_mount,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_init_module,
    libc::SYS_finit_module,
];

/// Gives this process the name that `ps` and `top` show: it was not started by the path of its executable.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn name(name: &CStr) -> Result<()> {
    prctl::set_name(name).context("naming the process")
}

/// Ends this process when `parent` does, however that ends.
///
/// # Errors
/// It has ended already, or the kernel refuses.
pub(crate) fn end_with(parent: Pid) -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("asking to end with the gateway")?;
    // It may have ended just before that.
    let found = getppid();
    if found != parent {
        bail!("this part of a gateway is started by `hanse gateway` (process {parent}), not by process {found}");
    }
    Ok(())
}

/// No core file of this process nor of its children: it would hold keys.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn no_core_files() -> Result<()> {
    resource::setrlimit(resource::Resource::RLIMIT_CORE, 0, 0).context("switching core files off")
}

/// Confines this process, which has one thread, to what a signer needs. Says whether it has a network namespace of its
/// own too, which some hosts do not allow; without one the filter alone keeps it from any network.
///
/// # Errors
/// The kernel refuses, or `parent` has ended.
pub(crate) fn signer(parent: Pid) -> Result<bool> {
    // Nobody of the same user attaches to it or reads its memory.
    prctl::set_dumpable(false).context("closing the signer to debuggers")?;
    let apart = unshare(CloneFlags::CLONE_NEWNET)
        .or_else(|_| unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET))
        .is_ok();
    // A new user namespace forgot it.
    end_with(parent)?;
    seccompiler::apply_filter(&signer_filter()?).context("confining the signer (seccomp)")?;
    Ok(apart)
}

/// Takes from this process and the threads that it starts what an edge never does.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn edge() -> Result<()> {
    let rules = EDGE_MAY_NOT.into_iter().map(|call| (call, Vec::new())).collect();
    let filter = filter(rules, SeccompAction::Allow, refuse())?;
    seccompiler::apply_filter(&filter).context("confining the edge (seccomp)")
}

fn signer_filter() -> Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = SIGNER_MAY.into_iter().map(|call| (call, Vec::new())).collect();
    for call in SIGNER_MAY_BUT_EXECUTABLE {
        let executable = u64::from(libc::PROT_EXEC.unsigned_abs());
        let none = SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(executable), 0)?;
        rules.insert(call, vec![SeccompRule::new(vec![none])?]);
    }
    filter(rules, refuse(), SeccompAction::Allow)
}

/// Refused calls fail with EPERM: libraries that try for more than they need go on without.
fn refuse() -> SeccompAction {
    SeccompAction::Errno(Errno::EPERM as u32)
}

fn filter(rules: BTreeMap<i64, Vec<SeccompRule>>, others: SeccompAction, named: SeccompAction) -> Result<BpfProgram> {
    let architecture = std::env::consts::ARCH.try_into().context("no filter is known for this processor")?;
    let filter = SeccompFilter::new(rules, others, named, architecture)?;
    Ok(filter.try_into()?)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::ErrorKind,
        net::{TcpListener, TcpStream, UdpSocket},
        os::unix::net::{UnixListener, UnixStream},
        process::Command,
    };

    use super::*;

    /// What `attempt` gives in a thread that the filter holds: it is for threads as for processes.
    fn confined<T: Send + 'static>(filter: BpfProgram, attempt: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = std::thread::spawn(move || {
            seccompiler::apply_filter(&filter).expect("the kernel has seccomp");
            attempt()
        });
        thread.join().expect("no panic")
    }

    fn kind<T>(result: std::io::Result<T>) -> Option<ErrorKind> {
        result.err().map(|error| error.kind())
    }

    #[test]
    fn a_confined_signer_opens_connects_and_starts_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let (key, socket) = (folder.path().join("kek"), folder.path().join("socket"));
        std::fs::write(&key, "key").expect("written");
        let _unix = UnixListener::bind(&socket).expect("bound");
        let tcp = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = tcp.local_addr().expect("address");
        let attempts = move || {
            [
                kind(File::open(&key)),
                kind(std::fs::write(&key, "other")),
                kind(std::fs::read_dir("/")),
                kind(std::fs::remove_file(&key)),
                kind(TcpStream::connect(address)),
                kind(TcpListener::bind("127.0.0.1:0")),
                kind(UdpSocket::bind("127.0.0.1:0")),
                kind(UnixStream::connect(&socket)),
                kind(Command::new("/bin/true").spawn()),
                kind(std::thread::Builder::new().spawn(|| {})),
                kind(
                    nix::sys::socket::socketpair(
                        nix::sys::socket::AddressFamily::Unix,
                        nix::sys::socket::SockType::Stream,
                        None,
                        nix::sys::socket::SockFlag::empty(),
                    )
                    .map_err(Into::into),
                ),
                kind(prctl::set_dumpable(true).map_err(Into::into)),
                kind(nix::sys::signal::kill(Pid::parent(), None).map_err(Into::into)),
                kind(unshare(CloneFlags::CLONE_NEWUSER).map_err(Into::into)),
            ]
        };
        // Not for another reason than the filter: without it, the first of them go through.
        let free = attempts.clone()();
        assert_eq!(&free[..2], &[None, None]);
        std::fs::write(folder.path().join("kek"), "key").expect("written");
        let filter = signer_filter().expect("a filter");
        for (number, outcome) in confined(filter, attempts).into_iter().enumerate() {
            assert_eq!(outcome, Some(ErrorKind::PermissionDenied), "attempt {number}");
        }
    }

    #[test]
    fn a_confined_signer_still_answers() {
        use federation_identity::{RemoteSigner, seal::Kek, signer};
        use std::os::fd::AsFd;
        let (edge, end) = signer::channel().expect("channel");
        let (domain, name): (federation_model::TrustDomain, federation_model::ClusterName) =
            ("west.mesh.internal".parse().expect("domain"), "west".parse().expect("name"));
        let server = signer::Server::new(Kek::generate(), domain.clone(), name.clone());
        let filter = signer_filter().expect("a filter");
        let thread = std::thread::spawn(move || {
            seccompiler::apply_filter(&filter).expect("the kernel has seccomp");
            server.serve(end.as_fd())
        });
        let remote = RemoteSigner::new(edge, domain, name).expect("remote");
        remote.start().expect("derived keys");
        let (_, sealed) = remote.make().expect("made");
        remote.open(&sealed).expect("opened");
        federation_identity::Signer::sign_record(&remote, b"record").expect("signed");
        drop(remote);
        thread.join().expect("no panic").expect("ended with its edge");
    }

    #[test]
    fn a_confined_edge_starts_no_program_and_still_opens_and_connects() {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = tcp.local_addr().expect("address");
        let rules = EDGE_MAY_NOT.into_iter().map(|call| (call, Vec::new())).collect();
        let filter = filter(rules, SeccompAction::Allow, refuse()).expect("a filter");
        let outcomes = confined(filter, move || {
            (
                kind(Command::new("/bin/true").spawn()),
                kind(File::open("/proc/self/stat")),
                kind(TcpStream::connect(address)),
            )
        });
        assert_eq!(outcomes, (Some(ErrorKind::PermissionDenied), None, None));
    }

    #[test]
    fn a_part_that_was_not_started_by_its_gateway_does_not_run() {
        let outcome = std::thread::spawn(|| end_with(Pid::from_raw(1 << 22))).join().expect("no panic");
        assert!(outcome.is_err_and(|error| error.to_string().contains("hanse gateway")));
        // The thread has ended, and with it its wish.
        assert_eq!(prctl::get_pdeathsig(), Ok(None));
    }
}
