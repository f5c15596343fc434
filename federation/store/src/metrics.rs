//! Names of this room's metrics; the exporter belongs to gateway/admin.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Rows held, by `kind`.
pub(crate) const ROWS: &str = "federation_store_rows";
/// Time from an apply's request to its being durable.
pub(crate) const APPLY_SECONDS: &str = "federation_store_apply_seconds";
/// Applies, by `outcome`: `done`, or the reason of the error.
pub(crate) const APPLIES_TOTAL: &str = "federation_store_applies_total";
/// Flushes to the disk: fewer than applies when several share one.
pub(crate) const FLUSHES_TOTAL: &str = "federation_store_flushes_total";
/// Size of the engine's file.
pub(crate) const BYTES: &str = "federation_store_bytes";
/// Things that are not as they were written; anything above 0 needs a person.
pub(crate) const DAMAGE: &str = "federation_store_damage";
/// Times that the engine had to be opened anew after a failure.
pub(crate) const REOPENS_TOTAL: &str = "federation_store_reopens_total";

/// Tells the exporter what each metric is; called once by programs.
pub fn describe() {
    describe_gauge!(ROWS, Unit::Count, "Rows held, by kind");
    describe_histogram!(APPLY_SECONDS, Unit::Seconds, "Time from an apply's request to its being durable");
    describe_counter!(APPLIES_TOTAL, Unit::Count, "Applies, by outcome");
    describe_counter!(FLUSHES_TOTAL, Unit::Count, "Flushes to the disk; several applies may share one");
    describe_gauge!(BYTES, Unit::Bytes, "Size of the store's file");
    describe_gauge!(DAMAGE, Unit::Count, "Things in the store that are not as they were written");
    describe_counter!(REOPENS_TOTAL, Unit::Count, "Times that the engine was opened anew after a failure");
}
