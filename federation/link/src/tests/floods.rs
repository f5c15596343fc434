//! Strangers who come in numbers: half-open handshakes, addresses that are not theirs, guesses. They use up their own
//! budget, and what lives or comes honestly does not notice.

use std::{future::Future, net::SocketAddr, time::Duration};

use federation_identity::{LiveSvid, tls};
use federation_model::{JoinToken, TokenId, TokenSecret};
use tokio::{net::UdpSocket, time::Instant};

use super::joining::{Joiner, is_generic, token};
use crate::{
    Limits, endpoint,
    testing::{Cluster, Disk, Setup, limits},
};

/// The first two datagrams of each of `count` clients, which hold the ClientHello: from then on the clients are silent.
async fn first_flights(count: usize) -> Vec<[Vec<u8>; 2]> {
    let live = LiveSvid::new();
    live.set(Disk::new("west").svid(Duration::from_secs(600)));
    let pin = federation_model::Digest([1; 32]);
    let tls = tls::join_client(&live, pin, "east.mesh.internal".parse().expect("a domain")).expect("config");
    let config = endpoint::client_config(tls, endpoint::transport(&limits())).expect("config");
    let clients = endpoint::dialling().expect("a socket");
    let mut flights = Vec::new();
    for _ in 0..count {
        // Each to a socket of its own: what a client says later goes nowhere.
        let sink = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let to = sink.local_addr().expect("bound");
        let _connecting = clients.connect_with(config.clone(), to, endpoint::SERVER_NAME).expect("dials");
        let mut flight = [vec![0; 2_000], vec![0; 2_000]];
        for datagram in &mut flight {
            let (length, _) = sink.recv_from(datagram).await.expect("received");
            datagram.truncate(length);
            assert!(is_initial(datagram), "{:02x}", datagram[0]);
        }
        flights.push(flight);
    }
    flights
}

/// A long header of type Initial (RFC 9000, 17.2.2).
fn is_initial(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0xf0 == 0xc0)
}

/// A long header of type Retry (RFC 9000, 17.2.5).
fn is_retry(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0xf0 == 0xf0)
}

/// Another host, as far as an edge on loopback can tell.
const ATTACKER: &str = "127.0.0.2:0";

async fn elsewhere() -> UdpSocket {
    UdpSocket::bind(ATTACKER).await.expect("loopback has many addresses")
}

/// A handshake from a given address, as a joiner makes it.
async fn dial_from(address: &str, issuer: &Cluster, token: &JoinToken) -> Result<(), quinn::ConnectionError> {
    let live = LiveSvid::new();
    live.set(Disk::new("west").svid(Duration::from_secs(600)));
    let tls = tls::join_client(&live, token.issuer_pin, token.issuer_trust_domain.clone()).expect("config");
    let config = endpoint::client_config(tls, endpoint::transport(&limits())).expect("config");
    let client = quinn::Endpoint::client(address.parse().expect("an address")).expect("a socket");
    let dialled = client.connect_with(config, issuer.address(), endpoint::SERVER_NAME).expect("dials").await;
    dialled.map(|connection| connection.close(0_u32.into(), b"seen"))
}

async fn until_ok<F: Future<Output = Result<(), quinn::ConnectionError>>>(attempt: impl Fn() -> F) {
    let deadline = Instant::now() + crate::testing::SOON;
    while let Err(error) = attempt().await {
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What comes to a socket until nothing came for `quiet`.
async fn answers(socket: &UdpSocket, quiet: Duration) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut buffer = vec![0; 2_000];
    while let Ok(received) = tokio::time::timeout(quiet, socket.recv_from(&mut buffer)).await {
        all.push(buffer[..received.expect("received").0].to_vec());
    }
    all
}

async fn east(limits: Limits) -> (Cluster, SocketAddr) {
    let east = Cluster::open(Disk::new("east"), Setup { limits, ..Setup::default() }).await;
    let address = east.address();
    (east, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_handshakes_use_up_the_budget_of_their_own_address_and_no_other() {
    let handshake = Duration::from_secs(3);
    let (east, address) = east(Limits { pending_per_address_max: 4, handshake, ..limits() }).await;
    let token = token(&east, "west").await;
    let attackers = elsewhere().await;
    let flights = first_flights(40).await;
    let began = Instant::now();
    for [datagram, _] in &flights {
        attackers.send_to(datagram, address).await.expect("sent");
    }
    // Their own address has no place left for an honest one.
    let deadline = Instant::now() + handshake;
    while dial_from(ATTACKER, &east, &token).await.is_ok() {
        assert!(Instant::now() < deadline, "its budget is not used up");
    }
    // Who comes from another address is served as if nothing were.
    let asked = Instant::now();
    let joiner = Joiner::dial(Disk::new("west"), &east, &token).await;
    joiner.ask(joiner.request(&token)).await.expect("admitted");
    assert!(began.elapsed() < handshake, "the half-open ones must be there still: {:?}", began.elapsed());
    assert!(asked.elapsed() < handshake / 2, "{:?}", asked.elapsed());
    // And there is room again once their time is up.
    until_ok(|| dial_from(ATTACKER, &east, &token)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_never_answers_is_sent_at_most_three_times_what_came_from_it_and_a_datagram() {
    const CLIENTS: usize = 3;
    let (_east, address) = east(Limits { handshake: Duration::from_secs(2), ..limits() }).await;
    let victim = elsewhere().await;
    let mut sent = 0;
    for datagram in first_flights(CLIENTS).await.as_flattened() {
        victim.send_to(datagram, address).await.expect("sent");
        sent += datagram.len();
    }
    // Longer than the handshake may take, repetitions and all.
    let seen = answers(&victim, Duration::from_secs(3)).await;
    let received: usize = seen.iter().map(Vec::len).sum();
    assert!(received > sent, "{received} bytes for {sent}: with its certificates it has more to say");
    // RFC 9000, 8.1 says three times; quinn lets whoever has a byte of that left fill a datagram with it.
    let most = 3 * sent + CLIENTS * 1_200;
    assert!(received <= most, "{received} bytes for {sent}, {most} may be");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_an_address_has_to_prove_itself_before_anything_is_kept_for_it() {
    let (east, address) = east(Limits { retry_above: 0, ..limits() }).await;
    let victim = elsewhere().await;
    let flights = first_flights(20).await;
    let mut sent = 0;
    for [datagram, _] in &flights {
        victim.send_to(datagram, address).await.expect("sent");
        sent += datagram.len();
    }
    let received = answers(&victim, Duration::from_millis(1_500)).await;
    // Once, and never again: there is nobody there who would repeat it.
    assert_eq!(received.len(), flights.len());
    assert!(received.iter().all(|datagram| is_retry(datagram)), "something else than a Retry");
    let bytes: usize = received.iter().map(Vec::len).sum();
    assert!(4 * bytes < sent, "{bytes} bytes for {sent}");
    // Who is where it says pays a round trip.
    let token = token(&east, "west").await;
    let joiner = Joiner::dial(Disk::new("west"), &east, &token).await;
    joiner.ask(joiner.request(&token)).await.expect("admitted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guesses_are_bounded_by_the_second_hear_one_of_two_words_and_keep_no_session_from_living() {
    const GUESSES: usize = 240;
    const PER_SECOND: u32 = 20;
    let (east, _) = east(Limits { joins_per_second: PER_SECOND, ..limits() }).await;
    let west = Cluster::open(Disk::new("west"), Setup::outbound_only()).await;
    west.join(&east).await;
    west.linked(&east).await;
    let good = token(&east, "north").await;
    let session = west.link.session_peer(east.id()).expect("linked");

    let began = Instant::now();
    let (mut judged, mut busy) = (0, 0);
    for batch in 0..GUESSES / 24 {
        let mut asking = tokio::task::JoinSet::new();
        for number in 0..24_u8 {
            let mut guess = good.clone();
            guess.id = TokenId([number; 16]);
            guess.secret = TokenSecret([batch as u8; 32]);
            let joiner = Joiner::dial(Disk::with_domain("north", &format!("d{number}.test")), &east, &guess).await;
            let request = joiner.request(&guess);
            asking.spawn(async move { joiner.ask(request).await });
        }
        for outcome in asking.join_all().await {
            match outcome {
                Ok(_) => panic!("a guess was right"),
                Err(refused) if is_generic(&refused) => judged += 1,
                Err((reason, _)) => {
                    assert_eq!(reason, "busy");
                    busy += 1;
                }
            }
        }
    }
    let allowed = PER_SECOND as usize + (began.elapsed().as_secs_f64() * f64::from(PER_SECOND)) as usize + 1;
    assert!(judged <= allowed, "{judged} guesses were judged, {allowed} may be");
    assert_eq!(judged + busy, GUESSES);
    assert!(busy > 0, "{judged} were judged and none turned away");
    assert_eq!(west.link.session_peer(east.id()), Some(session), "a session had to be renewed meanwhile");
    // The token that was not guessed is good still, once there is a turn again.
    let deadline = Instant::now() + crate::testing::SOON;
    loop {
        let joiner = Joiner::dial(Disk::new("north"), &east, &good).await;
        match joiner.ask(joiner.request(&good)).await {
            Ok(_) => break,
            Err((reason, _)) => assert!(reason == "busy" && Instant::now() < deadline, "{reason}"),
        }
    }
}
