//! Names of this room's metrics; the exporter belongs to gateway/admin.

use metrics::{Unit, describe_counter, describe_gauge};

/// When the newest copy of the store in `backup.directory` was made, in seconds of Unix time: its age is now less that.
pub(crate) const BACKUP_TIMESTAMP_SECONDS: &str = "gateway_edge_backup_timestamp_seconds";
/// Copies of the store by the clock, by `outcome`: `done` or `failed`.
pub(crate) const BACKUPS_TOTAL: &str = "gateway_edge_backups_total";

/// Tells the exporter what each metric is.
pub(crate) fn describe() {
    describe_gauge!(
        BACKUP_TIMESTAMP_SECONDS,
        Unit::Seconds,
        "When the newest copy of the store was made, in Unix time"
    );
    describe_counter!(BACKUPS_TOTAL, Unit::Count, "Copies of the store by the clock, by outcome");
}
