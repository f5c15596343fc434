//! The Unix socket: whoever connects is named by the kernel.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::connection::{Connection, Peer, STRANGER_LIMIT};

/// Most connections of operators at once.
const OPERATORS_MAX: usize = 256;
/// Most connections of everybody else at once: they come to enrol and go.
const OTHERS_MAX: usize = 64;
/// Wait after a failed accept: out of descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who may open the socket at all. What they may do there, their uid decides at each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Mode 0600: the gateway's own user, and root.
    Owner,
    /// Mode 0666: workloads of other users enrol here by their uid.
    Everyone,
}

impl Access {
    /// What the uids of the `[[workload]]` table need.
    pub fn for_workloads(uids: impl IntoIterator<Item = u32>) -> Self {
        let own = nix::unistd::geteuid().as_raw();
        if uids.into_iter().all(|uid| uid == own || uid == 0) { Self::Owner } else { Self::Everyone }
    }

    const fn mode(self) -> u32 {
        match self {
            Self::Owner => 0o600,
            Self::Everyone => 0o666,
        }
    }
}

/// Why the socket cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    #[error("{} is there and is no socket: remove it, or name another path as `socket` in the config", .0.display())]
    NotASocket(PathBuf),
    #[error("another process answers on {}: is a gateway with this config running already?", .0.display())]
    InUse(PathBuf),
    #[error("cannot listen on {}: {source}", path.display())]
    Listen { path: PathBuf, source: io::Error },
}

/// A bound socket. Dropping it removes the file, if it still is this one.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Socket {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds the socket. A file left by a gateway that was killed is replaced.
///
/// # Errors
/// Somebody answers on it, the path is something else, or the system refuses.
pub fn bind(path: &Path, access: Access) -> Result<Socket, SocketError> {
    let failed = |source| SocketError::Listen { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => return Err(SocketError::InUse(path.to_owned())),
            // Nobody listens: its gateway was killed before it could remove the file.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed)?,
            Err(error) => return Err(failed(error)),
        },
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    // Until the mode is set the umask decides who may connect; what they may do is judged by uid in any case.
    fs::set_permissions(path, fs::Permissions::from_mode(access.mode())).map_err(failed)?;
    let inode = fs::symlink_metadata(path).map_err(failed)?.ino();
    Ok(Socket { listener, path: path.to_owned(), inode })
}

/// Accepts until `stop`, and hands on each connection with its peer.
pub(crate) async fn accept(
    socket: Socket,
    operators: Arc<[u32]>,
    connections: mpsc::Sender<io::Result<Connection<UnixStream>>>,
    stop: CancellationToken,
) {
    let (own_room, other_room) = (Arc::new(Semaphore::new(OPERATORS_MAX)), Arc::new(Semaphore::new(OTHERS_MAX)));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = socket.listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the Unix socket");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let uid = match stream.peer_cred() {
            Ok(credentials) => credentials.uid(),
            Err(error) => {
                tracing::warn!(%error, "a peer on the Unix socket has no credentials");
                continue;
            }
        };
        let operator = operators.contains(&uid);
        let room = if operator { &own_room } else { &other_room };
        let Ok(permit) = Arc::clone(room).try_acquire_owned() else {
            tracing::warn!(uid, "too many connections on the Unix socket: one was closed");
            continue;
        };
        let life = (!operator).then_some(STRANGER_LIMIT);
        let connection = Connection::new(stream, Peer::Local { uid, operator }, life, permit);
        if connections.send(Ok(connection)).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_of_a_killed_gateway_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("hanse.sock");
        let socket = bind(&path, Access::Owner).expect("first");
        assert!(matches!(bind(&path, Access::Owner), Err(SocketError::InUse(_))));
        // As a kill would: the listener is gone, the file stays.
        let dead = std::os::unix::net::UnixListener::bind(folder.path().join("dead")).expect("dead");
        drop(dead);
        bind(&folder.path().join("dead"), Access::Owner).expect("replaced");
        drop(socket);
        assert!(!path.exists(), "the file of a closed socket stays");
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("notes.txt");
        fs::write(&path, "mine").expect("write");
        assert!(matches!(bind(&path, Access::Owner), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).expect("read"), "mine");
    }

    #[tokio::test]
    async fn the_mode_is_as_narrow_as_the_workload_table_lets_it_be() {
        let folder = tempfile::tempdir().expect("folder");
        let own = nix::unistd::geteuid().as_raw();
        for (name, uids, wanted) in
            [("a", vec![], 0o600), ("b", vec![own], 0o600), ("c", vec![own.wrapping_add(1)], 0o666)]
        {
            let path = folder.path().join(name);
            let socket = bind(&path, Access::for_workloads(uids)).expect("bind");
            assert_eq!(fs::metadata(socket.path()).expect("file").permissions().mode() & 0o777, wanted, "{name}");
        }
    }
}
