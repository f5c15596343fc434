//! Names and units of what this room counts. Labels come from closed sets: a direction, an outcome, a reason word.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

pub(crate) const SESSIONS: &str = "federation_link_sessions";
pub(crate) const SESSIONS_CLOSED: &str = "federation_link_sessions_closed_total";
pub(crate) const DIALS: &str = "federation_link_dials_total";
pub(crate) const REFUSALS: &str = "federation_link_refusals_total";
pub(crate) const RTT: &str = "federation_link_rtt_seconds";
pub(crate) const TUNNELS: &str = "federation_link_tunnels";
pub(crate) const TUNNELS_OPENED: &str = "federation_link_tunnels_opened_total";
pub(crate) const RECORDS_RECEIVED: &str = "federation_link_records_received_total";
pub(crate) const JOINS: &str = "federation_link_joins_total";
pub(crate) const DROPPED: &str = "federation_link_dropped_total";
pub(crate) const WRITE_SECONDS: &str = "federation_link_write_seconds";
pub(crate) const RENEWALS: &str = "federation_link_renewals_total";

/// Tells the recorder, if there is one, what each name means.
pub(crate) fn describe() {
    describe_gauge!(SESSIONS, Unit::Count, "Sessions with members that are open");
    describe_counter!(SESSIONS_CLOSED, Unit::Count, "Sessions that ended, by reason");
    describe_counter!(DIALS, Unit::Count, "Attempts to dial a member, by outcome");
    describe_counter!(REFUSALS, Unit::Count, "Peers that were refused, by reason");
    describe_histogram!(RTT, Unit::Seconds, "Round trip of heartbeats");
    describe_gauge!(TUNNELS, Unit::Count, "Tunnels that are open");
    describe_counter!(TUNNELS_OPENED, Unit::Count, "Tunnels that were opened, by direction");
    describe_counter!(RECORDS_RECEIVED, Unit::Count, "Records that came from members, by outcome");
    describe_counter!(JOINS, Unit::Count, "Join requests that were judged here, by outcome");
    describe_counter!(DROPPED, Unit::Count, "Things dropped because a queue was full, by queue");
    describe_histogram!(WRITE_SECONDS, Unit::Seconds, "Time until a batch of records was durable");
    describe_counter!(RENEWALS, Unit::Count, "Sessions whose deadline a successor moved");
}
