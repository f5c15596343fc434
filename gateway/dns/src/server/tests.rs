//! Real sockets: UDP, TCP, limits and shutdown.

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};

use super::*;
use crate::testing::{fresh, world};

struct Running {
    udp: SocketAddr,
    tcp: SocketAddr,
    addresses: Addresses,
    publish: watch::Sender<Option<Arc<Snapshot>>>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

async fn start(bind: &str) -> Running {
    let (snapshot, addresses) = world();
    let (publish, receiver) = watch::channel(Some(Arc::new(snapshot)));
    let udp = UdpSocket::bind(bind).await.expect("udp");
    let tcp = TcpListener::bind(bind).await.expect("tcp");
    let stop = CancellationToken::new();
    let inputs = Inputs { snapshot: receiver, addresses: addresses.clone(), ages: fresh() };
    let (udp_at, tcp_at) = (udp.local_addr().expect("bound"), tcp.local_addr().expect("bound"));
    let task = tokio::spawn(serve(vec![udp], vec![tcp], inputs, stop.clone()));
    Running { udp: udp_at, tcp: tcp_at, addresses, publish, stop, task }
}

fn question(text: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(99, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(text).expect("a name"), kind));
    message.to_vec().expect("encodes")
}

/// Longer than any answer takes, and only waited for when a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

async fn ask_udp(server: SocketAddr, request: &[u8]) -> Message {
    let socket = UdpSocket::bind((server.ip(), 0)).await.expect("client");
    socket.send_to(request, server).await.expect("sent");
    let mut buffer = [0; 4096];
    let (length, from) = timeout(PATIENCE, socket.recv_from(&mut buffer)).await.expect("in time").expect("an answer");
    assert_eq!(from, server);
    Message::from_vec(&buffer[..length]).expect("decodes")
}

async fn send_tcp(stream: &mut TcpStream, request: &[u8]) {
    let length = u16::try_from(request.len()).expect("fits");
    stream.write_all(&[&length.to_be_bytes(), request].concat()).await.expect("sent");
}

async fn read_tcp(stream: &mut TcpStream) -> Message {
    let length = timeout(PATIENCE, stream.read_u16()).await.expect("in time").expect("a length");
    let mut bytes = vec![0; length.into()];
    stream.read_exact(&mut bytes).await.expect("a message");
    Message::from_vec(&bytes).expect("decodes")
}

/// Reads until the server closes; how much came is what it sent before.
async fn closes(stream: &mut TcpStream) -> usize {
    let mut rest = Vec::new();
    match timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("closed in time") {
        Ok(length) => length,
        // A reset is a close as well.
        Err(_) => rest.len(),
    }
}

#[tokio::test]
async fn answers_over_udp_on_both_families() {
    for bind in ["127.0.0.1:0", "[::1]:0"] {
        let running = start(bind).await;
        let reply = ask_udp(running.udp, &question("payments.billing.west.mesh.internal.", RecordType::A)).await;
        let wanted = running.addresses.address(&"payments.billing.west".parse().expect("a reference"));
        let got = reply.answers.first().map(|record| record.data.clone());
        assert_eq!(got, wanted.map(|address| RData::A(hickory_proto::rr::rdata::A(address))));
    }
}

#[tokio::test]
async fn a_cut_answer_is_whole_over_tcp() {
    let running = start("127.0.0.1:0").await;
    let request = question("mesh.internal.", RecordType::ANY);
    assert!(ask_udp(running.udp, &request).await.metadata.truncation);
    let mut stream = TcpStream::connect(running.tcp).await.expect("connects");
    send_tcp(&mut stream, &request).await;
    assert_eq!(read_tcp(&mut stream).await.answers.len(), 2);
}

#[tokio::test]
async fn several_queries_on_one_connection_are_answered_in_turn() {
    let running = start("127.0.0.1:0").await;
    let mut stream = TcpStream::connect(running.tcp).await.expect("connects");
    for name in ["web.shop.east.mesh.internal.", "api.shop.east.mesh.internal.", "example.com."] {
        send_tcp(&mut stream, &question(name, RecordType::A)).await;
    }
    let codes = [ResponseCode::NoError, ResponseCode::NXDomain, ResponseCode::Refused];
    for code in codes {
        assert_eq!(read_tcp(&mut stream).await.metadata.response_code, code);
    }
    stream.shutdown().await.expect("shut down");
    assert_eq!(closes(&mut stream).await, 0);
}

#[tokio::test]
async fn a_query_in_single_bytes_is_put_together() {
    let running = start("127.0.0.1:0").await;
    let mut stream = TcpStream::connect(running.tcp).await.expect("connects");
    let request = question("web.shop.east.mesh.internal.", RecordType::A);
    stream.set_nodelay(true).expect("no delay");
    for byte in u16::try_from(request.len()).expect("fits").to_be_bytes().iter().chain(&request) {
        stream.write_all(&[*byte]).await.expect("sent");
    }
    assert_eq!(read_tcp(&mut stream).await.answers.len(), 1);
}

#[tokio::test]
async fn a_new_snapshot_is_in_force_at_the_next_query() {
    let running = start("127.0.0.1:0").await;
    let request = question("web.shop.east.mesh.internal.", RecordType::A);
    running.publish.send_replace(None);
    assert_eq!(ask_udp(running.udp, &request).await.metadata.response_code, ResponseCode::ServFail);
    running.publish.send_replace(Some(Arc::new(world().0)));
    assert_eq!(ask_udp(running.udp, &request).await.metadata.response_code, ResponseCode::NoError);
}

#[tokio::test]
async fn rubbish_is_dropped_and_the_next_query_answered() {
    let running = start("127.0.0.1:0").await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("client");
    let mut answer_like = question("web.shop.east.mesh.internal.", RecordType::A);
    answer_like[2] |= 0x80;
    for rubbish in [&b""[..], b"\0", &[0xff; 2000], &answer_like, &[0; 11]] {
        socket.send_to(rubbish, running.udp).await.expect("sent");
    }
    // Datagrams of one socket keep their order on loopback, so what comes back first is the answer to the good one.
    socket.send_to(&question("web.shop.east.mesh.internal.", RecordType::A), running.udp).await.expect("sent");
    let mut buffer = [0; 4096];
    let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.expect("in time").expect("an answer");
    assert_eq!(Message::from_vec(&buffer[..length]).expect("decodes").answers.len(), 1);
}

#[tokio::test]
async fn a_datagram_over_the_bound_is_formerr() {
    let running = start("127.0.0.1:0").await;
    let mut long = question("web.shop.east.mesh.internal.", RecordType::A);
    long.resize(REQUEST_BYTES_MAX * 2, 0);
    assert_eq!(ask_udp(running.udp, &long).await.metadata.response_code, ResponseCode::FormErr);
}

#[tokio::test]
async fn a_connection_that_announces_too_much_or_sends_an_answer_is_closed() {
    let running = start("127.0.0.1:0").await;
    let mut stream = TcpStream::connect(running.tcp).await.expect("connects");
    stream.write_all(&u16::MAX.to_be_bytes()).await.expect("sent");
    assert_eq!(closes(&mut stream).await, 0);

    let mut stream = TcpStream::connect(running.tcp).await.expect("connects");
    let mut answer_like = question("web.shop.east.mesh.internal.", RecordType::A);
    answer_like[2] |= 0x80;
    send_tcp(&mut stream, &answer_like).await;
    assert_eq!(closes(&mut stream).await, 0);

    let mut stream = TcpStream::connect(running.tcp).await.expect("connects");
    stream.write_all(&[0, 40, 1, 2, 3]).await.expect("sent");
    stream.shutdown().await.expect("shut down");
    assert_eq!(closes(&mut stream).await, 0);
}

#[tokio::test]
async fn the_65th_connection_is_closed_and_a_freed_place_is_given_again() {
    let running = start("127.0.0.1:0").await;
    let request = question("web.shop.east.mesh.internal.", RecordType::A);
    let mut held = Vec::new();
    for _ in 0..TCP_CONNECTIONS_MAX {
        let mut stream = TcpStream::connect(running.tcp).await.expect("connects");
        // An answer proves that the place is taken, not merely queued.
        send_tcp(&mut stream, &request).await;
        assert_eq!(read_tcp(&mut stream).await.answers.len(), 1);
        held.push(stream);
    }
    let mut surplus = TcpStream::connect(running.tcp).await.expect("connects");
    assert_eq!(closes(&mut surplus).await, 0);
    // UDP does not mind.
    assert_eq!(ask_udp(running.udp, &request).await.answers.len(), 1);
    let mut last = held.pop().expect("held");
    last.shutdown().await.expect("shut down");
    assert_eq!(closes(&mut last).await, 0);
    // The server frees the place just after it closed, so the first try may come too early.
    let found = timeout(PATIENCE, async {
        loop {
            let mut stream = TcpStream::connect(running.tcp).await.expect("connects");
            let length = u16::try_from(request.len()).expect("fits");
            let sent = stream.write_all(&[&length.to_be_bytes(), &request[..]].concat()).await;
            if sent.is_ok() && stream.read_u16().await.is_ok() {
                return;
            }
        }
    });
    found.await.expect("a place was freed");
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_after_10_seconds_and_a_busy_one_after_60() {
    let (snapshot, addresses) = world();
    let (_publish, receiver) = watch::channel(Some(Arc::new(snapshot)));
    let inputs = Inputs { snapshot: receiver, addresses, ages: fresh() };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("tcp");
    let address = listener.local_addr().expect("bound");
    let mut client = TcpStream::connect(address).await.expect("connects");
    let (server, from) = listener.accept().await.expect("accepted");
    // Part of a query, and then nothing.
    client.write_all(&[0, 40, 1]).await.expect("sent");
    let begun = Instant::now();
    serve_connection(server, from, inputs.clone()).await;
    assert_eq!(begun.elapsed().as_secs(), TCP_IDLE.as_secs());

    let mut client = TcpStream::connect(address).await.expect("connects");
    let (server, from) = listener.accept().await.expect("accepted");
    let busy = async {
        loop {
            send_tcp(&mut client, &question("web.shop.east.mesh.internal.", RecordType::A)).await;
            client.read_u16().await.expect("an answer");
            sleep(TCP_IDLE / 2).await;
        }
    };
    let begun = Instant::now();
    tokio::select! {
        () = busy => {}
        ended = timeout(TCP_LIFETIME, serve_connection(server, from, inputs)) => assert!(ended.is_err()),
    }
    assert_eq!(begun.elapsed(), TCP_LIFETIME);
}

#[tokio::test]
async fn stops_when_told_and_frees_its_sockets() {
    let running = start("127.0.0.1:0").await;
    let mut open = TcpStream::connect(running.tcp).await.expect("connects");
    send_tcp(&mut open, &question("web.shop.east.mesh.internal.", RecordType::A)).await;
    read_tcp(&mut open).await;
    running.stop.cancel();
    timeout(PATIENCE, running.task).await.expect("in time").expect("no panic");
    assert_eq!(closes(&mut open).await, 0);
    UdpSocket::bind(running.udp).await.expect("the port is free");
}

#[tokio::test]
async fn many_clients_at_once_each_get_their_own_answer() {
    let running = start("127.0.0.1:0").await;
    let mut clients = JoinSet::new();
    for number in 0..100_u16 {
        let server = running.udp;
        clients.spawn(async move {
            let mut request = question("web.shop.east.mesh.internal.", RecordType::A);
            request[..2].copy_from_slice(&number.to_be_bytes());
            (number, ask_udp(server, &request).await)
        });
    }
    while let Some(joined) = clients.join_next().await {
        let (number, reply) = joined.expect("no panic");
        assert_eq!((reply.metadata.id, reply.answers.len()), (number, 1));
    }
}
