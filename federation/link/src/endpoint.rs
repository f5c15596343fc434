//! The QUIC endpoints: one that accepts, if this cluster accepts, and one that only dials.
//!
//! Two sockets, so that an edge that accepts nothing inbound has none that could, and so that a dial works from the
//! address family of its target, whatever address the other socket listens on.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use quinn::{
    ClientConfig, EndpointConfig, IdleTimeout, ServerConfig, TransportConfig, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    Limits, LinkError,
    limits::{INCOMING_BUFFER, INCOMING_BUFFER_TOTAL, STREAMS_BEFORE_HELLO},
};

/// ALPN of sessions between members.
pub(crate) const ALPN_SESSION: &[u8] = b"hanse-fed/1";
/// ALPN of joining.
pub(crate) const ALPN_JOIN: &[u8] = b"hanse-join/1";
/// What stands in the SNI of a dial: who is meant is said by the identity that is demanded, not by a name in clear.
pub(crate) const SERVER_NAME: &str = "hanse";

/// Codes of `CONNECTION_CLOSE` and `RESET_STREAM`; the reason word travels beside the code.
pub(crate) mod code {
    use quinn::VarInt;
    pub(crate) const SHUTDOWN: VarInt = VarInt::from_u32(0);
    pub(crate) const REFUSED: VarInt = VarInt::from_u32(1);
    pub(crate) const PROTOCOL: VarInt = VarInt::from_u32(2);
    pub(crate) const REPLACED: VarInt = VarInt::from_u32(3);
    pub(crate) const EXPIRED: VarInt = VarInt::from_u32(4);
    pub(crate) const DEAD: VarInt = VarInt::from_u32(5);
    pub(crate) const REMOVED: VarInt = VarInt::from_u32(6);
    pub(crate) const DONE: VarInt = VarInt::from_u32(7);
    pub(crate) const OVERLOADED: VarInt = VarInt::from_u32(8);
    pub(crate) const ABORTED: VarInt = VarInt::from_u32(9);
    pub(crate) const PROBE: VarInt = VarInt::from_u32(10);
}

/// Transport settings of both sides: quinn's own defaults let one peer pin hundreds of megabytes (`docs/threats.md`).
pub(crate) fn transport(limits: &Limits) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_BEFORE_HELLO))
        // No protocol of ours opens one.
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(limits.stream_window))
        .receive_window(VarInt::from_u32(limits.connection_window))
        .send_window(limits.send_window)
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(limits.keep_alive))
        .max_idle_timeout(IdleTimeout::try_from(limits.idle).ok())
        .allow_spin(false);
    Arc::new(config)
}

/// Quinn's settings for dialling with `tls`, which identity made.
pub(crate) fn client_config(
    tls: Arc<rustls::ClientConfig>,
    transport: Arc<TransportConfig>,
) -> Result<ClientConfig, String> {
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| error.to_string())?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport);
    Ok(config)
}

/// Quinn's settings for accepting with `tls`, which identity made.
fn server_config(
    tls: Arc<rustls::ServerConfig>,
    transport: Arc<TransportConfig>,
    limits: &Limits,
) -> Result<ServerConfig, String> {
    let crypto = QuicServerConfig::try_from(tls).map_err(|error| error.to_string())?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(transport)
        // An edge does not change its address within a session; a path probe is only a lever for others.
        .migration(false)
        .max_incoming(limits.incoming_max)
        .incoming_buffer_size(INCOMING_BUFFER)
        .incoming_buffer_size_total(INCOMING_BUFFER_TOTAL);
    Ok(config)
}

/// The endpoint that accepts sessions and joins at `address`.
pub(crate) fn listening(
    address: SocketAddr,
    tls: Arc<rustls::ServerConfig>,
    transport: Arc<TransportConfig>,
    limits: &Limits,
) -> Result<quinn::Endpoint, LinkError> {
    let config = server_config(tls, transport, limits).map_err(LinkError::Tls)?;
    let bound = bind(address).and_then(|socket| endpoint(socket, Some(config)));
    bound.map_err(|source| LinkError::Bind { address, source })
}

/// The endpoint that dials and answers nobody. Dual stack where the host has IPv6.
pub(crate) fn dialling() -> Result<quinn::Endpoint, LinkError> {
    let six = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let four = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let bound = bind(six).or_else(|_| bind(four)).and_then(|socket| endpoint(socket, None));
    bound.map_err(|source| LinkError::Bind { address: six, source })
}

/// One that dials from `source`.
#[cfg(any(test, feature = "crowd"))]
pub(crate) fn dialling_from(source: SocketAddr) -> Result<quinn::Endpoint, LinkError> {
    let bound = bind(source).and_then(|socket| endpoint(socket, None));
    bound.map_err(|error| LinkError::Bind { address: source, source: error })
}

fn endpoint(socket: std::net::UdpSocket, server: Option<ServerConfig>) -> std::io::Result<quinn::Endpoint> {
    quinn::Endpoint::new(EndpointConfig::default(), server, socket, Arc::new(quinn::TokioRuntime))
}

/// A UDP socket at `address`; one at `[::]` takes IPv4 as well.
fn bind(address: SocketAddr) -> std::io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if let SocketAddr::V6(six) = address
        && six.ip().is_unspecified()
    {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Whether a member may be dialled at `address`: a peer's own word must not aim us at everyone or at nothing.
pub(crate) fn may_dial(address: &SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    let broadcast = matches!(ip, std::net::IpAddr::V4(four) if four.is_broadcast());
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !broadcast
}

/// The protocol that a handshake agreed on.
pub(crate) fn alpn(connection: &quinn::Connection) -> Option<Vec<u8>> {
    let data = connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?;
    data.protocol
}

/// The chain that the peer presented, leaf first.
pub(crate) fn peer_chain(connection: &quinn::Connection) -> Vec<rustls::pki_types::CertificateDer<'static>> {
    let identity = connection.peer_identity();
    identity.and_then(|any| any.downcast::<Vec<_>>().ok()).map(|chain| *chain).unwrap_or_default()
}

/// 32 bytes that only the two ends of this very connection know (RFC 8446, 7.5).
pub(crate) fn exporter(connection: &quinn::Connection, label: &[u8]) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    connection.export_keying_material(&mut out, label, &[]).ok().map(|()| out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_cannot_aim_a_dial_at_everyone_or_nothing() {
        for bad in ["0.0.0.0:7", "[::]:7", "224.0.0.1:7", "[ff02::1]:7", "255.255.255.255:7", "10.0.0.1:0"] {
            assert!(!may_dial(&bad.parse().expect(bad)), "{bad}");
        }
        for bad in ["[::ffff:0.0.0.0]:7", "[::ffff:255.255.255.255]:7"] {
            assert!(!may_dial(&bad.parse().expect(bad)), "{bad}");
        }
        for good in ["127.0.0.1:7", "[::1]:7", "10.1.2.3:7443"] {
            assert!(may_dial(&good.parse().expect(good)), "{good}");
        }
    }

    #[tokio::test]
    async fn a_dialling_endpoint_takes_both_families() {
        let endpoint = dialling().expect("a socket");
        assert_ne!(endpoint.local_addr().expect("bound").port(), 0);
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let held = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
        let address = held.local_addr().expect("bound");
        let error = bind(address).expect_err("taken");
        let shown = LinkError::Bind { address, source: error }.to_string();
        assert!(shown.contains(&address.to_string()), "{shown}");
    }
}
