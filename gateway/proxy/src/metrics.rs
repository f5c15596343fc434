//! Names of this room's metrics, and the one place that counts them. Labels come from closed sets only.

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use tokio::time::Instant;

use crate::connections::Direction;

/// Connections by `direction` (`outbound`, `inbound`, `passage`), `decision` (`permitted`, `denied`) and `reason`.
pub const CONNECTIONS_TOTAL: &str = "gateway_proxy_connections_total";
/// Connections in the registry, by `direction`.
pub const CONNECTIONS_LIVE: &str = "gateway_proxy_connections_live";
/// Live connections that were cut, by `direction` and `reason`.
pub const CUTS_TOTAL: &str = "gateway_proxy_cuts_total";
/// Bytes of ended connections, by `direction` and `way` (`to_server`, `to_client`).
pub const BYTES_TOTAL: &str = "gateway_proxy_bytes_total";
/// From accept to the decision, by `direction`.
pub const SETUP_SECONDS: &str = "gateway_proxy_setup_seconds";
/// Renewals by `side` (`client`, `server`, `passage`) and `result` (`moved`, `refused`, `failed`).
pub const RENEWALS_TOTAL: &str = "gateway_proxy_renewals_total";
/// Inbound connections that were dropped unheard because too many had not proved who they are.
pub const UNHEARD_TOTAL: &str = "gateway_proxy_unheard_total";
/// New connections that waited for a next hop to come back.
pub const HELD_TOTAL: &str = "gateway_proxy_held_total";

/// Tells the exporter what the figures mean. To be called once, after the recorder is installed.
pub fn describe() {
    describe_counter!(CONNECTIONS_TOTAL, Unit::Count, "Connections by direction, decision and reason.");
    describe_gauge!(CONNECTIONS_LIVE, Unit::Count, "Connections that are live or being set up.");
    describe_counter!(CUTS_TOTAL, Unit::Count, "Live connections that were cut, by reason.");
    describe_counter!(BYTES_TOTAL, Unit::Bytes, "Bytes carried by connections that have ended.");
    describe_histogram!(SETUP_SECONDS, Unit::Seconds, "Time from accept to the decision.");
    describe_counter!(RENEWALS_TOTAL, Unit::Count, "Renewals of live connections by side and result.");
    describe_counter!(UNHEARD_TOTAL, Unit::Count, "Connections dropped because too many were unproved.");
    describe_counter!(HELD_TOTAL, Unit::Count, "New connections that waited for a next hop to come back.");
}

pub(crate) fn decided(direction: Direction, decision: &'static str, reason: &'static str, since: Instant) {
    let direction = direction.as_str();
    counter!(CONNECTIONS_TOTAL, "direction" => direction, "decision" => decision, "reason" => reason).increment(1);
    histogram!(SETUP_SECONDS, "direction" => direction).record(since.elapsed().as_secs_f64());
}

pub(crate) fn live(direction: Direction, count: usize) {
    // A registry never holds more than fit a float exactly.
    gauge!(CONNECTIONS_LIVE, "direction" => direction.as_str()).set(count as f64);
}

pub(crate) fn cut(direction: Direction, reason: &'static str) {
    counter!(CUTS_TOTAL, "direction" => direction.as_str(), "reason" => reason).increment(1);
}

pub(crate) fn bytes(direction: Direction, to_server: u64, to_client: u64) {
    let direction = direction.as_str();
    counter!(BYTES_TOTAL, "direction" => direction, "way" => "to_server").increment(to_server);
    counter!(BYTES_TOTAL, "direction" => direction, "way" => "to_client").increment(to_client);
}

pub(crate) fn renewal(side: &'static str, result: &'static str, count: usize) {
    counter!(RENEWALS_TOTAL, "side" => side, "result" => result).increment(count as u64);
}

pub(crate) fn unheard() {
    counter!(UNHEARD_TOTAL).increment(1);
}

pub(crate) fn held() {
    counter!(HELD_TOTAL).increment(1);
}
