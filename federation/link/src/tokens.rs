//! Join tokens that this cluster issued: their rows, their states, and the clock that they expire by.
//!
//! The row holds the key of the proof, sealed, and never the secret. While the token can still be redeemed or asked for
//! again the key stays; it is erased once the token expired or is void.

use std::{sync::atomic::Ordering, time::Duration};

use federation_identity::{join::ProofKey, now, stranger, token as random};
use federation_model::{
    BAD_PROOFS_MAX, ClusterId, ClusterName, Digest, JoinToken, TOKEN_TTL_MAX, TOKENS_OPEN_MAX, Timestamp, TokenId,
};
use federation_store::{Change, Expect, Key, Kind, Revision, StoreError};
use prost::Message;
use proto::{convert::join_token_text, store::IssuedToken};

use crate::{Shared, TokenIssueError, limits::TOKEN_SHOWN_AFTER_EXPIRY, registry::lock};

/// Binds a sealed proof key to its token.
const SEAL_PREFIX: &[u8] = b"hanse-join-token-v1\0";
/// Shortest life of a token that is any use.
const TTL_MIN: Duration = Duration::from_secs(1);
/// The highest time ever seen, so that a clock set back revives no token.
const CLOCK_NAME: &[u8] = b"link.clock";
/// How often the clock row is written and tokens are swept.
pub(crate) const SWEEP: Duration = Duration::from_secs(30);

/// Where a token is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenState {
    /// May be redeemed.
    Open,
    /// Redeemed by this cluster, which alone may ask again.
    Used(ClusterId),
    /// Void: five bad proofs, or somebody else than its joiner tried it.
    Burned,
    /// Too late.
    Expired,
}

impl TokenState {
    /// Short fixed word.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Used(_) => "used",
            Self::Burned => "burned",
            Self::Expired => "expired",
        }
    }
}

/// A token as lists show it; no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSummary {
    pub id: TokenId,
    pub joiner: ClusterName,
    pub lawmaker: bool,
    pub state: TokenState,
    pub issued_at: Timestamp,
    pub expires_at: Timestamp,
    /// Attempts that were refused, bad proofs included.
    pub refusals: u32,
}

/// A row as it was read.
pub(crate) struct Held {
    pub(crate) token: IssuedToken,
    pub(crate) id: TokenId,
    pub(crate) joiner: ClusterName,
    pub(crate) revision: Revision,
}

impl Held {
    pub(crate) fn expires_at(&self) -> Timestamp {
        Timestamp::from_millis(self.token.expires_at_ms)
    }

    pub(crate) fn used_by(&self) -> Option<ClusterId> {
        ClusterId::try_from(self.token.used_by.as_slice()).ok()
    }

    pub(crate) fn state(&self, now: Timestamp) -> TokenState {
        match self.used_by() {
            Some(cluster) => TokenState::Used(cluster),
            None if self.token.bad_proofs >= BAD_PROOFS_MAX => TokenState::Burned,
            None if now >= self.expires_at() => TokenState::Expired,
            None => TokenState::Open,
        }
    }

    /// Whether its proof key is still of use.
    fn answers(&self, now: Timestamp) -> bool {
        now < self.expires_at() && matches!(self.state(now), TokenState::Open | TokenState::Used(_))
    }

    pub(crate) fn summary(&self, now: Timestamp) -> TokenSummary {
        TokenSummary {
            id: self.id,
            joiner: self.joiner.clone(),
            lawmaker: self.token.lawmaker,
            state: self.state(now),
            issued_at: Timestamp::from_millis(self.token.issued_at_ms),
            expires_at: self.expires_at(),
            refusals: self.token.refusals,
        }
    }

    /// The key of the proof; `None` once it is erased.
    pub(crate) fn proof_key(&self, shared: &Shared) -> Option<ProofKey> {
        let clear = shared.seal.open(&aad(&self.id), &self.token.proof_key).ok()?;
        clear.as_slice().try_into().ok().map(ProofKey::from_bytes)
    }

    /// The row with what `change` makes of it, if nobody changed it since it was read.
    pub(crate) fn changed(&self, change: impl FnOnce(&mut IssuedToken)) -> Change {
        let mut token = self.token.clone();
        change(&mut token);
        Change::Put { key: key(&self.id), value: token.encode_to_vec(), expected: Expect::Is(self.revision) }
    }
}

fn key(id: &TokenId) -> Key {
    Key::new(Kind::JoinToken, id.0)
}

fn aad(id: &TokenId) -> Vec<u8> {
    [SEAL_PREFIX, id.0.as_slice()].concat()
}

pub(crate) fn read(name: &[u8], value: &[u8], revision: Revision) -> Option<Held> {
    let token = IssuedToken::decode(value).ok()?;
    let id = TokenId(name.try_into().ok()?);
    let joiner = token.joiner.parse().ok()?;
    Some(Held { token, id, joiner, revision })
}

/// Wall time, but never earlier than any time that was seen before, in this process or the one before it.
pub(crate) fn clock(shared: &Shared) -> Timestamp {
    let mut highest = lock(&shared.clock);
    *highest = (*highest).max(now());
    *highest
}

/// The time that the store remembers.
pub(crate) async fn remembered_clock(shared_store: &dyn federation_store::Store) -> Result<Timestamp, StoreError> {
    let row = shared_store.get(&Key::new(Kind::Local, CLOCK_NAME)).await?;
    let bytes = row.and_then(|row| <[u8; 8]>::try_from(row.value.as_slice()).ok());
    Ok(bytes.map_or(Timestamp::ZERO, |bytes| Timestamp::from_millis(u64::from_be_bytes(bytes))))
}

fn clock_row(at: Timestamp) -> Change {
    Change::put(Key::new(Kind::Local, CLOCK_NAME), at.as_millis().to_be_bytes())
}

/// One token.
pub(crate) async fn get(shared: &Shared, id: &TokenId) -> Result<Option<Held>, StoreError> {
    let row = shared.store.get(&key(id)).await?;
    Ok(row.and_then(|row| read(&row.key.name, &row.value, row.revision)))
}

/// Every token, newest first.
pub(crate) async fn all(shared: &Shared) -> Result<Vec<Held>, StoreError> {
    let rows = shared.store.list(Kind::JoinToken, &[]).await?;
    let mut tokens: Vec<Held> = rows.iter().filter_map(|row| read(&row.key.name, &row.value, row.revision)).collect();
    tokens.sort_by_key(|held| std::cmp::Reverse(held.token.issued_at_ms));
    Ok(tokens)
}

/// The pin of the root that this edge shows: SHA-256 of its public key.
///
/// # Errors
/// There is no SVID yet, or its chain does not show a root of this cluster's bundle.
pub(crate) fn own_pin(shared: &Shared) -> Result<Digest, String> {
    let svid = shared.live_svid.get().ok_or("this edge has no SVID yet")?;
    let own = stranger(svid.chain(), now()).map_err(|error| error.to_string())?;
    let snapshot = shared.snapshot.borrow();
    let bundle = snapshot.as_ref().and_then(|held| held.bundles.get(&shared.candidate.trust_domain));
    if !bundle.is_some_and(|bundle| bundle.roots.contains(&own.root_der)) {
        return Err("the edge's SVID shows a root that is not in this cluster's trust bundle".into());
    }
    Ok(own.root_pin)
}

/// Makes a token for `joiner`; the text holds the secret and is not kept.
pub(crate) async fn issue(
    shared: &Shared,
    joiner: ClusterName,
    ttl: Duration,
    lawmaker: bool,
) -> Result<(String, TokenSummary), TokenIssueError> {
    if joiner == shared.candidate.name {
        return Err(TokenIssueError::OwnCluster(joiner));
    }
    if !(TTL_MIN..=TOKEN_TTL_MAX).contains(&ttl) {
        return Err(TokenIssueError::Life(ttl));
    }
    let endpoints = shared.terms.endpoints.clone();
    if endpoints.is_empty() || shared.accepting.is_none() {
        return Err(TokenIssueError::NoEndpoint);
    }
    {
        let snapshot = shared.snapshot.borrow();
        let members = snapshot.as_ref().map(|snapshot| &snapshot.members);
        if members.is_some_and(|members| members.by_name(&joiner).is_some()) {
            return Err(TokenIssueError::MemberAlready(joiner));
        }
        if lawmaker && !members.and_then(|members| members.get(&shared.own)).is_some_and(|own| own.lawmaker) {
            return Err(TokenIssueError::NotLawmaker);
        }
    }
    let issuer_pin = own_pin(shared).map_err(TokenIssueError::Seal)?;
    // One at a time, so that the bound holds.
    let _issuing = shared.issuing.lock().await;
    let issued_at = clock(shared);
    let open = all(shared).await?.iter().filter(|held| held.state(issued_at) == TokenState::Open).count();
    if open >= TOKENS_OPEN_MAX {
        return Err(TokenIssueError::TooMany(open));
    }
    let (id, secret) = (random::token_id(), random::token_secret());
    let sealed = shared.seal.seal(&aad(&id), ProofKey::derive(&secret).as_bytes());
    let token = IssuedToken {
        id: id.0.to_vec(),
        joiner: joiner.to_string(),
        expires_at_ms: issued_at.after(ttl).as_millis(),
        lawmaker,
        proof_key: sealed.map_err(|error| TokenIssueError::Seal(error.to_string()))?,
        issued_at_ms: issued_at.as_millis(),
        ..IssuedToken::default()
    };
    let row = Change::put(key(&id), token.encode_to_vec()).expecting(Expect::Absent);
    let revision = shared.store.apply(vec![row, clock_row(issued_at)]).await?;
    shared.joins_open.store(true, Ordering::Release);
    let held = Held { token, id, joiner: joiner.clone(), revision };
    let text = join_token_text(&JoinToken {
        id,
        secret,
        issuer: shared.candidate.name.clone(),
        issuer_trust_domain: shared.candidate.trust_domain.clone(),
        issuer_pin,
        endpoints,
        joiner,
        expires_at: held.expires_at(),
    });
    tracing::info!(token = %id, joiner = %held.joiner, lawmaker, "join token issued");
    Ok((text, held.summary(issued_at)))
}

/// Erases keys that are of no more use, drops rows that were shown long enough, and closes the door to strangers once
/// no token is left that one could hold.
pub(crate) async fn sweep(shared: &Shared) -> Result<(), StoreError> {
    let _issuing = shared.issuing.lock().await;
    let now = clock(shared);
    let mut changes = vec![clock_row(now)];
    let mut awaited = false;
    for held in all(shared).await? {
        // A used token is answered, too: with a reason, until it expires.
        awaited |= now < held.expires_at();
        if now >= held.expires_at().after(TOKEN_SHOWN_AFTER_EXPIRY) {
            changes.push(Change::delete(key(&held.id)).expecting(Expect::Is(held.revision)));
        } else if !held.answers(now) && !held.token.proof_key.is_empty() {
            changes.push(held.changed(|token| token.proof_key.clear()));
        }
    }
    shared.joins_open.store(awaited, Ordering::Release);
    match shared.store.apply(changes).await {
        // Somebody was quicker; the next sweep sees what is left.
        Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
