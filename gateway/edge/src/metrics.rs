//! Names of this room's metrics; the exporter belongs to gateway/admin.

use ::metrics::{Unit, describe_counter, describe_gauge};

/// Age of each other member's data, by `cluster`.
pub(crate) const DATA_AGE: &str = "gateway_edge_data_age_seconds";
/// Since when nothing new is known of a member, by `cluster`: Unix time; 0 while it is heard.
pub(crate) const STATIC_SINCE: &str = "gateway_edge_static_since_timestamp_seconds";
/// What is left of the lease that ends first.
pub(crate) const LEASE_LEFT: &str = "gateway_edge_lease_left_seconds";
/// Services of others that are past their lease, by `policy`.
pub(crate) const SERVICES_STALE: &str = "gateway_edge_services_stale";
/// When the newest copy of the store in `backup.directory` was made, in seconds of Unix time: its age is now less that.
pub(crate) const BACKUP_TIMESTAMP_SECONDS: &str = "gateway_edge_backup_timestamp_seconds";
/// Copies of the store by the clock, by `outcome`: `done` or `failed`.
pub(crate) const BACKUPS_TOTAL: &str = "gateway_edge_backups_total";

/// Tells the exporter what each metric is.
pub(crate) fn describe() {
    describe_gauge!(DATA_AGE, Unit::Seconds, "Age of what is known of a member; absent while it was never heard");
    describe_gauge!(STATIC_SINCE, Unit::Seconds, "Unix time since which a member is silent; 0 while it is heard");
    describe_gauge!(LEASE_LEFT, Unit::Seconds, "What is left of the lease that ends first; 0 when one is over");
    describe_gauge!(SERVICES_STALE, Unit::Count, "Services of other members that are past their lease, by policy");
    describe_gauge!(
        BACKUP_TIMESTAMP_SECONDS,
        Unit::Seconds,
        "When the newest copy of the store was made, in Unix time"
    );
    describe_counter!(BACKUPS_TOTAL, Unit::Count, "Copies of the store by the clock, by outcome");
}
