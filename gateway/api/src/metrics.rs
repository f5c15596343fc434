//! Figures of this room.

use metrics::{counter, describe_counter, describe_gauge, gauge};

/// Handshakes on the discovery listener, by `result`: ok, failed, timeout, certificate.
pub const HANDSHAKES: &str = "gateway_api_handshakes_total";
/// Enrolments and renewals, by `kind` (token, uid, renew) and `result` (ok, or a refusal's word).
pub const SVIDS: &str = "gateway_api_svids_total";
/// Sidecars whose feed is open.
pub const FEEDS: &str = "gateway_api_feeds";

/// Gives every figure its text and unit.
pub fn describe() {
    describe_counter!(HANDSHAKES, "TLS handshakes on the discovery listener, by result.");
    describe_counter!(SVIDS, "SVIDs that workloads asked for, by kind of proof and result.");
    describe_gauge!(FEEDS, "Sidecars whose feed is open.");
}

pub(crate) fn handshake(result: &'static str) {
    counter!(HANDSHAKES, "result" => result).increment(1);
}

pub(crate) fn svid(kind: &'static str, result: &'static str) {
    counter!(SVIDS, "kind" => kind, "result" => result).increment(1);
}

pub(crate) fn feeds(open: usize) {
    #[expect(clippy::cast_precision_loss, reason = "at most 4096")]
    gauge!(FEEDS).set(open as f64);
}
