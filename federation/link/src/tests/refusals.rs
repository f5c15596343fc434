//! Peers that do not keep to the protocol: each is refused with a word that says why.

use std::time::Duration;

use federation_identity::{LiveSvid, Signer, now, tls};
use proto::federation::{Heartbeat, Hello, OpenReplication, OpenTunnel, Records};

use crate::{
    endpoint, supervisor,
    testing::{Cluster, Disk, SOON, Setup, limits, until},
    wire::{self, Frame},
};

async fn pair() -> (Cluster, Cluster) {
    let (east, west) = (Cluster::start("east").await, Cluster::open(Disk::new("west"), Setup::outbound_only()).await);
    west.join(&east).await;
    west.linked(&east).await;
    east.linked(&west).await;
    (east, west)
}

/// A connection of west's edge to east's that the link does not know of.
async fn connect(west: &Cluster, east: &Cluster) -> quinn::Connection {
    let snapshot = west.link.snapshot().borrow().clone().expect("some");
    let member = snapshot.members.get(&east.id()).expect("member").clone();
    supervisor::connect(&west.link.shared, &member, east.address()).await.expect("connects")
}

fn hello(west: &Cluster) -> Hello {
    let federation = west.link.snapshot().borrow().as_ref().expect("some").federation;
    Hello {
        version_min: 1,
        version_max: 1,
        features: Vec::new(),
        build: "test".into(),
        federation: federation.as_bytes().to_vec(),
        cluster: west.id().as_bytes().to_vec(),
        renews: Vec::new(),
        now_ms: now().as_millis(),
    }
}

/// Sends bytes as the first of the control stream; the refusal's word, and that of the close.
async fn refused(connection: &quinn::Connection, bytes: &[u8], finish: bool) -> (String, String) {
    let (mut send, mut receive) = connection.open_bi().await.expect("stream");
    send.write_all(bytes).await.expect("sent");
    if finish {
        send.finish().expect("finished");
    }
    let answer = tokio::time::timeout(SOON, wire::read(&mut receive, wire::FRAME_BYTES_MAX)).await.expect("in time");
    let Ok(Frame::Refusal(refusal)) = answer else { panic!("{answer:?}") };
    (refusal.reason, closed(connection).await)
}

async fn closed(connection: &quinn::Connection) -> String {
    match tokio::time::timeout(SOON, connection.closed()).await.expect("closed in time") {
        quinn::ConnectionError::ApplicationClosed(close) => String::from_utf8_lossy(&close.reason).into_owned(),
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_are_oversized_truncated_unknown_or_out_of_place_are_refused_with_a_reason() {
    let (east, west) = pair().await;
    let cut = wire::encode(Frame::Hello(hello(&west))).expect("fits");
    let table: Vec<(&str, Vec<u8>)> = vec![
        ("frame_oversized", vec![0xff, 0xff, 0xff, 0xff]),
        ("frame_oversized", (wire::HELLO_BYTES_MAX as u32 + 1).to_be_bytes().to_vec()),
        ("frame_truncated", cut[..cut.len() - 3].to_vec()),
        ("frame_truncated", vec![0, 0]),
        ("frame_malformed", vec![0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff]),
        ("frame_unknown", vec![0, 0, 0, 3, 0xa2, 0x06, 0x00]),
        ("frame_unexpected", wire::encode(Frame::Heartbeat(Heartbeat { number: 1, now_ms: 1 })).expect("fits")),
    ];
    for (reason, bytes) in table {
        let connection = connect(&west, &east).await;
        assert_eq!(refused(&connection, &bytes, true).await, (reason.to_owned(), reason.to_owned()), "{bytes:?}");
    }
    assert!(east.link.session_peer(west.id()).is_some(), "the session beside them goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_greeting_that_does_not_fit_is_refused_with_a_reason() {
    let (east, west) = pair().await;
    let table: Vec<(&str, Hello)> = vec![
        ("version", Hello { version_min: 2, version_max: 9, ..hello(&west) }),
        ("version", Hello { version_min: 0, version_max: 0, ..hello(&west) }),
        ("other_federation", Hello { federation: vec![1; 32], ..hello(&west) }),
        ("other_federation", Hello { federation: Vec::new(), ..hello(&west) }),
        ("cluster_id", Hello { cluster: east.id().as_bytes().to_vec(), ..hello(&west) }),
        ("renews", Hello { renews: vec![vec![0; 32]; 65], ..hello(&west) }),
        ("renews", Hello { renews: vec![vec![0; 31]], ..hello(&west) }),
    ];
    for (reason, hello) in table {
        let connection = connect(&west, &east).await;
        let bytes = wire::encode(Frame::Hello(hello.clone())).expect("fits");
        assert_eq!(refused(&connection, &bytes, false).await.0, reason, "{hello:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_says_nothing_is_let_go() {
    let patient = crate::Limits { handshake: Duration::from_millis(300), ..limits() };
    let east = Cluster::open(Disk::new("east"), Setup { limits: patient, ..Setup::default() }).await;
    let west = Cluster::open(Disk::new("west"), Setup::outbound_only()).await;
    west.join(&east).await;
    west.linked(&east).await;
    let silent = connect(&west, &east).await;
    assert_eq!(closed(&silent).await, "timed_out");
    let dribbling = connect(&west, &east).await;
    assert_eq!(refused(&dribbling, &[0, 0], false).await.0, "timed_out");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_it_is_greeted_a_peer_has_64_streams() {
    let (east, west) = pair().await;
    let connection = connect(&west, &east).await;
    let mut held = Vec::new();
    for _ in 0..64 {
        held.push(tokio::time::timeout(SOON, connection.open_bi()).await.expect("in time").expect("a stream"));
    }
    let next = tokio::time::timeout(Duration::from_millis(200), connection.open_bi()).await;
    assert!(next.is_err(), "the 65th waits");
    let one_way = tokio::time::timeout(Duration::from_millis(200), connection.open_uni()).await;
    assert!(one_way.is_err(), "no protocol of ours has these");
}

/// A greeted connection of west's, by hand.
async fn greeted(west: &Cluster, east: &Cluster) -> (quinn::Connection, (quinn::SendStream, quinn::RecvStream)) {
    let connection = connect(west, east).await;
    let mut control = connection.open_bi().await.expect("stream");
    wire::write(&mut control.0, Frame::Hello(hello(west))).await.expect("sent");
    let answer = wire::read(&mut control.1, wire::FRAME_BYTES_MAX).await.expect("answer");
    assert!(matches!(answer, Frame::HelloAck(_)), "{answer:?}");
    (connection, control)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_at_the_first_frame_that_does_not_belong() {
    let (east, west) = pair().await;
    // On the control stream.
    let table: Vec<(&str, Frame)> = vec![
        ("frame_unexpected", Frame::Hello(hello(&west))),
        ("frame_unexpected", Frame::OpenTunnel(OpenTunnel {})),
        ("connection_id", Frame::Denied(proto::federation::Denied { connection: vec![1; 3], ..Default::default() })),
        ("connection_id", Frame::Extend(proto::federation::Extend { connection: Vec::new(), header: Vec::new() })),
    ];
    for (reason, frame) in table {
        let (connection, mut control) = greeted(&west, &east).await;
        wire::write(&mut control.0, frame).await.expect("sent");
        assert_eq!(closed(&connection).await, reason);
    }
    // On a stream of its own.
    for (reason, bytes) in [
        ("frame_oversized", vec![0, 1, 0, 0]),
        ("frame_malformed", vec![0, 0, 0, 2, 0xff, 0xff]),
        ("frame_unexpected", wire::encode(Frame::Hello(hello(&west))).expect("fits")),
    ] {
        let (connection, _control) = greeted(&west, &east).await;
        let (mut send, _receive) = connection.open_bi().await.expect("stream");
        send.write_all(&bytes).await.expect("sent");
        assert_eq!(closed(&connection).await, reason, "{bytes:?}");
    }
    // A second replication stream.
    let (connection, _control) = greeted(&west, &east).await;
    let mut streams = Vec::new();
    for _ in 0..2 {
        let (mut send, receive) = connection.open_bi().await.expect("stream");
        wire::write(&mut send, Frame::OpenReplication(OpenReplication {})).await.expect("sent");
        streams.push((send, receive));
    }
    assert_eq!(closed(&connection).await, "frame_unexpected");
}

/// A greeted connection of west's with its replication stream open.
async fn replicating(
    west: &Cluster,
    east: &Cluster,
) -> (quinn::Connection, (quinn::SendStream, quinn::RecvStream), (quinn::SendStream, quinn::RecvStream)) {
    let (connection, control) = greeted(west, east).await;
    let mut replication = connection.open_bi().await.expect("stream");
    wire::write(&mut replication.0, Frame::OpenReplication(OpenReplication {})).await.expect("sent");
    (connection, control, replication)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_record_ends_the_session_and_is_not_kept() {
    let (east, west) = pair().await;
    west.allow("genuine").await;
    east.holds("genuine").await;
    let before = east.link.records().borrow().len();
    let genuine = west.link.records().borrow().last().expect("records").raw().to_vec();
    let mut forged = genuine.clone();
    *forged.last_mut().expect("bytes") ^= 1;
    let (connection, _control, mut replication) = replicating(&west, &east).await;
    let frame = Frame::Records(Records { envelopes: vec![genuine, forged] });
    wire::write(&mut replication.0, frame).await.expect("sent");
    assert_eq!(closed(&connection).await, "forged_record");
    // What cannot be read at all is left out, and the session goes on.
    let (connection, _control, mut replication) = replicating(&west, &east).await;
    let frame = Frame::Records(Records { envelopes: vec![vec![0xff; 40], Vec::new()] });
    wire::write(&mut replication.0, frame).await.expect("sent");
    let vector = Frame::Vector(proto::federation::Vector::default());
    wire::write(&mut replication.0, vector).await.expect("sent");
    // It answers the vector, so it took both frames.
    let answered = async {
        loop {
            if let Frame::Records(records) = wire::read(&mut replication.1, wire::FRAME_BYTES_MAX).await.expect("frame")
            {
                break records.envelopes.len();
            }
        }
    };
    assert!(tokio::time::timeout(SOON, answered).await.expect("in time") >= before);
    assert!(connection.close_reason().is_none());
    assert_eq!(east.link.records().borrow().len(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_records_that_are_held_already_ends_the_session() {
    let patient = crate::Limits { retired_grace: SOON, ..limits() };
    let east = Cluster::open(Disk::new("east"), Setup { limits: patient, ..Setup::default() }).await;
    let west = Cluster::open(Disk::new("west"), Setup::outbound_only()).await;
    west.join(&east).await;
    west.linked(&east).await;
    west.allow("genuine").await;
    east.holds("genuine").await;
    let before = east.link.records().borrow().len();
    let genuine = west.link.records().borrow().last().expect("records").raw().to_vec();
    let (connection, _control, mut replication) = replicating(&west, &east).await;
    let flood = async {
        // Five bursts' worth at most: it is over long before.
        for _ in 0..60 {
            let frame = Frame::Records(Records { envelopes: vec![genuine.clone(); 1_000] });
            if wire::write(&mut replication.0, frame).await.is_err() {
                break;
            }
        }
        closed(&connection).await
    };
    assert_eq!(tokio::time::timeout(SOON, flood).await.expect("in time"), "record_budget");
    assert_eq!(east.link.records().borrow().len(), before);
}

/// A receipt of west's own, signed by whom it may be.
fn receipt(west: &Cluster, change: impl FnOnce(&mut federation_model::Receipt)) -> proto::federation::Receipt {
    let mut receipt = federation_model::Receipt {
        federation: west.link.snapshot().borrow().as_ref().expect("some").federation,
        member: west.id(),
        number: now().as_millis() + 3_600_000,
        at: now(),
        whole: true,
        law: [((west.id(), 1), u64::MAX)].into(),
        neighbours: Default::default(),
    };
    change(&mut receipt);
    let enforced = proto::convert::encode_receipt(&receipt);
    let signature = west.disk.signer.sign_receipt(&enforced).expect("signed").to_vec();
    proto::federation::Receipt { enforced, signature }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receipt_in_anothers_name_ends_the_session_and_counts_for_nothing() {
    let (east, west) = pair().await;
    east.allow("rule").await;
    let record = east.link.records().borrow().last().expect("records").id();
    let east_id = east.id();
    let mut forged = receipt(&west, |_| {});
    forged.signature[7] ^= 1;
    let table = [
        ("forged_receipt", forged),
        ("forged_receipt", receipt(&west, |receipt| receipt.member = east_id)),
        ("receipt", proto::federation::Receipt { enforced: vec![0xff; 9], signature: vec![0; 64] }),
        ("receipt", proto::federation::Receipt { enforced: vec![0; 31 * 1024], signature: vec![0; 64] }),
    ];
    for (reason, frame) in table {
        let (connection, mut control) = greeted(&west, &east).await;
        wire::write(&mut control.0, Frame::Receipt(frame)).await.expect("sent");
        assert_eq!(closed(&connection).await, reason);
    }
    // Of a member that nothing admits, and of another federation: passed over.
    let stranger = federation_model::ClusterId::from_digest(federation_model::Digest([9; 32]));
    let (connection, mut control) = greeted(&west, &east).await;
    let other = federation_model::FederationId::from_digest(federation_model::Digest([9; 32]));
    let passed_over = [
        receipt(&west, |receipt| receipt.member = stranger),
        receipt(&west, |receipt| {
            receipt.federation = other;
            receipt.law = [((east_id, 1), u64::MAX)].into();
        }),
    ];
    for frame in passed_over {
        wire::write(&mut control.0, Frame::Receipt(frame)).await.expect("sent");
    }
    // West's own word comes behind them, and is the only one that counts.
    let confirmed = receipt(&west, |receipt| receipt.law = [((east_id, record.epoch), record.seq)].into());
    wire::write(&mut control.0, Frame::Receipt(confirmed)).await.expect("sent");
    until("west confirms", || east.link.enforcement(&record).behind.is_empty()).await;
    assert_eq!(east.link.enforcement(&record).by.len(), 2);
    assert!(connection.close_reason().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_envelopes_or_a_wrong_vector_end_the_session() {
    let (east, west) = pair().await;
    let log = proto::federation::Log { writer: vec![1; 3], ..Default::default() };
    let table: Vec<(&str, Frame)> = vec![
        ("too_many_envelopes", Frame::Records(Records { envelopes: vec![Vec::new(); wire::ENVELOPES_MAX + 1] })),
        ("vector", Frame::Vector(proto::federation::Vector { logs: vec![log], ..Default::default() })),
        ("frame_unexpected", Frame::OpenTunnel(OpenTunnel {})),
    ];
    for (reason, frame) in table {
        let (connection, _control, mut replication) = replicating(&west, &east).await;
        wire::write(&mut replication.0, frame).await.expect("sent");
        assert_eq!(closed(&connection).await, reason);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_gets_no_session_even_while_the_door_is_open_to_joiners() {
    let (east, _west) = pair().await;
    let _token = east.token_for("north").await;
    for disk in [Disk::new("mallory"), Disk::with_domain("mallory", "west.mesh.internal"), Disk::new("west")] {
        let live = LiveSvid::new();
        live.set(disk.svid(Duration::from_secs(600)));
        let verifier = east.link.shared.verifier.clone();
        let tls = tls::session_client(&live, &verifier, east.disk.domain.clone()).expect("config");
        let config = endpoint::client_config(tls, endpoint::transport(&limits())).expect("config");
        let socket = endpoint::dialling().expect("socket");
        let connecting = socket.connect_with(config, east.address(), endpoint::SERVER_NAME).expect("dials");
        // Known domains fail in the handshake, an unknown one at the greeting: neither gets a session.
        if let Ok(connection) = connecting.await {
            if let Ok((mut send, mut receive)) = connection.open_bi().await {
                let federation = east.link.snapshot().borrow().as_ref().expect("some").federation;
                let hello = Hello {
                    version_min: 1,
                    version_max: 1,
                    federation: federation.as_bytes().to_vec(),
                    cluster: disk.id().as_bytes().to_vec(),
                    ..Hello::default()
                };
                let _ = wire::write(&mut send, Frame::Hello(hello)).await;
                let answer = wire::read(&mut receive, wire::FRAME_BYTES_MAX).await;
                assert!(!matches!(answer, Ok(Frame::HelloAck(_))), "{answer:?}");
            }
            tokio::time::timeout(SOON, connection.closed()).await.expect("closed");
        }
        assert!(east.link.session_peer(disk.id()).is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_cannot_renew_what_another_dialled() {
    let (east, west) = pair().await;
    let north = Cluster::open(Disk::new("north"), Setup::outbound_only()).await;
    north.join(&east).await;
    east.linked(&north).await;
    let of_north = east.link.shared.registry.preferred(&north.id()).expect("session");
    let before = of_north.deadline();
    // West knows the value somehow, and stands for it.
    let connection = connect(&west, &east).await;
    let (mut send, mut receive) = connection.open_bi().await.expect("stream");
    let claiming = Hello { renews: vec![of_north.exporter.to_vec()], ..hello(&west) };
    wire::write(&mut send, Frame::Hello(claiming)).await.expect("sent");
    assert!(matches!(wire::read(&mut receive, wire::FRAME_BYTES_MAX).await, Ok(Frame::HelloAck(_))));
    assert_eq!(of_north.deadline(), before);
    until("north's session is as it was", || of_north.connection.close_reason().is_none()).await;
}
