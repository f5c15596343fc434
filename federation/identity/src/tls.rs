//! TLS configurations: the only ones in this project, each for one listener or dialler.
//!
//! All: TLS 1.3 (RFC 8446) and nothing older, aws-lc-rs, X25519MLKEM768 first, one ALPN protocol per purpose and none
//! without, no tickets, no resumption, no early data, no key log. A resumed handshake would restore the peer's chain
//! without asking our verifier, so there is nothing to resume.
//!
//! | configuration      | ALPN                         | shows          | accepts                                          |
//! |--------------------|------------------------------|----------------|--------------------------------------------------|
//! | [`mesh_client`]    | `hanse-mesh/1`               | its SVID       | exactly the identities named                     |
//! | [`mesh_server`]    | `hanse-mesh/1`               | its SVID       | workloads                                        |
//! | [`session_client`] | `hanse-fed/1`                | its SVID, root | edges of the trust domain named                  |
//! | [`session_server`] | `hanse-fed/1`, `hanse-join/1`| its SVID, root | edges of known trust domains; while joins are open, strangers' edges |
//! | [`join_client`]    | `hanse-join/1`               | its SVID, root | an edge of the issuer's domain under the pinned root |
//! | [`workload_client`]| `h2`                         | its SVID       | exactly the edge named                           |
//! | [`workload_server`]| `h2`                         | its SVID, root | workloads, and clients without a certificate     |
//! | [`enrol_client`]   | `h2`                         | nothing        | an edge of the domain named under the pinned root |

mod verifiers;

use std::sync::{Arc, LazyLock, atomic::AtomicBool};

use federation_model::{Digest, Role, SpiffeId, TrustDomain};
use rustls::{
    ClientConfig, ServerConfig,
    client::{ResolvesClientCert, Resumption},
    crypto::{CryptoProvider, aws_lc_rs},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
    version::TLS13,
};

use self::verifiers::{BundledClient, BundledServer, ClientPolicy, PinnedServer};
use crate::{LiveSvid, SvidError, Verifier, verifier::RoleIs};

/// Sessions between edges.
pub const ALPN_FEDERATION: &[u8] = b"hanse-fed/1";
/// Joining.
pub const ALPN_JOIN: &[u8] = b"hanse-join/1";
/// Sidecar to sidecar.
pub const ALPN_MESH: &[u8] = b"hanse-mesh/1";
/// gRPC of workload identity and discovery (RFC 9113, 3.2).
pub const ALPN_H2: &[u8] = b"h2";

/// Exporter labels (RFC 8446, 7.5), used without context for [`EXPORTER_BYTES`] bytes: what a renewal lists of the
/// connections that it stands for, and what a join proof is bound to.
pub const EXPORTER_MESH: &[u8] = b"EXPORTER-hanse-mesh";
pub const EXPORTER_SESSION: &[u8] = b"EXPORTER-hanse-session";
pub const EXPORTER_JOIN: &[u8] = b"EXPORTER-hanse-join";
pub const EXPORTER_BYTES: usize = 32;

/// Why a configuration cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    #[error("TLS library refused its configuration")]
    Config(#[from] rustls::Error),
    #[error("no identity is named that the server may have: nobody could be accepted")]
    NobodyExpected,
}

/// The connection settled on another protocol than the one that it was opened for, or on none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("connection settled on protocol {got:?}, not on {wanted:?}")]
pub struct AlpnError {
    pub wanted: String,
    pub got: Option<String>,
}

/// Whether a finished handshake settled on `wanted`.
///
/// Servers made here refuse whoever offers nothing fitting, and QUIC checks both ways; a client over TCP has to ask.
///
/// # Errors
/// It settled on another protocol or on none.
pub fn check_alpn(selected: Option<&[u8]>, wanted: &[u8]) -> Result<(), AlpnError> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if selected == Some(wanted) {
        return Ok(());
    }
    Err(AlpnError { wanted: text(wanted), got: selected.map(text) })
}

/// The check that failed, if a handshake failed because of one of ours.
pub fn svid_error(error: &rustls::Error) -> Option<&SvidError> {
    verifiers::svid_error(error)
}

/// Sidecar to sidecar, dialling side: accepts exactly the identities in `expected`. Dial with the service's DNS name as
/// server name: edges route by it, nobody believes it. Call [`check_alpn`] after the handshake.
///
/// # Errors
/// `expected` is empty.
pub fn mesh_client(
    svid: &LiveSvid,
    verifier: &Verifier,
    expected: Vec<SpiffeId>,
) -> Result<Arc<ClientConfig>, TlsError> {
    if expected.is_empty() {
        return Err(TlsError::NobodyExpected);
    }
    let server =
        BundledServer { verifier: verifier.clone(), role: Role::is_workload, domain: None, ids: Some(expected) };
    client(Arc::new(server), Some(svid), ALPN_MESH, true)
}

/// Sidecar to sidecar, accepting side: workloads alone.
///
/// # Errors
/// None that a caller can cause.
pub fn mesh_server(svid: &LiveSvid, verifier: &Verifier) -> Result<Arc<ServerConfig>, TlsError> {
    let client = BundledClient::new(verifier, Role::is_workload, ClientPolicy::Mandatory);
    server(client, svid, &[ALPN_MESH])
}

/// Edge to edge, dialling side: accepts edges of `trust_domain`, the member that is dialled.
///
/// # Errors
/// None that a caller can cause.
pub fn session_client(
    svid: &LiveSvid,
    verifier: &Verifier,
    trust_domain: TrustDomain,
) -> Result<Arc<ClientConfig>, TlsError> {
    let server =
        BundledServer { verifier: verifier.clone(), role: Role::is_edge, domain: Some(trust_domain), ids: None };
    client(Arc::new(server), Some(svid), ALPN_FEDERATION, false)
}

/// Edge to edge, accepting side, for sessions and joins on one endpoint.
///
/// While `joins_open` holds, a client of a trust domain that nobody here knows passes the handshake too, if it shows an
/// edge's SVID under a root that it brings itself. TLS does not tell its verifier which protocol was chosen, so such a
/// stranger may have chosen `hanse-fed/1`: **after the handshake call [`Verifier::session_peer`] on every session, and
/// [`crate::stranger`] on every join**; the former refuses strangers.
///
/// # Errors
/// None that a caller can cause.
pub fn session_server(
    svid: &LiveSvid,
    verifier: &Verifier,
    joins_open: Arc<AtomicBool>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let client = BundledClient::new(verifier, Role::is_edge, ClientPolicy::OrStranger { joins_open });
    server(client, svid, &[ALPN_FEDERATION, ALPN_JOIN])
}

/// Joining: accepts an edge of `issuer` whose chain ends in the root that the token pins.
///
/// # Errors
/// None that a caller can cause.
pub fn join_client(svid: &LiveSvid, pin: Digest, issuer: TrustDomain) -> Result<Arc<ClientConfig>, TlsError> {
    client(Arc::new(PinnedServer { pin, domain: issuer }), Some(svid), ALPN_JOIN, false)
}

/// Workload to its own edge: accepts exactly `edge`. Call [`check_alpn`] after the handshake.
///
/// # Errors
/// None that a caller can cause.
pub fn workload_client(svid: &LiveSvid, verifier: &Verifier, edge: SpiffeId) -> Result<Arc<ClientConfig>, TlsError> {
    let server = BundledServer { verifier: verifier.clone(), role: Role::is_edge, domain: None, ids: Some(vec![edge]) };
    client(Arc::new(server), Some(svid), ALPN_H2, false)
}

/// The edge's listener for workloads. A client without a certificate passes, to enrol; every call but that one must ask
/// for a [`Verifier::tls_peer`]. A client with a certificate must be a workload with a good one.
///
/// # Errors
/// None that a caller can cause.
pub fn workload_server(svid: &LiveSvid, verifier: &Verifier) -> Result<Arc<ServerConfig>, TlsError> {
    let client = BundledClient::new(verifier, Role::is_workload, ClientPolicy::OrNone);
    server(client, svid, &[ALPN_H2])
}

/// First contact of a workload with its edge: shows nothing, accepts an edge of `trust_domain` under the pinned root.
///
/// # Errors
/// None that a caller can cause.
pub fn enrol_client(pin: Digest, trust_domain: TrustDomain) -> Result<Arc<ClientConfig>, TlsError> {
    client(Arc::new(PinnedServer { pin, domain: trust_domain }), None, ALPN_H2, false)
}

/// aws-lc-rs with the suites of TLS 1.3 alone.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites.retain(|suite| suite.tls13().is_some());
        Arc::new(provider)
    });
    PROVIDER.clone()
}

fn client(
    server: Arc<dyn rustls::client::danger::ServerCertVerifier>,
    svid: Option<&LiveSvid>,
    alpn: &'static [u8],
    sni: bool,
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(server);
    let mut config = match svid {
        Some(svid) => builder.with_client_cert_resolver(Arc::new(Shown { svid: svid.clone(), alpn: &[] })),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = sni;
    Ok(Arc::new(config))
}

fn server(
    client: BundledClient,
    svid: &LiveSvid,
    alpn: &'static [&'static [u8]],
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(client))
        .with_cert_resolver(Arc::new(Shown { svid: svid.clone(), alpn }));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// Shows the SVID that is in use at the moment of the handshake; before there is one, the handshake fails.
#[derive(Debug)]
struct Shown {
    svid: LiveSvid,
    /// On a server: a client must offer one of these. rustls lets a client without any ALPN pass; this does not.
    alpn: &'static [&'static [u8]],
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let fitting = hello.alpn()?.any(|offered| self.alpn.contains(&offered));
        if fitting { Some(self.svid.get()?.certified()) } else { None }
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.svid.get()?.certified())
    }

    fn has_certs(&self) -> bool {
        self.svid.get().is_some()
    }
}

#[cfg(test)]
mod tests;
