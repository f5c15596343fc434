//! The edge's side: a [`Signer`] whose keys are in another process.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use federation_model::{ClusterName, Digest, SpiffeId, Timestamp, TrustDomain};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{MsgFlags, SockType, getsockopt, recv, send, sockopt},
};
use prost::Message;
use zeroize::{Zeroize, Zeroizing};

use super::{
    ANSWER_LIMIT, MESSAGE_BYTES_MAX, START_LIMIT, SignerError, Verb, monotonic,
    wire::{Answer, Ask, Nothing, Public, Refused, Reply, Request, Rotate, Sealed, Step, SvidRequest, Why},
};
use crate::{
    Authority, IssueError, Issued, RotationStep, Signer,
    seal::{SEALED_BYTES_MAX, SealError, UnsealError},
    token,
};

/// After which a request without an answer is sent again: the signer that took it may have died.
const AGAIN_AFTER: Duration = Duration::from_millis(250);
/// How long nobody waits for a signer that did not answer.
const PAUSE: Duration = Duration::from_millis(250);

/// Keys that an edge uses itself; what they guard cannot be told from one another, nor from the key above them.
pub struct DerivedKeys {
    /// Makes the MACs of the store's rows.
    pub store_mac: Zeroizing<[u8; 32]>,
    /// Seals the proof keys of join tokens.
    pub token_seal: Zeroizing<[u8; 32]>,
    /// Seals backups.
    pub backup: Zeroizing<[u8; 32]>,
}

/// A signer in another process, at the other end of a socket.
///
/// If that process died and was started again, it is given the sealed keys again on the way: callers notice a wait.
pub struct RemoteSigner {
    domain: TrustDomain,
    name: ClusterName,
    channel: Mutex<Channel>,
    /// What was made or opened last, and its sealed keys.
    held: Mutex<Option<(Authority, Vec<u8>)>>,
}

impl RemoteSigner {
    /// Takes the edge's end of a [`channel`](super::channel).
    ///
    /// # Errors
    /// It is no such socket.
    pub fn new(channel: OwnedFd, domain: TrustDomain, name: ClusterName) -> io::Result<Self> {
        if getsockopt(&channel, sockopt::SockType)? != SockType::SeqPacket {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a signer's socket"));
        }
        let channel = Channel {
            socket: channel,
            next: u64::from_ne_bytes(token::random()),
            paused_until: Duration::ZERO,
            buffer: Zeroizing::new(vec![0; MESSAGE_BYTES_MAX]),
        };
        Ok(Self { domain, name, channel: Mutex::new(channel), held: Mutex::new(None) })
    }

    /// The keys that this edge uses itself. Waits for the signer to start.
    ///
    /// # Errors
    /// It does not within [`START_LIMIT`].
    pub fn start(&self) -> Result<DerivedKeys, SignerError> {
        let Answer::Started(derived) = self.ask(&Ask::Start(Nothing {}), START_LIMIT)? else {
            return Err(SignerError::Unreadable);
        };
        let key = |bytes: Vec<u8>| {
            let bytes = Zeroizing::new(bytes);
            bytes.as_slice().try_into().map(Zeroizing::new).map_err(|_| SignerError::Unreadable)
        };
        Ok(DerivedKeys {
            store_mac: key(derived.store_mac)?,
            token_seal: key(derived.token_seal)?,
            backup: key(derived.backup)?,
        })
    }

    /// Has new keys made for this cluster: the authority, and the sealed keys for a store to hold.
    ///
    /// # Errors
    /// There is no signer to ask.
    pub fn make(&self) -> Result<(Authority, Vec<u8>), SignerError> {
        let Answer::Made(made) = self.ask(&Ask::Make(Nothing {}), START_LIMIT)? else {
            return Err(SignerError::Unreadable);
        };
        let authority = self.authority(*made.public.ok_or(SignerError::Unreadable)?)?;
        *lock(&self.held) = Some((authority.clone(), made.sealed.clone()));
        Ok((authority, made.sealed))
    }

    /// Has the signer take up keys that it sealed before.
    ///
    /// # Errors
    /// It cannot open them, or they are another cluster's.
    pub fn open(&self, sealed: &[u8]) -> Result<Authority, SignerError> {
        let Answer::Opened(public) = self.ask(&Ask::Open(sealed.to_vec()), START_LIMIT)? else {
            return Err(SignerError::Unreadable);
        };
        let authority = self.authority(*public)?;
        *lock(&self.held) = Some((authority.clone(), sealed.to_vec()));
        Ok(authority)
    }

    /// Has the keys that are held take a step of a rotation: the authority after it, and its sealed keys. They are in
    /// use once they were kept and then given to [`RemoteSigner::open`].
    ///
    /// # Errors
    /// The rotation is not where this step begins, or there is no signer to ask.
    pub fn rotate(&self, step: RotationStep) -> Result<(Authority, Vec<u8>), SignerError> {
        let (_, sealed) = lock(&self.held).clone().ok_or(SignerError::Locked)?;
        let request = Rotate { sealed, step: Step::from(step).into() };
        let Answer::Made(made) = self.ask(&Ask::Rotate(request), ANSWER_LIMIT)? else {
            return Err(SignerError::Unreadable);
        };
        Ok((self.authority(*made.public.ok_or(SignerError::Unreadable)?)?, made.sealed))
    }

    /// The authority that was made or opened last.
    pub fn held(&self) -> Option<Authority> {
        lock(&self.held).as_ref().map(|(authority, _)| authority.clone())
    }

    /// Whether the signer answers.
    ///
    /// # Errors
    /// It does not.
    pub fn ping(&self) -> Result<(), SignerError> {
        match self.ask(&Ask::Ping(Nothing {}), ANSWER_LIMIT)? {
            Answer::Pong(_) => Ok(()),
            _ => Err(SignerError::Unreadable),
        }
    }

    fn authority(&self, public: Public) -> Result<Authority, SignerError> {
        let (replication, sealing) = public.keys().ok_or(SignerError::Unreadable)?;
        Authority::new(&self.domain, &self.name, public.into_roots(), replication, sealing)
            .map_err(|error| SignerError::Refused(error.to_string()))
    }

    fn signature(&self, ask: &Ask) -> Result<[u8; 64], SignerError> {
        match self.ask(ask, ANSWER_LIMIT)? {
            Answer::Signature(signature) => signature.try_into().map_err(|_| SignerError::Unreadable),
            _ => Err(SignerError::Unreadable),
        }
    }

    /// One question, one answer that is no refusal. A signer that was started again is given its keys first.
    fn ask(&self, ask: &Ask, limit: Duration) -> Result<Answer, SignerError> {
        let mut channel = lock(&self.channel);
        match channel.ask(ask, limit) {
            Err(SignerError::Locked) => {
                let (authority, sealed) = lock(&self.held).clone().ok_or(SignerError::Locked)?;
                let Answer::Opened(public) = channel.ask(&Ask::Open(sealed), limit)? else {
                    return Err(SignerError::Unreadable);
                };
                if self.authority(*public)? != authority {
                    return Err(SignerError::Refused("the keys that it opened are others than before".into()));
                }
                channel.ask(ask, limit)
            }
            outcome => outcome,
        }
    }
}

impl std::fmt::Debug for RemoteSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteSigner").field("domain", &self.domain).field("name", &self.name).finish_non_exhaustive()
    }
}

impl Signer for RemoteSigner {
    fn sign_svid(&self, id: &SpiffeId, csr: &[u8], ttl: Duration, _now: Timestamp) -> Result<Issued, IssueError> {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let request = SvidRequest { spiffe_id: id.to_string(), csr: csr.to_vec(), ttl_ms };
        match self.ask(&Ask::SignSvid(request), ANSWER_LIMIT) {
            Ok(Answer::Svid(svid)) => Ok(svid.into()),
            Ok(_) => Err(SignerError::Unreadable.into()),
            Err(refusal) => {
                // What the request alone is refused for is told as if the keys were here.
                if let (SignerError::Refused(_), Some((authority, _))) = (&refusal, &*lock(&self.held)) {
                    authority.requested(id, csr, ttl)?;
                }
                Err(refusal.into())
            }
        }
    }

    fn sign_record(&self, record: &[u8]) -> Result<[u8; 64], SignerError> {
        self.signature(&Ask::SignRecord(record.to_vec()))
    }

    fn sign_backup(&self, backup: &Digest) -> Result<[u8; 64], SignerError> {
        self.signature(&Ask::SignBackup(backup.0.to_vec()))
    }

    fn sign_receipt(&self, receipt: &[u8]) -> Result<[u8; 64], SignerError> {
        self.signature(&Ask::SignReceipt(receipt.to_vec()))
    }

    fn unseal(&self, aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
        if sealed.len() > SEALED_BYTES_MAX {
            return Err(SealError::TooLong { bytes: sealed.len() }.into());
        }
        let request = Sealed { aad: aad.to_vec(), sealed: sealed.to_vec() };
        match self.ask(&Ask::Unseal(request), ANSWER_LIMIT) {
            Ok(Answer::Value(value)) => Ok(Zeroizing::new(value)),
            Ok(_) => Err(SignerError::Unreadable.into()),
            // It has the keys and says no: the value is at fault.
            Err(SignerError::Refused(_)) => Err(SealError::Damaged.into()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The socket, used by one caller at a time.
struct Channel {
    socket: OwnedFd,
    /// Number of the next request.
    next: u64,
    /// Until then a silent signer is not asked.
    paused_until: Duration,
    buffer: Zeroizing<Vec<u8>>,
}

impl Channel {
    fn ask(&mut self, ask: &Ask, limit: Duration) -> Result<Answer, SignerError> {
        let verb = ask.verb();
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let request = Request { id, ask: Some(ask.clone()) }.encode_to_vec();
        if request.len() > MESSAGE_BYTES_MAX {
            return Err(SignerError::TooLong { bytes: request.len() });
        }
        let start = monotonic();
        if start < self.paused_until {
            return Err(SignerError::Silent);
        }
        let mut again = start;
        loop {
            let at = monotonic();
            if at >= start + limit {
                self.paused_until = at + PAUSE;
                return Err(SignerError::Silent);
            }
            if at >= again {
                self.send(&request)?;
                again = at + AGAIN_AFTER;
            }
            match self.receive(again.min(start + limit) - at)? {
                Some(reply) if reply.id == id => return judge(verb, reply.answer),
                // An answer that came too late for the one who asked.
                _ => {}
            }
        }
    }

    /// Sends, unless there is no room: then the signer takes nothing out, and this one comes again.
    fn send(&self, request: &[u8]) -> Result<(), SignerError> {
        match send(self.socket.as_raw_fd(), request, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) {
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR | Errno::ENOBUFS) => Ok(()),
            Err(Errno::EMSGSIZE) => Err(SignerError::TooLong { bytes: request.len() }),
            Err(_) => Err(SignerError::Gone),
        }
    }

    /// The next reply within `wait`, if any.
    fn receive(&mut self, wait: Duration) -> Result<Option<Reply>, SignerError> {
        // Rounded up, so that less than a millisecond is no busy loop.
        let millis = u16::try_from(wait.as_millis() + 1).unwrap_or(u16::MAX);
        let mut polled = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, PollTimeout::from(millis)) {
            Ok(0) | Err(Errno::EINTR) => return Ok(None),
            Ok(_) => {}
            Err(_) => return Err(SignerError::Gone),
        }
        match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => Err(SignerError::Gone),
            Ok(length) => {
                let bytes = self.buffer.get_mut(..length).unwrap_or_default();
                let reply = Reply::decode(&*bytes).map_err(|_| SignerError::Unreadable);
                bytes.zeroize();
                reply.map(Some)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(_) => Err(SignerError::Gone),
        }
    }
}

fn judge(verb: Verb, answer: Option<Answer>) -> Result<Answer, SignerError> {
    match answer.ok_or(SignerError::Unreadable)? {
        Answer::Refused(Refused { why, message }) => Err(match Why::try_from(why) {
            Ok(Why::Busy) => SignerError::Busy { verb },
            Ok(Why::Locked) => SignerError::Locked,
            Ok(Why::Denied) => SignerError::Refused(message),
            Ok(Why::Unreadable) | Err(_) => SignerError::Unreadable,
        }),
        answer => Ok(answer),
    }
}

/// Nothing is left half done behind these locks: a socket's message is whole, what is held is set at once.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
