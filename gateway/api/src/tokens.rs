//! Workload tokens: one use, one account, a short life. Redeemed by compare-and-swap in the store, before the answer.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use federation_identity::token::{secret_digest, secret_matches, token_id, token_secret};
use federation_model::{
    AccountRef, BAD_PROOFS_MAX, Digest, TOKEN_TTL_DEFAULT, TOKEN_TTL_MAX, Timestamp, TokenId, TokenSecret,
};
use federation_store::{Change, Expect, Key, Kind as Rows, Row, Store, StoreError};
use prost::Message;
use proto::store::IssuedWorkloadToken;

use crate::{Kind, Refusal};

/// Most workload tokens that may be open at once.
pub const WORKLOAD_TOKENS_OPEN_MAX: usize = 1000;
/// How long the row of an ended token is kept, so that whoever comes late learns why.
const KEPT: Duration = Duration::from_secs(60 * 60);
/// How often a redemption is tried when others change the same row at the same moment.
const TRIES_MAX: usize = 8;

/// The tokens that this cluster issued to its workloads.
pub(crate) struct Tokens {
    store: Arc<dyn Store>,
    /// Bad proofs of tokens that are there. At most one entry a row.
    bad_proofs: Mutex<BTreeMap<TokenId, u32>>,
}

/// A token, fresh.
pub(crate) struct Fresh {
    pub(crate) id: TokenId,
    pub(crate) secret: TokenSecret,
    pub(crate) expires_at: Timestamp,
}

/// What a guesser is told, whatever was wrong.
fn unknown() -> Refusal {
    let message = "the workload token is not valid here: ask for a new one with `hanse workload token`";
    Refusal::new(Kind::NotProved, "token_unknown", message)
}

/// The life of a token that was asked for in seconds; 0 is the default.
///
/// # Errors
/// Longer than a day.
pub(crate) fn life(ttl_seconds: u64) -> Result<Duration, Refusal> {
    match Duration::from_secs(ttl_seconds) {
        Duration::ZERO => Ok(TOKEN_TTL_DEFAULT),
        ttl if ttl > TOKEN_TTL_MAX => Err(Refusal::invalid(
            "ttl_too_long",
            format!("a token of {ttl_seconds} s: at most 24h (86400 s) is allowed"),
        )),
        ttl => Ok(ttl),
    }
}

impl Tokens {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, bad_proofs: Mutex::default() }
    }

    /// Issues a token for `account`.
    pub(crate) async fn issue(&self, account: &AccountRef, ttl: Duration, now: Timestamp) -> Result<Fresh, Refusal> {
        let rows = self.store.list(Rows::WorkloadToken, &[]).await.map_err(failed)?;
        let (mut open, mut changes) = (0, Vec::new());
        for row in rows {
            match IssuedWorkloadToken::decode(row.value.as_slice()) {
                Ok(token) if now < Timestamp::from_millis(token.expires_at_ms) => {
                    open += usize::from(token.used_by.is_empty());
                }
                Ok(token) if now < Timestamp::from_millis(token.expires_at_ms).after(KEPT) => {}
                // Ended long ago, or of no use to anybody.
                _ => changes.push(Change::delete(row.key).expecting(Expect::Is(row.revision))),
            }
        }
        if open >= WORKLOAD_TOKENS_OPEN_MAX {
            let message = format!("{open} workload tokens are open already: let some be used or end");
            return Err(Refusal::new(Kind::Exhausted, "too_many_tokens", message));
        }
        let fresh = Fresh { id: token_id(), secret: token_secret(), expires_at: now.after(ttl) };
        let value = IssuedWorkloadToken {
            id: fresh.id.0.to_vec(),
            account: account.account.to_string(),
            namespace: account.namespace.to_string(),
            expires_at_ms: fresh.expires_at.as_millis(),
            secret_digest: secret_digest(&fresh.secret).0.to_vec(),
            used_by: Vec::new(),
            issued_at_ms: now.as_millis(),
        };
        let put = Change::put(key(fresh.id), value.encode_to_vec()).expecting(Expect::Absent);
        // Sweeping must not fail the issue when another process swept at the same moment.
        let swept = changes.len();
        changes.push(put.clone());
        match self.store.apply(changes).await {
            Err(StoreError::Conflict { .. }) if swept > 0 => self.store.apply(vec![put]).await.map_err(failed)?,
            applied => applied.map_err(failed)?,
        };
        Ok(fresh)
    }

    /// Uses a token up for the key `used_by`. The same key may come again for as long as the token is remembered, and
    /// gets the same account. Durable when this returns.
    pub(crate) async fn redeem(
        &self,
        id: TokenId,
        secret: &TokenSecret,
        used_by: Digest,
        claimed: Option<&AccountRef>,
        now: Timestamp,
    ) -> Result<AccountRef, Refusal> {
        let key = key(id);
        for _ in 0..TRIES_MAX {
            let Some(row) = self.store.get(&key).await.map_err(failed)? else { return Err(unknown()) };
            let unreadable = || Refusal::internal("reading a workload token", &format!("row {key} is unreadable"));
            let mut token = IssuedWorkloadToken::decode(row.value.as_slice()).map_err(|_| unreadable())?;
            let digest = token.secret_digest.as_slice().try_into().map(Digest).map_err(|_| unreadable())?;
            if !secret_matches(secret, &digest) {
                self.bad_proof(id, &row).await;
                return Err(unknown());
            }
            let account = AccountRef {
                account: token.account.parse().map_err(|_| unreadable())?,
                namespace: token.namespace.parse().map_err(|_| unreadable())?,
            };
            let expires_at = Timestamp::from_millis(token.expires_at_ms);
            // Whoever used it may come again with the same key, even after its end: a workload whose SVID ended while
            // its edge was away has nothing else to show.
            let again = token.used_by.as_slice() == used_by.0;
            if now >= expires_at && !again {
                let ago = now.since(expires_at).as_secs();
                let message = format!(
                    "the workload token expired {ago} s ago: ask for a new one with `hanse workload token {account}`"
                );
                return Err(Refusal::new(Kind::NotProved, "token_expired", message));
            }
            if let Some(claimed) = claimed.filter(|claimed| **claimed != account) {
                return Err(anothers_account(claimed, &account));
            }
            if again {
                return Ok(account);
            }
            if !token.used_by.is_empty() {
                let message = format!(
                    "the workload token was used already, by another key: each works once; ask for a new one with \
                     `hanse workload token {account}`"
                );
                return Err(Refusal::new(Kind::NotProved, "token_used", message));
            }
            token.used_by = used_by.0.to_vec();
            let used = Change::put(key.clone(), token.encode_to_vec()).expecting(Expect::Is(row.revision));
            match self.store.apply(vec![used]).await {
                Ok(_) => {
                    self.bad_proofs.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                    return Ok(account);
                }
                // Another came first: look again, it may have been the same key.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Err(Refusal::new(Kind::NotReady, "busy", "too many enrol with this token at once: try again"))
    }

    /// After [`BAD_PROOFS_MAX`] of them the token is void.
    async fn bad_proof(&self, id: TokenId, row: &Row) {
        let void = {
            let mut counts = self.bad_proofs.lock().unwrap_or_else(PoisonError::into_inner);
            let count = counts.entry(id).or_default();
            *count += 1;
            let void = *count >= BAD_PROOFS_MAX;
            if void || counts.len() > 2 * WORKLOAD_TOKENS_OPEN_MAX {
                counts.remove(&id);
            }
            void
        };
        if void {
            tracing::warn!(token = %id, "workload token voided after bad proofs");
            let gone = Change::delete(row.key.clone()).expecting(Expect::Is(row.revision));
            if let Err(error) = self.store.apply(vec![gone]).await {
                tracing::warn!(token = %id, %error, "a workload token could not be voided");
            }
        }
    }
}

/// Whoever claims an account that its proof does not give.
pub(crate) fn anothers_account(claimed: &AccountRef, proved: &AccountRef) -> Refusal {
    let message = format!(
        "the workload claims another's account: it says {claimed}, its proof is for {proved}; correct the sidecar's \
         config, or ask for `hanse workload token {claimed}`"
    );
    Refusal::new(Kind::NotPermitted, "anothers_account", message)
}

fn key(id: TokenId) -> Key {
    Key::new(Rows::WorkloadToken, id.0)
}

fn failed(error: StoreError) -> Refusal {
    Refusal::internal("the store", &error)
}
