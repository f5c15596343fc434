//! Real handshakes, in memory: each configuration against every kind of peer.

use std::{
    io::{Cursor, Read, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, Error, HandshakeKind, ProtocolVersion, ServerConfig,
    ServerConnection, SideData, client::Resumption,
};
use rustls_pki_types::CertificateDer;

use super::*;
use crate::{
    Svid, join, now, stranger,
    testing::{Cluster, bundles, live, verifier},
};

/// Both ends after a handshake that one of them may have refused.
struct Met {
    client: ClientConnection,
    server: ServerConnection,
    client_error: Option<Error>,
    server_error: Option<Error>,
}

impl Met {
    fn done(&self) -> bool {
        self.client_error.is_none()
            && self.server_error.is_none()
            && !self.client.is_handshaking()
            && !self.server.is_handshaking()
    }

    /// The reason of whichever side refused by a check of ours.
    fn reason(&self) -> Option<&'static str> {
        let mut errors = [&self.client_error, &self.server_error].into_iter().flatten();
        errors.find_map(svid_error).map(SvidError::reason)
    }

    fn exporters(&self, label: &[u8]) -> ([u8; 32], [u8; 32]) {
        let client = self.client.export_keying_material([0; 32], label, None).expect("client");
        let server = self.server.export_keying_material([0; 32], label, None).expect("server");
        (client, server)
    }
}

fn meet(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Met {
    let name = "payments.billing.west.mesh.internal".try_into().expect("name");
    let client = ClientConnection::new(client.clone(), name).expect("client");
    let server = ServerConnection::new(server.clone()).expect("server");
    let mut met = Met { client, server, client_error: None, server_error: None };
    for _ in 0..8 {
        pass(&mut met.client, &mut met.server, &mut met.server_error);
        pass(&mut met.server, &mut met.client, &mut met.client_error);
    }
    met
}

fn pass<F: SideData, T: SideData>(
    from: &mut ConnectionCommon<F>,
    to: &mut ConnectionCommon<T>,
    error: &mut Option<Error>,
) {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).expect("write");
    }
    let mut bytes = Cursor::new(bytes);
    while error.is_none() && (bytes.position() as usize) < bytes.get_ref().len() {
        to.read_tls(&mut bytes).expect("read");
        *error = to.process_new_packets().err();
    }
}

/// A configuration whose other side does as it pleases: rustls's own builders, our certificates.
fn loose_client(svid: Option<&LiveSvid>, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    #[derive(Debug)]
    struct Anything;
    impl rustls::client::danger::ServerCertVerifier for Anything {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &rustls_pki_types::ServerName<'_>,
            _: &[u8],
            _: rustls_pki_types::UnixTime,
        ) -> Result<rustls::client::danger::ServerCertVerified, Error> {
            Ok(rustls::client::danger::ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            provider().signature_verification_algorithms.supported_schemes()
        }
    }
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anything));
    let mut config = match svid {
        Some(svid) => builder.with_client_cert_resolver(Arc::new(Shown { svid: svid.clone(), alpn: &[] })),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

fn loose_server(svid: &LiveSvid, alpn: &'static [&'static [u8]]) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("versions")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Shown { svid: svid.clone(), alpn }));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

/// Two linked clusters and one that nobody here knows.
struct World {
    west: Cluster,
    east: Cluster,
    north: Cluster,
    verifier: Verifier,
    joins_open: Arc<AtomicBool>,
    west_edge: LiveSvid,
    east_edge: LiveSvid,
    north_edge: LiveSvid,
    web: LiveSvid,
    api: LiveSvid,
    foreign: LiveSvid,
}

impl World {
    fn new() -> Self {
        let (west, east, north) = (Cluster::new("west"), Cluster::new("east"), Cluster::new("north"));
        Self {
            verifier: verifier(&[&west, &east]),
            joins_open: Arc::new(AtomicBool::new(false)),
            west_edge: live(west.edge()),
            east_edge: live(east.edge()),
            north_edge: live(north.edge()),
            web: live(west.workload("web")),
            api: live(east.workload("api")),
            foreign: live(north.workload("web")),
            west,
            east,
            north,
        }
    }

    fn id(svid: &LiveSvid) -> SpiffeId {
        svid.get().expect("svid").id().clone()
    }

    /// Every listener, by name.
    fn servers(&self) -> [(&'static str, Arc<ServerConfig>); 3] {
        [
            ("mesh", mesh_server(&self.api, &self.verifier).expect("mesh")),
            ("session", session_server(&self.east_edge, &self.verifier, self.joins_open.clone()).expect("session")),
            ("workload", workload_server(&self.east_edge, &self.verifier).expect("workload")),
        ]
    }

    fn mesh_client(&self, expected: &[&LiveSvid]) -> Arc<ClientConfig> {
        let expected = expected.iter().map(|svid| Self::id(svid)).collect();
        mesh_client(&self.web, &self.verifier, expected).expect("mesh")
    }
}

#[test]
fn each_listener_accepts_its_protocol_and_its_roles_alone() {
    let world = World::new();
    let person = {
        // No signer issues people yet, so a person's SVID cannot be had; an edge and a workload stand at each door.
        [
            ("workload", &world.web),
            ("edge", &world.west_edge),
            ("foreign workload", &world.foreign),
            ("foreign edge", &world.north_edge),
        ]
    };
    let accepted = [
        ("mesh", ALPN_MESH, "workload"),
        ("session", ALPN_FEDERATION, "edge"),
        ("session", ALPN_JOIN, "edge"),
        ("workload", ALPN_H2, "workload"),
        ("workload", ALPN_H2, "nobody"),
    ];
    let offers: [&[&[u8]]; 7] =
        [&[ALPN_MESH], &[ALPN_FEDERATION], &[ALPN_JOIN], &[ALPN_H2], &[b"http/1.1"], &[b"hanse-mesh/2"], &[]];
    let mut passed = 0;
    for (listener, server) in world.servers() {
        for offer in offers {
            let who = person.iter().map(|(role, svid)| (*role, Some(*svid))).chain([("nobody", None)]);
            for (role, svid) in who {
                let met = meet(&loose_client(svid, offer), &server);
                let wanted = accepted.iter().any(|(at, alpn, is)| (*at, &[*alpn][..], *is) == (listener, offer, role));
                assert_eq!(
                    met.done(),
                    wanted,
                    "{listener}, {offer:?}, {role}: {:?} {:?}",
                    met.client_error,
                    met.server_error
                );
                passed += usize::from(met.done());
            }
        }
    }
    assert_eq!(passed, accepted.len());
}

#[test]
fn a_client_without_alpn_or_certificate_is_refused_before_anything_is_shown() {
    let world = World::new();
    for (listener, server) in world.servers() {
        let met = meet(&loose_client(Some(&world.web), &[]), &server);
        assert!(met.server_error.is_some(), "{listener}");
        assert!(met.client.peer_certificates().is_none(), "{listener} shows its SVID to whoever names no protocol");
    }
    let mesh = mesh_server(&world.api, &world.verifier).expect("mesh");
    let met = meet(&loose_client(None, &[ALPN_MESH]), &mesh);
    assert_eq!(met.server_error, Some(Error::NoCertificatesPresented));
}

#[test]
fn sidecars_meet_and_know_each_other() {
    let world = World::new();
    let met = meet(&world.mesh_client(&[&world.api]), &mesh_server(&world.api, &world.verifier).expect("mesh"));
    assert!(met.done(), "{:?} {:?}", met.client_error, met.server_error);
    for connection in [&*met.client as &rustls::CommonState, &*met.server] {
        assert_eq!(connection.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(connection.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(connection.alpn_protocol(), Some(ALPN_MESH));
        let group = connection.negotiated_key_exchange_group().expect("group").name();
        assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    }
    check_alpn(met.client.alpn_protocol(), ALPN_MESH).expect("alpn");
    assert_eq!(met.server.server_name(), Some("payments.billing.west.mesh.internal"));
    let seen = world.verifier.tls_peer(met.server.peer_certificates().expect("chain"), now()).expect("peer");
    assert_eq!(*seen.id(), World::id(&world.web));
    let seen = world.verifier.tls_peer(met.client.peer_certificates().expect("chain"), now()).expect("peer");
    assert_eq!(*seen.id(), World::id(&world.api));
    for label in [EXPORTER_MESH, EXPORTER_SESSION, EXPORTER_JOIN] {
        let (client, server) = met.exporters(label);
        assert_eq!(client, server);
    }
    assert_ne!(met.exporters(EXPORTER_MESH), met.exporters(EXPORTER_SESSION));
}

#[test]
fn a_sidecar_accepts_exactly_the_identities_of_the_service() {
    let world = World::new();
    let server = mesh_server(&world.api, &world.verifier).expect("mesh");
    let other = live(world.east.workload("other"));
    let namesake = live(world.west.workload("api"));
    assert!(meet(&world.mesh_client(&[&other, &world.api]), &server).done());
    for expected in [&[&other][..], &[&namesake], &[&world.web], &[&world.east_edge]] {
        let met = meet(&world.mesh_client(expected), &server);
        assert_eq!((met.done(), met.reason()), (false, Some("unexpected_id")));
    }
    let refused = mesh_client(&world.web, &world.verifier, Vec::new());
    assert!(matches!(refused, Err(TlsError::NobodyExpected)));
}

#[test]
fn a_server_that_settles_on_no_protocol_is_noticed() {
    let world = World::new();
    // rustls itself lets a client over TCP go on without any; the caller must ask.
    let mut silent = (*loose_server(&world.api, &[ALPN_MESH])).clone();
    silent.alpn_protocols.clear();
    let met = meet(&world.mesh_client(&[&world.api]), &Arc::new(silent));
    assert_eq!(met.client.alpn_protocol(), None);
    let error = check_alpn(met.client.alpn_protocol(), ALPN_MESH).expect_err("none");
    assert_eq!(error.to_string(), "connection settled on protocol None, not on \"hanse-mesh/1\"");
    assert!(check_alpn(Some(ALPN_H2), ALPN_MESH).is_err());
}

#[test]
fn edges_meet_and_only_the_member_that_was_dialled_answers() {
    let world = World::new();
    let server = session_server(&world.east_edge, &world.verifier, world.joins_open.clone()).expect("server");
    let dial = |domain: &str| {
        session_client(&world.west_edge, &world.verifier, domain.parse().expect("domain")).expect("client")
    };
    let met = meet(&dial("east.mesh.internal"), &server);
    assert!(met.done(), "{:?} {:?}", met.client_error, met.server_error);
    assert_eq!(met.server.alpn_protocol(), Some(ALPN_FEDERATION));
    assert_eq!(met.server.server_name(), None, "nobody on the way reads whom we dial");
    let seen = world.verifier.session_peer(met.server.peer_certificates().expect("chain"), now()).expect("peer");
    assert_eq!(*seen.id(), World::id(&world.west_edge));
    assert_eq!(met.server.peer_certificates().expect("chain").len(), 3, "the root is shown");

    assert_eq!(meet(&dial("west.mesh.internal"), &server).reason(), Some("wrong_trust_domain"));
    assert_eq!(meet(&dial("north.mesh.internal"), &server).reason(), Some("wrong_trust_domain"));
    let workload = loose_server(&world.api, &[ALPN_FEDERATION]);
    assert_eq!(meet(&dial("east.mesh.internal"), &workload).reason(), Some("wrong_role"));
    let foreign = loose_server(&world.north_edge, &[ALPN_FEDERATION]);
    assert_eq!(meet(&dial("north.mesh.internal"), &foreign).reason(), Some("unknown_trust_domain"));
    let rogue = live(Cluster::of("mallory", "east.mesh.internal").edge());
    let rogue = loose_server(&rogue, &[ALPN_FEDERATION]);
    assert_eq!(meet(&dial("east.mesh.internal"), &rogue).reason(), Some("unknown_issuer"));
}

#[test]
fn strangers_pass_only_while_joins_are_open_and_never_as_members() {
    let world = World::new();
    let server = session_server(&world.east_edge, &world.verifier, world.joins_open.clone()).expect("server");
    let pin = world.east.signer.root_pin();
    let joiner = join_client(&world.north_edge, pin, world.east.domain.clone()).expect("client");
    assert_eq!(meet(&joiner, &server).reason(), Some("unknown_trust_domain"));

    world.joins_open.store(true, Ordering::Release);
    let met = meet(&joiner, &server);
    assert!(met.done(), "{:?} {:?}", met.client_error, met.server_error);
    assert_eq!(met.server.alpn_protocol(), Some(ALPN_JOIN));
    let chain = met.server.peer_certificates().expect("chain");
    let seen = stranger(chain, now()).expect("stranger");
    assert_eq!(seen.root_der, world.north.signer.candidate().root);
    assert_eq!(world.verifier.session_peer(chain, now()).expect_err("stranger").reason(), "unknown_trust_domain");

    // A stranger may choose the sessions' protocol; the proof that a session needs it cannot have.
    let met = meet(&loose_client(Some(&world.north_edge), &[ALPN_FEDERATION]), &server);
    assert!(met.done());
    assert!(world.verifier.session_peer(met.server.peer_certificates().expect("chain"), now()).is_err());

    // Not a workload, not without a root, not under a known domain's name, and not once joins are closed.
    let client = |svid: &LiveSvid| loose_client(Some(svid), &[ALPN_JOIN]);
    assert_eq!(meet(&client(&world.foreign), &server).reason(), Some("root_missing"));
    let key = crate::SvidKey::generate();
    let issued = world.north.issue("/hanse/edge/north", &key);
    let rootless = live(Svid::assemble(key, issued.chain).expect("svid"));
    assert_eq!(meet(&client(&rootless), &server).reason(), Some("root_missing"));
    let thief = live(Cluster::of("mallory", "west.mesh.internal").edge());
    assert_eq!(meet(&client(&thief), &server).reason(), Some("unknown_issuer"));
    world.joins_open.store(false, Ordering::Release);
    assert_eq!(meet(&joiner, &server).reason(), Some("unknown_trust_domain"));
}

#[test]
fn a_joiner_accepts_the_pinned_issuer_alone() {
    let world = World::new();
    world.joins_open.store(true, Ordering::Release);
    let server = session_server(&world.east_edge, &world.verifier, world.joins_open.clone()).expect("server");
    let dial = |pin, domain: &TrustDomain| join_client(&world.north_edge, pin, domain.clone()).expect("client");
    let pin = world.east.signer.root_pin();
    assert!(meet(&dial(pin, &world.east.domain), &server).done());
    assert_eq!(meet(&dial(world.west.signer.root_pin(), &world.east.domain), &server).reason(), Some("pin_mismatch"));
    assert_eq!(meet(&dial(pin, &world.west.domain), &server).reason(), Some("wrong_trust_domain"));
    let workload = loose_server(&world.api, &[ALPN_JOIN]);
    assert_eq!(meet(&dial(pin, &world.east.domain), &workload).reason(), Some("root_missing"));
    let twin = loose_server(&live(Cluster::new("east").edge()), &[ALPN_JOIN]);
    assert_eq!(meet(&dial(pin, &world.east.domain), &twin).reason(), Some("pin_mismatch"));
}

#[test]
fn a_workload_enrols_by_pin_and_then_shows_its_svid() {
    let world = World::new();
    let server = workload_server(&world.west_edge, &world.verifier).expect("server");
    let pin = world.west.signer.root_pin();
    let met = meet(&enrol_client(pin, world.west.domain.clone()).expect("client"), &server);
    assert!(met.done(), "{:?} {:?}", met.client_error, met.server_error);
    assert!(met.server.peer_certificates().is_none());

    let edge = World::id(&world.west_edge);
    let met = meet(&workload_client(&world.web, &world.verifier, edge.clone()).expect("client"), &server);
    assert!(met.done(), "{:?} {:?}", met.client_error, met.server_error);
    let seen = world.verifier.tls_peer(met.server.peer_certificates().expect("chain"), now()).expect("peer");
    assert_eq!(*seen.id(), World::id(&world.web));

    let wrong_pin = enrol_client(world.east.signer.root_pin(), world.west.domain.clone()).expect("client");
    assert_eq!(meet(&wrong_pin, &server).reason(), Some("pin_mismatch"));
    let wrong_edge = workload_client(&world.web, &world.verifier, World::id(&world.east_edge)).expect("client");
    assert_eq!(meet(&wrong_edge, &server).reason(), Some("unexpected_id"));
    let impostor = loose_server(&world.web, &[ALPN_H2]);
    let met = meet(&workload_client(&world.web, &world.verifier, edge).expect("client"), &impostor);
    assert_eq!(met.reason(), Some("wrong_role"));
}

#[test]
fn a_client_built_to_resume_makes_a_full_handshake_each_time() {
    let world = World::new();
    for (listener, server) in world.servers() {
        let (svid, alpn) = match listener {
            "session" => (&world.west_edge, ALPN_FEDERATION),
            "mesh" => (&world.web, ALPN_MESH),
            _ => (&world.web, ALPN_H2),
        };
        let mut eager = (*loose_client(Some(svid), &[alpn])).clone();
        eager.resumption = Resumption::in_memory_sessions(16);
        eager.enable_early_data = true;
        let eager = Arc::new(eager);
        for round in 0..3 {
            let mut met = meet(&eager, &server);
            assert!(met.done(), "{listener} {:?} {:?}", met.client_error, met.server_error);
            // Tickets would come with or after the first data.
            met.server.writer().write_all(b"hello").expect("write");
            pass(&mut met.server, &mut met.client, &mut met.client_error);
            let mut text = [0; 5];
            met.client.reader().read_exact(&mut text).expect("read");
            assert_eq!(met.client.handshake_kind(), Some(HandshakeKind::Full), "{listener} {round}");
            assert_eq!(met.client.tls13_tickets_received(), 0, "{listener}");
            assert!(!met.client.is_early_data_accepted(), "{listener}");
        }
        assert_eq!((server.send_tls13_tickets, server.max_early_data_size), (0, 0));
        assert!(!server.session_storage.can_cache() && !server.ticketer.enabled(), "{listener}");
    }
}

#[test]
fn no_client_of_ours_keeps_anything_to_resume_with() {
    let world = World::new();
    // A server that hands out tickets to whoever takes them.
    let generous = loose_server(&world.api, &[ALPN_MESH]);
    assert!(generous.send_tls13_tickets > 0);
    let client = world.mesh_client(&[&world.api]);
    for _ in 0..3 {
        let mut met = meet(&client, &generous);
        met.server.writer().write_all(b"hello").expect("write");
        pass(&mut met.server, &mut met.client, &mut met.client_error);
        assert!(met.done());
        assert_eq!(met.client.handshake_kind(), Some(HandshakeKind::Full));
    }
    assert!(!client.enable_early_data && !client.enable_secret_extraction);
}

#[test]
fn a_revoked_bundle_stops_the_very_next_handshake() {
    let world = World::new();
    let server = mesh_server(&world.api, &world.verifier).expect("mesh");
    let client = world.mesh_client(&[&world.api]);
    assert!(meet(&client, &server).done());
    world.verifier.publish(&bundles([world.east.bundle()]));
    let met = meet(&loose_client(Some(&world.web), &[ALPN_MESH]), &server);
    assert_eq!(met.reason(), Some("unknown_trust_domain"));
}

#[test]
fn a_renewed_svid_is_shown_at_the_next_handshake() {
    let world = World::new();
    let server = mesh_server(&world.api, &world.verifier).expect("mesh");
    let client = world.mesh_client(&[&world.api]);
    let first = meet(&client, &server);
    world.api.set(world.east.workload("api"));
    world.web.set(world.west.workload("web"));
    let second = meet(&client, &server);
    assert!(first.done() && second.done());
    assert_ne!(first.client.peer_certificates(), second.client.peer_certificates());
    assert_ne!(first.server.peer_certificates(), second.server.peer_certificates());
}

#[test]
fn nothing_is_shown_before_there_is_an_svid() {
    let world = World::new();
    let empty = LiveSvid::new();
    let server = mesh_server(&empty, &world.verifier).expect("mesh");
    assert!(meet(&world.mesh_client(&[&world.api]), &server).server_error.is_some());
    let client = mesh_client(&empty, &world.verifier, vec![World::id(&world.api)]).expect("client");
    let met = meet(&client, &mesh_server(&world.api, &world.verifier).expect("mesh"));
    assert_eq!(met.server_error, Some(Error::NoCertificatesPresented));
}

#[test]
fn a_chain_shown_without_its_key_proves_nothing() {
    let world = World::new();
    // The east's chain over a key of our own.
    let stolen = world.api.get().expect("svid").chain().to_vec();
    let own = world.web.get().expect("svid").certified();
    #[derive(Debug)]
    struct Thief(Arc<rustls::sign::CertifiedKey>);
    impl ResolvesClientCert for Thief {
        fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
            Some(self.0.clone())
        }
        fn has_certs(&self) -> bool {
            true
        }
    }
    let thief = Arc::new(Thief(Arc::new(CertifiedKey::new(stolen, own.key.clone()))));
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(BundledServer {
            verifier: world.verifier.clone(),
            role: Role::is_workload,
            domain: None,
            ids: None,
        }))
        .with_client_cert_resolver(thief);
    config.alpn_protocols = vec![ALPN_MESH.to_vec()];
    let met = meet(&Arc::new(config), &mesh_server(&world.api, &world.verifier).expect("mesh"));
    assert!(!met.done());
    assert!(matches!(met.server_error, Some(Error::InvalidCertificate(_))), "{:?}", met.server_error);
}

/// A ClientHello as TLS 1.2 clients send it: no supported_versions, suites and groups that any server knows.
fn tls12_hello() -> Vec<u8> {
    let extension =
        |kind: u16, body: &[u8]| [&kind.to_be_bytes()[..], &(body.len() as u16).to_be_bytes(), body].concat();
    let extensions = [
        extension(10, &[0, 4, 0, 23, 0, 29]),
        extension(11, &[1, 0]),
        extension(13, &[0, 4, 4, 3, 8, 4]),
        extension(23, &[]),
        extension(16, &[&[0, 13, 12][..], ALPN_MESH].concat()),
    ]
    .concat();
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[0],
        &[0, 4, 0xc0, 0x2b, 0xc0, 0x2f],
        &[1, 0],
        &(extensions.len() as u16).to_be_bytes(),
        &extensions,
    ]
    .concat();
    let message = [&[1, 0][..], &(body.len() as u16).to_be_bytes(), &body].concat();
    [&[22, 3, 1][..], &(message.len() as u16).to_be_bytes(), &message].concat()
}

#[test]
fn a_client_of_tls_1_2_is_refused() {
    let world = World::new();
    for (listener, server) in world.servers() {
        let mut connection = ServerConnection::new(server).expect("server");
        connection.read_tls(&mut Cursor::new(tls12_hello())).expect("read");
        let refused = connection.process_new_packets().expect_err(listener);
        assert!(matches!(refused, Error::PeerIncompatible(_)), "{listener}: {refused:?}");
    }
}

#[test]
fn noise_and_cut_hellos_end_in_an_error() {
    let world = World::new();
    let server = mesh_server(&world.api, &world.verifier).expect("mesh");
    for noise in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 64], &[22, 3, 1, 0xff, 0xff], &[0xff; 600]] {
        let mut connection = ServerConnection::new(server.clone()).expect("server");
        let mut bytes = Cursor::new(noise);
        let read = connection.read_tls(&mut bytes);
        assert!(read.is_err() || connection.process_new_packets().is_err() || connection.is_handshaking());
        assert!(connection.peer_certificates().is_none());
    }
}

/// The attack of J4: a man in the middle ends TLS on both sides and hands the proofs across.
#[test]
fn a_relayed_join_proof_convinces_neither_side() {
    let world = World::new();
    world.joins_open.store(true, Ordering::Release);
    let secret = crate::token::token_secret();
    let (key, pin) = (join::ProofKey::derive(&secret), world.east.signer.root_pin());
    let candidate = b"candidate of north".as_slice();
    let admission = crate::sha256(b"admission");
    let server = session_server(&world.east_edge, &world.verifier, world.joins_open.clone()).expect("server");

    // Honest: both ends see one exporter, and each other's proof.
    let joiner = join_client(&world.north_edge, pin, world.east.domain.clone()).expect("client");
    let met = meet(&joiner, &server);
    let (ours, theirs) = met.exporters(EXPORTER_JOIN);
    let proof = join::joiner_proof(&key, &ours, candidate, &pin);
    assert!(join::verify_joiner(&key, &theirs, candidate, &pin, &proof));
    let answer = join::issuer_proof(&key, &theirs, candidate, &pin, &admission);
    assert!(join::verify_issuer(&key, &ours, candidate, &pin, &admission, &answer));

    // The man in the middle has an edge of his own. The joiner does not even shake hands with him: he has not the root.
    let mallory = live(Cluster::of("mallory", "east.mesh.internal").edge());
    let middle = loose_server(&mallory, &[ALPN_JOIN]);
    assert_eq!(meet(&joiner, &middle).reason(), Some("pin_mismatch"));

    // Suppose that the joiner had not looked. The issuer sees another exporter, so the relayed proof is void, and so is
    // one that was captured from an earlier connection.
    let tricked = meet(&loose_client(Some(&world.north_edge), &[ALPN_JOIN]), &middle);
    let outward = meet(&loose_client(Some(&mallory_as_stranger(&world)), &[ALPN_JOIN]), &server);
    assert!(tricked.done() && outward.done());
    let captured = join::joiner_proof(&key, &tricked.exporters(EXPORTER_JOIN).0, candidate, &pin);
    let seen_by_issuer = outward.exporters(EXPORTER_JOIN).1;
    assert!(!join::verify_joiner(&key, &seen_by_issuer, candidate, &pin, &captured));
    assert!(!join::verify_joiner(&key, &seen_by_issuer, candidate, &pin, &proof));
    let answer = join::issuer_proof(&key, &seen_by_issuer, candidate, &pin, &admission);
    let seen_by_joiner = tricked.exporters(EXPORTER_JOIN).0;
    assert!(!join::verify_issuer(&key, &seen_by_joiner, candidate, &pin, &admission, &answer));
}

fn mallory_as_stranger(_: &World) -> LiveSvid {
    live(Cluster::of("mallory", "mallory.mesh.internal").edge())
}
