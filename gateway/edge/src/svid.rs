//! The edge's own SVID: issued by its own authority, renewed at half life.

use std::{sync::Arc, time::Duration};

use federation_identity::{IssueError, LiveSvid, Signer, Svid, SvidError, SvidKey, now, renewal_due};
use federation_model::SpiffeId;
use gateway_api::{Issued, IssuedSvid};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Wait after a renewal that failed. The authority is in this process, so it is a bad clock or a full memory.
const RETRY: Duration = Duration::from_secs(1);

/// Why the edge has no SVID.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OwnSvidError {
    #[error("the own authority did not issue: {0}")]
    Issue(#[from] IssueError),
    #[error("the own authority issued an SVID that is none: {0}")]
    Svid(#[from] SvidError),
}

/// Issues an SVID for this edge with a new key, notes it, and puts it in force.
pub(crate) async fn issue(
    signer: &dyn Signer,
    issued_here: &Issued,
    id: &SpiffeId,
    ttl: Duration,
    live: &LiveSvid,
) -> Result<(), OwnSvidError> {
    let key = SvidKey::generate();
    let issued = signer.sign_svid(id, &key.csr(), ttl, now())?;
    let noted = IssuedSvid {
        spiffe_id: id.clone(),
        serial: issued.serial.clone(),
        key: key.spki_digest(),
        not_before: issued.not_before,
        not_after: issued.not_after,
    };
    issued_here.note(noted).await;
    // With the root, so that one who wants to join can compare it with the pin in its token.
    live.set(Svid::assemble(key, issued.full_chain())?);
    Ok(())
}

/// Renews it until `stop`.
pub(crate) async fn keep(
    signer: Arc<dyn Signer>,
    issued: Issued,
    id: SpiffeId,
    ttl: Duration,
    live: LiveSvid,
    stop: CancellationToken,
) {
    loop {
        let pause = match live.get() {
            Some(svid) => renewal_due(svid.not_before(), svid.not_after(), rand::random()).since(now()),
            None => RETRY,
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(pause) => {}
        }
        match issue(signer.as_ref(), &issued, &id, ttl, &live).await {
            Ok(()) => tracing::debug!("the edge's SVID was renewed"),
            Err(error) => {
                tracing::error!(%error, "cannot renew the edge's SVID");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = sleep(RETRY) => {}
                }
            }
        }
    }
}
