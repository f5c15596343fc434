//! The names of what this room counts.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Queries answered, by `rcode` and `transport`.
pub const QUERIES: &str = "gateway_dns_queries_total";
/// Datagrams and connections dropped without an answer, by `reason`.
pub const DROPPED: &str = "gateway_dns_dropped_total";
/// Answers over UDP that were cut, so that the client asks again over TCP.
pub const TRUNCATED: &str = "gateway_dns_truncated_total";
/// Time to make an answer, from the last byte of the query to the first of the answer.
pub const ANSWER: &str = "gateway_dns_answer_seconds";
/// TCP connections open now.
pub const TCP_CONNECTIONS: &str = "gateway_dns_tcp_connections";

/// Gives every name its help text and unit. Call it once, after the exporter is installed.
pub fn describe() {
    describe_counter!(QUERIES, Unit::Count, "DNS queries answered, by rcode and transport.");
    describe_counter!(DROPPED, Unit::Count, "DNS datagrams and connections dropped without an answer, by reason.");
    describe_counter!(TRUNCATED, Unit::Count, "DNS answers cut over UDP, so that the client asks again over TCP.");
    describe_histogram!(ANSWER, Unit::Seconds, "Time to make a DNS answer.");
    describe_gauge!(TCP_CONNECTIONS, Unit::Count, "DNS connections over TCP that are open now.");
}
