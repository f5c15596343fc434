//! Workload identity: who a workload is, it proves once; after that its SVID renews itself.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use federation_identity::{csr_key_digest, now};
use federation_model::{AccountRef, NamespaceName, SpiffeId, TokenId, TokenSecret};
use proto::workload::{EnrolRequest, Identity, RenewRequest, workload_identity_server::WorkloadIdentity};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::{EnrolledBy, IssuedSvid, Kind, Peer, Refusal, metrics, server::Shared, tokens::anothers_account};

/// Refused enrolments of one source per second after which more are refused unseen: guessing stays cheap for us.
const REFUSED_PER_SECOND_MAX: u32 = 64;
/// Most sources whose refusals are counted at once; beyond it all others count as one.
const SOURCES_MAX: usize = 1024;
/// What refusals are counted over.
const WINDOW: Duration = Duration::from_secs(1);

/// The service; mounted on both listeners.
#[derive(Clone)]
pub(crate) struct Service(pub(crate) Arc<Shared>);

#[tonic::async_trait]
impl WorkloadIdentity for Service {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<Identity>, Status> {
        let peer = Peer::of(&request)?;
        let kind = if matches!(peer, Peer::Local { .. }) { "uid" } else { "token" };
        let enrolled = self.0.enrol(&peer, request.into_inner()).await;
        metrics::svid(kind, enrolled.as_ref().map_or_else(|refusal| refusal.reason, |_| "ok"));
        if let Err(refusal) = &enrolled {
            tracing::info!(kind, reason = refusal.reason, "enrolment refused");
        }
        Ok(Response::new(enrolled?))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<Identity>, Status> {
        let peer = Peer::of(&request)?;
        let renewed = self.0.renew(&peer, &request.into_inner().csr).await;
        metrics::svid("renew", renewed.as_ref().map_or_else(|refusal| refusal.reason, |_| "ok"));
        Ok(Response::new(renewed?))
    }
}

impl Shared {
    async fn enrol(&self, peer: &Peer, request: EnrolRequest) -> Result<Identity, Refusal> {
        self.refusals.room(peer)?;
        let proved = self.attest(peer, &request).await;
        if let Err(refusal) = &proved
            && matches!(refusal.kind, Kind::NotProved | Kind::NotPermitted)
        {
            self.refusals.note(peer);
        }
        let (account, by) = proved?;
        let id = self.settings.trust_domain.account(&account);
        let identity = self.issue(&id, &request.csr, Some(by)).await?;
        tracing::info!(spiffe_id = %id, by = by.as_str(), "workload enrolled");
        Ok(identity)
    }

    /// Which account the peer proved to be.
    async fn attest(&self, peer: &Peer, request: &EnrolRequest) -> Result<(AccountRef, EnrolledBy), Refusal> {
        let claimed = claimed(request)?;
        match peer {
            Peer::Local { uid, .. } => {
                if !request.token_id.is_empty() || !request.token_secret.is_empty() {
                    let message =
                        "over the Unix socket the uid decides: give a token to the discovery listener instead";
                    return Err(Refusal::invalid("token_on_socket", message));
                }
                let account = self.account_of(*uid).ok_or_else(|| {
                    let message = format!(
                        "no [[workload]] of the gateway's config names uid {uid}: add one, or enrol with a token"
                    );
                    Refusal::new(Kind::NotPermitted, "unknown_uid", message)
                })?;
                match claimed {
                    Some(claimed) if claimed != account => Err(anothers_account(&claimed, &account)),
                    _ => Ok((account, EnrolledBy::Uid)),
                }
            }
            Peer::Remote { .. } => {
                let secret = request.token_secret.as_slice().try_into().map(TokenSecret);
                let (Ok(id), Ok(secret)) = (request.token_id.as_slice().try_into().map(TokenId), secret) else {
                    let message = "a workload token has an id of 16 bytes and a secret of 32: give what `hanse workload token` printed";
                    return Err(Refusal::invalid("token_malformed", message));
                };
                // Before the token is used up: a bad request must not cost it.
                let key = csr_key_digest(&request.csr)
                    .map_err(|error| Refusal::invalid(error.reason(), error.to_string()))?;
                self.ready()?;
                let account = self.tokens.redeem(id, &secret, key, claimed.as_ref(), now()).await?;
                Ok((account, EnrolledBy::Token))
            }
        }
    }

    async fn renew(&self, peer: &Peer, csr: &[u8]) -> Result<Identity, Refusal> {
        let (peer, _) = peer.workload(&self.settings.trust_domain, now())?;
        let snapshot = self.ready()?;
        self.not_revoked(peer, &snapshot)?;
        self.issue(peer.id(), csr, None).await
    }

    /// Signs an SVID for an identity that was proved.
    async fn issue(&self, id: &SpiffeId, csr: &[u8], by: Option<EnrolledBy>) -> Result<Identity, Refusal> {
        let snapshot = self.ready()?;
        let key = csr_key_digest(csr).map_err(|error| Refusal::invalid(error.reason(), error.to_string()))?;
        if snapshot.bundles.is_revoked(&snapshot.own_trust_domain, &key) {
            let message = format!(
                "the key of this request was revoked, and is certified no more: give {id} another one (a sidecar that \
                 enrolled with a token: a new token, and an empty state_dir)"
            );
            return Err(Refusal::new(Kind::NotPermitted, "key_revoked", message));
        }
        let issued = self.signer.sign_svid(id, csr, self.settings.svid_ttl, now())?;
        let member = snapshot.members.get(&snapshot.own).ok_or_else(Refusal::not_ready)?;
        let roots = match snapshot.bundles.get(&snapshot.own_trust_domain) {
            Some(bundle) => bundle.roots.clone(),
            None => vec![issued.root],
        };
        let svid = IssuedSvid {
            spiffe_id: id.clone(),
            serial: issued.serial.clone(),
            key,
            not_before: issued.not_before,
            not_after: issued.not_after,
        };
        self.issued.note(svid).await;
        self.registry.enrolled(id, by.or_else(|| self.known_as(id)), issued.not_after);
        Ok(Identity {
            chain: issued.chain,
            roots,
            spiffe_id: id.to_string(),
            not_before_ms: issued.not_before.as_millis(),
            not_after_ms: issued.not_after.as_millis(),
            cluster_name: snapshot.own_name.to_string(),
            cluster: snapshot.own.as_bytes().to_vec(),
            replication_key: member.replication_key.0.to_vec(),
            federation: snapshot.federation.as_bytes().to_vec(),
            mesh_endpoint: self.settings.mesh_endpoint.clone(),
            discovery_endpoint: self.settings.discovery_endpoint.clone(),
        })
    }

    /// How a workload enrolled whose enrolment is older than this process: by uid if the table has its account.
    pub(crate) fn known_as(&self, id: &SpiffeId) -> Option<EnrolledBy> {
        let workloads = self.workloads.borrow();
        let named = workloads.iter().any(|(_, account)| self.settings.trust_domain.account(account) == *id);
        let remembered = self.registry.remembers(id);
        match (remembered, named) {
            (true, _) => None,
            (false, true) => Some(EnrolledBy::Uid),
            (false, false) => Some(EnrolledBy::Token),
        }
    }

    fn account_of(&self, uid: u32) -> Option<AccountRef> {
        self.workloads.borrow().iter().find(|(known, _)| *known == uid).map(|(_, account)| account.clone())
    }
}

/// The account that the workload believes to be; `None` if it says nothing.
fn claimed(request: &EnrolRequest) -> Result<Option<AccountRef>, Refusal> {
    if request.account.is_empty() && request.namespace.is_empty() {
        return Ok(None);
    }
    let namespace = match request.namespace.as_str() {
        "" => NamespaceName::default(),
        text => text.parse()?,
    };
    Ok(Some(AccountRef { account: request.account.parse()?, namespace }))
}

/// Counts refused enrolments of each source, a second at a time. One who guesses does not keep others out.
#[derive(Default)]
pub(crate) struct Refusals(Mutex<BTreeMap<Source, (Instant, u32)>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Uid(u32),
    V4(Ipv4Addr),
    /// The first 64 bits: who has one address of a network has all of them.
    V6([u8; 8]),
    /// Whoever comes when there is no room to tell them apart.
    Other,
}

impl Source {
    fn of(peer: &Peer) -> Self {
        match peer {
            Peer::Local { uid, .. } => Self::Uid(*uid),
            Peer::Remote { address: IpAddr::V4(address), .. } => Self::V4(*address),
            Peer::Remote { address: IpAddr::V6(address), .. } => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

impl Refusals {
    /// Whether another may be tried now.
    fn room(&self, peer: &Peer) -> Result<(), Refusal> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let source = Source::of(peer);
        let counted =
            counts.get(&source).or_else(|| counts.get(&Source::Other).filter(|_| counts.len() >= SOURCES_MAX));
        match counted {
            Some((since, count)) if since.elapsed() < WINDOW && *count >= REFUSED_PER_SECOND_MAX => {
                let message = "too many enrolments were refused just now: try again in a second";
                Err(Refusal::new(Kind::NotReady, "too_many_refusals", message))
            }
            _ => Ok(()),
        }
    }

    fn note(&self, peer: &Peer) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut source = Source::of(peer);
        if !counts.contains_key(&source) && counts.len() >= SOURCES_MAX {
            counts.retain(|_, (since, _)| since.elapsed() < WINDOW);
            if counts.len() >= SOURCES_MAX {
                source = Source::Other;
            }
        }
        let (since, count) = counts.entry(source).or_insert_with(|| (Instant::now(), 0));
        if since.elapsed() >= WINDOW {
            (*since, *count) = (Instant::now(), 0);
        }
        *count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_guesses_is_slowed_and_keeps_nobody_else_out() {
        let refusals = Refusals::default();
        let remote = |address: &str| Peer::Remote { peer: None, address: address.parse().expect("address") };
        let guesser = remote("2001:db8::1");
        for _ in 0..REFUSED_PER_SECOND_MAX {
            refusals.room(&guesser).expect("room");
            refusals.note(&guesser);
        }
        assert_eq!(refusals.room(&guesser).expect_err("full").reason, "too_many_refusals");
        assert!(refusals.room(&remote("2001:db8::ffff")).is_err(), "another address of the same network");
        for other in [remote("2001:db8:0:1::1"), remote("10.0.0.1"), Peer::Local { uid: 0, operator: true }] {
            refusals.room(&other).expect("another source");
        }
        tokio::time::advance(WINDOW).await;
        refusals.room(&guesser).expect("a second later");
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_of_sources_stays_bounded() {
        let refusals = Refusals::default();
        for number in 0..10_000 {
            refusals.note(&Peer::Local { uid: number, operator: false });
        }
        assert!(refusals.0.lock().expect("lock").len() <= SOURCES_MAX + 1);
        assert!(refusals.room(&Peer::Local { uid: 20_000, operator: false }).is_err(), "a flood from everywhere");
        tokio::time::advance(WINDOW).await;
        refusals.room(&Peer::Local { uid: 20_000, operator: false }).expect("a second later");
    }

    #[test]
    fn a_claim_without_a_namespace_is_of_the_default_one() {
        let request = |account: &str, namespace: &str| EnrolRequest {
            account: account.into(),
            namespace: namespace.into(),
            ..EnrolRequest::default()
        };
        assert_eq!(claimed(&request("", "")).expect("none"), None);
        let shown = claimed(&request("web", "")).expect("web").map(|account| account.to_string());
        assert_eq!(shown.as_deref(), Some("web.default"));
        for (account, namespace) in [("Web", ""), ("", "shop"), ("web", "*"), ("web", "a.b")] {
            assert!(claimed(&request(account, namespace)).is_err(), "{account:?} {namespace:?}");
        }
    }
}
