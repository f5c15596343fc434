//! The signer's side: requests in, answers out, one after another.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

use federation_model::{ClusterName, Digest, TrustDomain};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv, send},
};
use prost::Message;
use zeroize::{Zeroize, Zeroizing};

use super::{
    MESSAGE_BYTES_MAX, Verb, keys, monotonic,
    wire::{Answer, Ask, Derived, Made, Nothing, Request, Why},
};
use crate::{LocalSigner, Signer, now, seal::Kek};

/// From the key-encryption key: what makes the MACs of the store's rows.
const STORE_MAC: &str = "hanse-store-mac-v1";
/// From the key-encryption key: what seals the proof keys of join tokens.
const TOKEN_SEAL: &str = "hanse-token-seal-v1";

/// From the key-encryption key: what seals backups.
const BACKUP: &str = "hanse-backup-v1";

/// Holds a cluster's keys and answers for them.
pub struct Server {
    kek: Kek,
    domain: TrustDomain,
    name: ClusterName,
    /// None until an edge had keys made or opened.
    signer: Option<LocalSigner>,
    rates: [Rate; Verb::ALL.len()],
}

impl Server {
    /// A signer for this cluster alone, without keys as yet.
    pub fn new(kek: Kek, domain: TrustDomain, name: ClusterName) -> Self {
        Self { kek, domain, name, signer: None, rates: Verb::ALL.map(Rate::of) }
    }

    /// Answers until the other side is gone.
    ///
    /// # Errors
    /// The socket fails otherwise.
    pub fn serve(mut self, channel: BorrowedFd<'_>) -> io::Result<()> {
        let mut buffer = Zeroizing::new(vec![0; MESSAGE_BYTES_MAX]);
        loop {
            // With MSG_TRUNC the length is that of the message, not of what fitted.
            let length = match recv(channel.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC) {
                Ok(0) | Err(Errno::ECONNRESET) => return Ok(()),
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let reply = match buffer.get(..length) {
                Some(request) => self.answer(request, monotonic()),
                None => {
                    Answer::refused(Why::Unreadable, format!("a request of {length} bytes is too long")).into_reply(0)
                }
            };
            match send(channel.as_raw_fd(), &reply, MsgFlags::MSG_NOSIGNAL) {
                // Who asked may be gone; the next one may ask over the same socket.
                Ok(_) | Err(Errno::EINTR | Errno::EMSGSIZE) => {}
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The answer to one request that came `at`.
    pub(super) fn answer(&mut self, request: &[u8], at: Duration) -> Zeroizing<Vec<u8>> {
        let Ok(Request { id, ask }) = Request::decode(request) else {
            return Answer::refused(Why::Unreadable, "not a request").into_reply(0);
        };
        let Some(ask) = ask else {
            return Answer::refused(Why::Unreadable, "a verb that this version does not know").into_reply(id);
        };
        let verb = ask.verb();
        let admitted = Verb::ALL.iter().zip(&mut self.rates).any(|(of, rate)| *of == verb && rate.admits(at));
        if !admitted {
            return Answer::refused(Why::Busy, "").into_reply(id);
        }
        self.act(ask).unwrap_or_else(|refusal| refusal).into_reply(id)
    }

    /// What is asked, or the refusal.
    fn act(&mut self, ask: Ask) -> Result<Answer, Answer> {
        match ask {
            Ask::Ping(_) => Ok(Answer::Pong(Nothing {})),
            Ask::Start(_) => Ok(Answer::Started(Derived {
                store_mac: self.kek.derive(STORE_MAC).to_vec(),
                token_seal: self.kek.derive(TOKEN_SEAL).to_vec(),
                backup: self.kek.derive(BACKUP).to_vec(),
            })),
            Ask::Make(_) => {
                let (signer, keys) = LocalSigner::generate(&self.domain, &self.name, now()).map_err(denied)?;
                let sealed = keys::seal(&self.kek, &keys).map_err(denied)?;
                let public = Some(Box::new(signer.authority().into()));
                self.signer = Some(signer);
                Ok(Answer::Made(Made { sealed, public }))
            }
            Ask::Open(sealed) => {
                let keys = keys::open(&self.kek, &sealed).map_err(denied)?;
                let signer = LocalSigner::from_keys(&self.domain, &self.name, keys).map_err(denied)?;
                let public = Box::new(signer.authority().into());
                self.signer = Some(signer);
                Ok(Answer::Opened(public))
            }
            Ask::Rotate(request) => {
                let step = request.step().known();
                let step = step.ok_or_else(|| Answer::refused(Why::Unreadable, "no step of this version"))?;
                let keys = keys::open(&self.kek, &request.sealed).map_err(denied)?;
                let keys = keys.step(step, &self.domain, &self.name, now()).map_err(denied)?;
                let sealed = keys::seal(&self.kek, &keys).map_err(denied)?;
                let signer = LocalSigner::from_keys(&self.domain, &self.name, keys).map_err(denied)?;
                Ok(Answer::Made(Made { sealed, public: Some(Box::new(signer.authority().into())) }))
            }
            Ask::SignSvid(request) => {
                let id = request.spiffe_id.parse().map_err(denied)?;
                let ttl = Duration::from_millis(request.ttl_ms);
                // By this process's own clock: an edge cannot have SVIDs made for a time to come.
                let issued = self.held()?.sign_svid(&id, &request.csr, ttl, now()).map_err(denied)?;
                Ok(Answer::Svid(issued.into()))
            }
            Ask::SignRecord(record) => {
                let signature = self.held()?.sign_record(&record).map_err(denied)?;
                Ok(Answer::Signature(signature.to_vec()))
            }
            Ask::SignReceipt(receipt) => {
                let signature = self.held()?.sign_receipt(&receipt).map_err(denied)?;
                Ok(Answer::Signature(signature.to_vec()))
            }
            Ask::SignBackup(digest) => {
                let digest = digest.try_into().map(Digest).map_err(|_| denied("a backup's digest has 32 bytes"))?;
                let signature = self.held()?.sign_backup(&digest).map_err(denied)?;
                Ok(Answer::Signature(signature.to_vec()))
            }
            Ask::Unseal(request) => {
                let mut value = self.held()?.unseal(&request.aad, &request.sealed).map_err(denied)?;
                let answer = Answer::Value(value.to_vec());
                value.zeroize();
                Ok(answer)
            }
        }
    }

    fn held(&self) -> Result<&LocalSigner, Answer> {
        self.signer.as_ref().ok_or_else(|| Answer::refused(Why::Locked, ""))
    }
}

fn denied(error: impl std::fmt::Display) -> Answer {
    Answer::refused(Why::Denied, error.to_string())
}

/// How often a verb is answered: the time that its answers so far have used up (GCRA, ITU-T I.371).
struct Rate {
    every: Duration,
    /// How far ahead of the clock that time may run.
    ahead: Duration,
    used_until: Duration,
}

impl Rate {
    fn of(verb: Verb) -> Self {
        let every = Duration::from_secs(1) / verb.per_second();
        Self { every, ahead: every * (verb.burst() - 1), used_until: Duration::ZERO }
    }

    fn admits(&mut self, at: Duration) -> bool {
        let from = self.used_until.max(at);
        if from - at > self.ahead {
            return false;
        }
        self.used_until = from + self.every;
        true
    }
}
