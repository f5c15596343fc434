//! Every bound and every timeout of the room, each with its reason.
//!
//! What an operator may have a reason to change is in [`Limits`]; the rest are constants beside the code that they bind.

use std::time::Duration;

/// Bounds and timeouts of sessions, tunnels and joins. The default is what `docs/protocol.md` promises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Time between heartbeats of a session, each way.
    ///
    /// Default 1 s. Three missed ones, with no packet in between, end the session.
    pub heartbeat: Duration,
    /// Longest silence on the QUIC connection before it is given up.
    ///
    /// Default 15 s, at least three times `keep_alive`. The peer's own limit applies if smaller (RFC 9000, 10.1).
    pub idle: Duration,
    /// Time after which a silent connection sends a packet to keep NAT bindings. Default 2 s.
    pub keep_alive: Duration,
    /// Longest time for one handshake, and again for one greeting, one first frame of a stream, one name lookup.
    ///
    /// Default 5 s.
    pub handshake: Duration,
    /// Most tunnels that a peer may have open on one session. Default 16,384. Before its `Hello` was answered a peer
    /// has 64 streams, whatever this says.
    pub tunnels_max: u32,
    /// Bytes that a peer may send on one stream before we read. Default 256 KiB.
    pub stream_window: u32,
    /// Bytes that a peer may send on one connection before we read. Default 4 MiB.
    pub connection_window: u32,
    /// Bytes that we keep for one connection until they are acknowledged. Default 4 MiB.
    pub send_window: u64,
    /// Most connections that were not accepted yet. Default 1,024; beyond it they are refused.
    pub incoming_max: usize,
    /// Handshakes under way above which an address must prove itself by a Retry (RFC 9000, 8.1.2). Default 256.
    pub retry_above: usize,
    /// Most handshakes under way from one address. Default 16.
    pub pending_per_address_max: usize,
    /// Join requests judged at the same time. Default 64; beyond it a joiner is told to come again.
    pub joins_max: usize,
    /// Join requests judged per second, over all addresses. Default 100.
    pub joins_per_second: u32,
    /// First pause after a failed dial; doubles with each failure, with jitter. Default 100 ms.
    pub backoff_min: Duration,
    /// Longest pause between dials. Default 1.5 s, for up to 64 members; in proportion for more.
    ///
    /// With [`Limits::dial`] it bounds how late a link is found to be whole again: both ends dial, so within some 4 s.
    pub backoff_max: Duration,
    /// Longest time for one dial of a member. Default 3 s: one that began before a cut ended waits for QUIC's own pauses,
    /// which double.
    pub dial: Duration,
    /// Time between comparisons of heads with every connected member, besides the push of each change. Default 30 s.
    pub anti_entropy: Duration,
    /// How long a session that was replaced and has no tunnel is kept, for tunnels that were on their way. Default 5 s.
    pub retired_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(1),
            idle: Duration::from_secs(15),
            keep_alive: Duration::from_secs(2),
            handshake: Duration::from_secs(5),
            tunnels_max: 16_384,
            stream_window: 256 * 1024,
            connection_window: 4 * 1024 * 1024,
            send_window: 4 * 1024 * 1024,
            incoming_max: 1_024,
            retry_above: 256,
            pending_per_address_max: 16,
            joins_max: 64,
            joins_per_second: 100,
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_millis(1_500),
            dial: Duration::from_secs(3),
            anti_entropy: Duration::from_secs(30),
            retired_grace: Duration::from_secs(5),
        }
    }
}

/// Heartbeats that may go unanswered, with no packet coming at all, before a session counts as dead.
pub(crate) const HEARTBEATS_MISSED_MAX: u32 = 3;
/// Longest time without an answered heartbeat even though packets come: a peer that only acknowledges is of no use.
pub(crate) const HEARTBEAT_STALL_MAX: Duration = Duration::from_secs(30);
/// Longest time for one frame to be taken by the transport before the session counts as stuck.
pub(crate) const WRITE_STALL_MAX: Duration = Duration::from_secs(30);
/// Streams that a peer may have before its `Hello` was answered.
pub(crate) const STREAMS_BEFORE_HELLO: u32 = 64;
/// Streams of a session besides its tunnels: control and replication.
pub(crate) const STREAMS_BESIDES: u32 = 2;
/// Tunnels that a peer may open at first; more as it uses half of them, up to [`Limits::tunnels_max`]. QUIC keeps some 80
/// bytes for each stream that might be opened, which is a megabyte for each link that might have 16,384.
pub(crate) const TUNNELS_FIRST: u32 = 62;
/// Streams of a joiner: one.
pub(crate) const STREAMS_OF_JOINER: u32 = 1;
/// Largest difference of clocks at which a join is accepted, either way.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(5 * 60);
/// Difference of clocks on a session that is worth a warning.
pub(crate) const CLOCK_SKEW_ALARM: Duration = Duration::from_secs(60);
/// Most exporter values in one `Hello`: sessions that one successor may stand for.
pub(crate) const RENEWS_MAX: usize = 64;
/// Most live sessions with one member; the oldest goes when one more comes. Renewal keeps at most [`RENEWS_MAX`] anyway.
pub(crate) const SESSIONS_PER_MEMBER_MAX: usize = 128;
/// Addresses of one endpoint name that are tried.
pub(crate) const ADDRESSES_MAX: usize = 8;
/// Frames waiting for one control stream; a session whose queue is full drops notices, never heartbeats' answers.
pub(crate) const CONTROL_QUEUE: usize = 1_024;
/// Most receipts in one frame, and most bytes of them; a single longer one goes alone.
pub(crate) const RECEIPTS_MAX: usize = 256;
pub(crate) const RECEIPTS_BYTES_MAX: usize = 16 * 1024;
/// Messages waiting for one replication stream; a session whose queue is full is closed and starts over from vectors.
pub(crate) const REPLICATION_QUEUE: usize = 4_096;
/// Commands waiting for the driver, a megabyte each at most; those who send wait.
pub(crate) const DRIVER_QUEUE: usize = 64;
/// Longest time that receipts wait for room among them.
pub(crate) const RECEIPTS_WAIT_MAX: Duration = Duration::from_secs(10);
/// Commands that the driver joins into one durable write.
pub(crate) const DRIVER_BATCH: usize = 64;
/// Tunnels waiting to be taken by the edge; further ones are reset as overloaded.
pub(crate) const TUNNELS_QUEUE: usize = 1_024;
/// Events waiting to be taken by the edge; further ones are dropped and counted.
pub(crate) const EVENTS_QUEUE: usize = 4_096;
/// First frames of streams being read at the same time on one session.
pub(crate) const OPENINGS_MAX: usize = 64;
/// Bytes of incoming packets kept for one connection that was not accepted yet, and for all of them.
pub(crate) const INCOMING_BUFFER: u64 = 64 * 1024;
pub(crate) const INCOMING_BUFFER_TOTAL: u64 = 16 * 1024 * 1024;
/// Most envelopes that an issuer may send to a joiner.
pub(crate) const JOIN_ENVELOPES_MAX: u32 = 200_000;
/// Most bytes of envelopes that an issuer may send to a joiner.
pub(crate) const JOIN_RECORDS_BYTES_MAX: usize = 192 * 1024 * 1024;
/// Longest time for a whole join on the issuer's side, answer included.
pub(crate) const JOIN_TIME_MAX: Duration = Duration::from_secs(60);
/// How long a token row is shown after the token expired.
pub(crate) const TOKEN_SHOWN_AFTER_EXPIRY: Duration = Duration::from_secs(24 * 60 * 60);
/// Most members that may be blocked at the same time.
pub(crate) const BLOCKED_MAX: usize = 4_096;
/// Longest time that a shutdown waits for peers to hear of it.
pub(crate) const SHUTDOWN_MAX: Duration = Duration::from_secs(3);
