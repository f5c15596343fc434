//! Every bound and timeout of the proxy, with its default.

use std::time::Duration;

pub(crate) use federation_identity::passthrough::HEADER_BYTES_MAX;

/// Longest ClientHello in bytes, TLS record headers included.
pub const HELLO_BYTES_MAX: usize = 16 * 1024;
/// Most live connections, pending ones included.
pub const CONNECTIONS_MAX: usize = 20_000;
/// Most inbound connections that have not yet proved who they are.
pub const HANDSHAKES_MAX: usize = 1_024;
/// Most renewal connections that are under way at once.
pub const RENEWALS_MAX: usize = 32;
/// Most connection ids that are remembered against replays.
pub const SEEN_MAX: usize = 1 << 18;

/// Most connections that wait until their next hop is back.
pub const HELD_MAX: usize = 4_096;
/// How long a connection may wait until its next hop is back: an edge or an instance that is replaced is away for less.
pub const HOLD: Duration = Duration::from_secs(10);

/// What a program may set. The defaults suit production; tests shorten them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most live connections, pending ones included. Default [`CONNECTIONS_MAX`]; the next one is refused as overloaded.
    pub connections: usize,
    /// Most inbound connections that have not yet proved who they are. Default [`HANDSHAKES_MAX`].
    pub handshakes: usize,
    /// From accept until header and ClientHello have come. Default 5 s.
    pub hello_timeout: Duration,
    /// For a TLS handshake and the client's frame behind it. Default 5 s, beginning after the hello.
    pub handshake_timeout: Duration,
    /// For one dial: to an application, an instance, an edge, or through a tunnel. Default 5 s.
    pub dial_timeout: Duration,
    /// From the end of the handshake until the server's frame has come; the destination dials its application in
    /// between, so longer than `dial_timeout`. Default 10 s.
    pub answer_timeout: Duration,
    /// How long a writer may take no byte while some wait for it. Default 5 min: an application that pauses its reader
    /// (a pager, a player) is common behind a sidecar, and each direction holds at most one buffer meanwhile.
    pub write_stall: Duration,
    /// How long a connection of which one direction has ended may stay silent in the other. Default 60 s.
    pub half_close: Duration,
    /// How long a new connection may wait for a next hop that went and is expected back, tries included. Default [`HOLD`].
    pub hold: Duration,
    /// Most connections that wait so. Default [`HELD_MAX`]; the next one is refused at once.
    pub held: usize,
    /// How long to wait, after a stream broke in its handshake, for an edge to say why. Default 300 ms.
    pub told_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: CONNECTIONS_MAX,
            handshakes: HANDSHAKES_MAX,
            hello_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(5),
            dial_timeout: Duration::from_secs(5),
            answer_timeout: Duration::from_secs(10),
            write_stall: Duration::from_secs(5 * 60),
            half_close: Duration::from_secs(60),
            hold: HOLD,
            held: HELD_MAX,
            told_grace: Duration::from_millis(300),
        }
    }
}
