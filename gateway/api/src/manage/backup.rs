//! Backups: a sealed copy of the store, handed to an operator piece by piece.

use std::pin::Pin;

use proto::manage as wire;
use tokio_stream::{Stream, StreamExt, once, wrappers::ReceiverStream};
use tonic::Status;

use crate::{Refusal, server::Shared};

/// The pieces of a backup on their way out.
pub(super) type Pieces = Pin<Box<dyn Stream<Item = Result<wire::BackupPiece, Status>> + Send>>;

impl Shared {
    pub(super) async fn create_backup(&self, author: String) -> Result<Pieces, Refusal> {
        let backup = self.system.backup().await?;
        tracing::info!(%author, rows = backup.summary.rows, "a backup is made");
        let summary = wire::BackupSummary {
            cluster: self.settings.cluster.to_string(),
            cluster_id: self.settings.cluster_id.to_string(),
            created_at_ms: backup.summary.created_at.as_millis(),
            rows: backup.summary.rows,
            bytes: backup.summary.bytes,
        };
        let first = wire::BackupPiece { summary: Some(summary), data: Vec::new() };
        let rest = ReceiverStream::new(backup.pieces).map(|piece| match piece {
            Ok(data) => Ok(wire::BackupPiece { summary: None, data }),
            Err(refusal) => Err(refusal.into()),
        });
        Ok(Box::pin(once(Ok(first)).chain(rest)))
    }
}
