//! What a rotation stands on: the federation, as far as it needs it.

use federation_link::{Link, WriteError};
use federation_model::{Audience, Body, Enforcement, RecordId, TrustBundle};
use gateway_api::BoxFuture;
use tokio::sync::watch;

/// This cluster's trust bundle in the federation, and who knows it.
pub(crate) trait Ground: Send + Sync + 'static {
    /// This cluster's bundle in force; none before the first snapshot.
    fn bundle(&self) -> Option<TrustBundle>;

    /// The record that holds it, as far as records are known.
    fn record(&self) -> Option<RecordId>;

    /// Writes a bundle. It is durable and in force here when this returns.
    fn publish(&self, bundle: TrustBundle, author: String) -> BoxFuture<'_, Result<RecordId, WriteError>>;

    /// Which active members enforce a record, and which have not said so.
    fn enforcement(&self, record: &RecordId) -> Enforcement;

    /// Ticks whenever a member says anew what it enforces.
    fn receipts(&self) -> watch::Receiver<u64>;
}

impl Ground for Link {
    fn bundle(&self) -> Option<TrustBundle> {
        let snapshot = self.snapshot().borrow().clone()?;
        snapshot.bundles.get(&snapshot.own_trust_domain).cloned()
    }

    fn record(&self) -> Option<RecordId> {
        let held = Ground::bundle(self)?;
        let records = self.records().borrow().clone();
        let ours = |body: &Body| matches!(body, Body::Bundle(bundle) if *bundle == held);
        let found = records.iter().rev().find(|one| one.value().writer == self.own() && ours(&one.value().body))?;
        Some(found.id())
    }

    fn publish(&self, bundle: TrustBundle, author: String) -> BoxFuture<'_, Result<RecordId, WriteError>> {
        Box::pin(async move { self.write(Audience::Law, Body::Bundle(bundle), author).await })
    }

    fn enforcement(&self, record: &RecordId) -> Enforcement {
        Link::enforcement(self, record)
    }

    fn receipts(&self) -> watch::Receiver<u64> {
        Link::receipts(self)
    }
}
