//! Both sides over a real socket pair, the signer on a thread of its own.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    thread::JoinHandle,
};

use federation_model::{ReplicationKey, SpiffeId};
use nix::sys::socket::{MsgFlags, recv, send};
use prost::Message;

use super::{
    wire::{Answer, Ask, Nothing, Reply, Request, Rotate, Sealed, SvidRequest, Why},
    *,
};
use crate::{
    IssueError, LocalSigner, RotationStage, RotationStep, Signer, SvidKey, now,
    seal::{Kek, SealError, UnsealError, seal_to},
};

const KEK: [u8; 32] = *b"a key that is only for the tests";

fn west() -> Server {
    Server::new(Kek::from_bytes(KEK), "west.mesh.internal".parse().expect("domain"), "west".parse().expect("name"))
}

fn remote(end: OwnedFd) -> RemoteSigner {
    RemoteSigner::new(end, "west.mesh.internal".parse().expect("domain"), "west".parse().expect("name"))
        .expect("remote")
}

/// Serves the end until everybody else has closed the other.
fn serve(end: &OwnedFd) -> JoinHandle<io::Result<()>> {
    let end = end.try_clone().expect("clone");
    std::thread::spawn(move || west().serve(end.as_fd()))
}

fn pair() -> (RemoteSigner, JoinHandle<io::Result<()>>) {
    let (edge, signer) = channel().expect("channel");
    (remote(edge), serve(&signer))
}

fn web() -> SpiffeId {
    "spiffe://west.mesh.internal/ns/shop/sa/web".parse().expect("id")
}

#[test]
fn a_signer_apart_does_what_one_in_this_process_does() {
    let (remote, served) = pair();
    let (authority, sealed) = remote.make().expect("made");
    assert_eq!(remote.open(&sealed).expect("opened"), authority);
    let key = SvidKey::generate();
    let issued = remote.sign_svid(&web(), &key.csr(), Duration::from_secs(3600), now()).expect("issued");
    assert_eq!(issued.root, authority.candidate().root);
    assert!(crate::Svid::assemble(key, issued.full_chain()).is_ok());

    let signature = remote.sign_record(b"record").expect("signed");
    let ReplicationKey(public) = authority.candidate().replication_key;
    let verifying = aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::ED25519, public);
    verifying.verify(&crate::record::signed_bytes(b"record"), &signature).expect("the replication key's");

    let secret = seal_to(&authority.candidate().sealing_key, b"grant", b"secret").expect("sealed");
    assert_eq!(remote.unseal(b"grant", &secret).expect("opened").as_slice(), b"secret");
    assert_eq!(remote.unseal(b"other", &secret), Err(UnsealError::Seal(SealError::Damaged)));

    let derived = remote.start().expect("derived");
    assert_eq!(*derived.store_mac, *Kek::from_bytes(KEK).derive("hanse-store-mac-v1"), "existing stores stay readable");
    assert!(Kek::from_bytes(*derived.token_seal).open(b"hanse-cluster-keys-v1", &sealed).is_err());
    assert!(Kek::from_bytes(*derived.store_mac).open(b"hanse-cluster-keys-v1", &sealed).is_err());
    drop(remote);
    served.join().expect("no panic").expect("ends with its edge");
}

#[test]
fn refusals_of_a_signer_apart_are_those_of_one_in_this_process() {
    let (remote, _served) = pair();
    remote.make().expect("made");
    let csr = SvidKey::generate().csr();
    let reason = |id: &str, csr: &[u8], ttl: u64| {
        let id = id.parse().expect("id");
        remote.sign_svid(&id, csr, Duration::from_secs(ttl), now()).expect_err("refused").reason()
    };
    assert_eq!(reason("spiffe://west.mesh.internal/hanse/edge/east", &csr, 60), "foreign_edge");
    assert_eq!(reason("spiffe://east.mesh.internal/ns/a/sa/b", &csr, 60), "foreign_domain");
    assert_eq!(reason("spiffe://west.mesh.internal/user/ada", &csr, 60), "role");
    assert_eq!(reason("spiffe://west.mesh.internal/ns/a/sa/b", &csr, 24 * 3600 + 1), "ttl");
    assert_eq!(reason("spiffe://west.mesh.internal/ns/a/sa/b", b"no request", 60), "csr_malformed");
}

#[test]
fn a_signer_started_again_is_given_the_keys_that_the_one_before_held() {
    let (edge, signer) = channel().expect("channel");
    let remote = remote(edge.try_clone().expect("clone"));
    let first = std::thread::spawn({
        let end = signer.try_clone().expect("clone");
        move || {
            let mut server = west();
            // Makes the keys and then dies with the next request in its hands.
            let mut buffer = vec![0; MESSAGE_BYTES_MAX];
            let length = recv(end.as_raw_fd(), &mut buffer, MsgFlags::empty()).expect("a request");
            let reply = server.answer(&buffer[..length], monotonic());
            send(end.as_raw_fd(), &reply, MsgFlags::empty()).expect("sent");
            recv(end.as_raw_fd(), &mut buffer, MsgFlags::empty()).expect("another request");
        }
    });
    let (_, sealed) = remote.make().expect("made");
    let restarted = std::thread::spawn(move || {
        first.join().expect("no panic");
        serve(&signer)
    });
    let signature = remote.sign_record(b"record").expect("the caller notices a wait and nothing else");
    remote.open(&sealed).expect("opened");
    assert_eq!(remote.sign_record(b"record"), Ok(signature), "by the same key");
    drop((remote, edge));
    restarted.join().expect("no panic").join().expect("no panic").expect("ends with its edge");
}

#[test]
fn an_edge_started_again_hears_no_answer_that_was_meant_for_the_one_before() {
    let (edge, signer) = channel().expect("channel");
    // What an edge leaves that died while it waited.
    let left = Request { id: 7, ask: Some(Ask::Ping(Nothing {})) }.encode_to_vec();
    send(edge.as_raw_fd(), &left, MsgFlags::empty()).expect("sent");
    let _served = serve(&signer);
    let next = remote(edge);
    assert!(next.make().is_ok());
    assert!(next.sign_record(b"record").is_ok());
}

#[test]
fn a_silent_signer_is_waited_for_once_and_then_refused_at_once() {
    let (edge, _signer) = channel().expect("channel");
    let remote = remote(edge);
    let start = monotonic();
    assert_eq!(remote.ping(), Err(SignerError::Silent));
    let waited = monotonic() - start;
    assert!(waited >= ANSWER_LIMIT && waited < 2 * ANSWER_LIMIT, "{waited:?}");
    let start = monotonic();
    assert_eq!(remote.sign_record(b"record"), Err(SignerError::Silent));
    assert!(monotonic() - start < Duration::from_millis(100));
}

#[test]
fn a_signer_that_is_gone_for_good_is_told_from_a_silent_one() {
    let (edge, signer) = channel().expect("channel");
    drop(signer);
    assert_eq!(remote(edge).ping(), Err(SignerError::Gone));
}

#[test]
fn a_signer_without_keys_signs_nothing() {
    let (remote, _served) = pair();
    assert_eq!(remote.sign_record(b"record"), Err(SignerError::Locked));
    assert_eq!(remote.unseal(b"", b"x"), Err(UnsealError::Signer(SignerError::Locked)));
    let refused = remote.sign_svid(&web(), &SvidKey::generate().csr(), Duration::from_secs(60), now());
    assert!(matches!(refused, Err(IssueError::Signer(SignerError::Locked))));
}

#[test]
fn keys_of_another_kek_or_cluster_or_none_at_all_are_not_opened() {
    let domain = "east.mesh.internal".parse().expect("domain");
    let (_, foreign) = LocalSigner::generate(&domain, &"east".parse().expect("name"), now()).expect("keys");
    let good = keys::seal(&Kek::from_bytes(KEK), &foreign).expect("sealed");
    let other = keys::seal(&Kek::generate(), &foreign).expect("sealed");
    let elsewhere = Kek::from_bytes(KEK).seal(b"hanse-join-token-v1", b"value").expect("sealed");
    let (remote, _served) = pair();
    for (sealed, words) in
        [(good, "another cluster"), (other, "another key"), (elsewhere, "belongs elsewhere"), (Vec::new(), "no form")]
    {
        let error = remote.open(&sealed).expect_err(words);
        assert!(matches!(&error, SignerError::Refused(text) if text.contains(words)), "{error}");
    }
    assert_eq!(remote.sign_record(b"record"), Err(SignerError::Locked));
}

#[test]
fn keys_that_were_sealed_before_there_was_a_signer_apart_still_open() {
    let (local, keys) =
        LocalSigner::generate(&"west.mesh.internal".parse().expect("domain"), &"west".parse().expect("name"), now())
            .expect("keys");
    // The six fields by number, as their first version wrote them.
    let fields: [&[u8]; 6] = [
        &keys.root_key,
        &keys.root_certificate,
        &keys.intermediate_key,
        &keys.intermediate_certificate,
        &keys.replication_key,
        &keys.sealing_key,
    ];
    let mut clear = Vec::new();
    for (field, number) in fields.into_iter().zip(1..) {
        prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, &mut clear);
        prost::encoding::encode_varint(field.len() as u64, &mut clear);
        clear.extend_from_slice(field);
    }
    let sealed = Kek::from_bytes(KEK).seal(b"hanse-cluster-keys-v1", &clear).expect("sealed");
    let (remote, _served) = pair();
    assert_eq!(&remote.open(&sealed).expect("opened"), local.authority());
}

/// What a server says to raw bytes.
fn said(server: &mut Server, bytes: &[u8]) -> (u64, Answer) {
    let reply = Reply::decode(server.answer(bytes, Duration::from_secs(1)).as_slice()).expect("a reply");
    (reply.id, reply.answer.expect("an answer"))
}

fn why(answer: &Answer) -> Option<Why> {
    match answer {
        Answer::Refused(refused) => Why::try_from(refused.why).ok(),
        _ => None,
    }
}

#[test]
fn what_is_no_verb_gets_a_refusal_and_changes_nothing() {
    let mut server = west();
    let unknown = [Request { id: 9, ask: None }.encode_to_vec(), vec![0xf2, 0x03, 0x00]].concat();
    let cases = [(&b""[..], 0), (b"\xff\xff\xff", 0), (&unknown, 9)];
    for (bytes, id) in cases {
        let (replied, answer) = said(&mut server, bytes);
        assert_eq!((replied, why(&answer)), (id, Some(Why::Unreadable)), "{bytes:?}");
    }
    let asks = [
        Ask::SignSvid(SvidRequest { spiffe_id: "no id".into(), ..SvidRequest::default() }),
        Ask::Open(b"no keys".to_vec()),
    ];
    for ask in asks {
        let (_, answer) = said(&mut server, &Request { id: 1, ask: Some(ask) }.encode_to_vec());
        assert_eq!(why(&answer), Some(Why::Denied));
    }
    let ask = Ask::Unseal(Sealed { aad: Vec::new(), sealed: b"x".to_vec() });
    let (_, answer) = said(&mut server, &Request { id: 1, ask: Some(ask) }.encode_to_vec());
    assert_eq!(why(&answer), Some(Why::Locked));
}

#[test]
fn every_verb_has_a_rate_of_its_own_and_recovers() {
    for verb in Verb::ALL {
        let mut server = west();
        let ask = |verb| match verb {
            Verb::Start => Ask::Start(Nothing {}),
            Verb::Make => Ask::Make(Nothing {}),
            Verb::Open => Ask::Open(Vec::new()),
            Verb::SignSvid => Ask::SignSvid(SvidRequest::default()),
            Verb::SignRecord => Ask::SignRecord(Vec::new()),
            Verb::Unseal => Ask::Unseal(Sealed::default()),
            Verb::SignReceipt => Ask::SignReceipt(b"receipt".to_vec()),
            Verb::Ping => Ask::Ping(Nothing {}),
            Verb::Rotate => Ask::Rotate(Rotate::default()),
            Verb::SignBackup => Ask::SignBackup(vec![0; 32]),
        };
        let request = Request { id: 1, ask: Some(ask(verb)) }.encode_to_vec();
        let mut busy = |request: &[u8], at: Duration| {
            let reply = Reply::decode(server.answer(request, at).as_slice()).expect("a reply");
            why(&reply.answer.expect("an answer")) == Some(Why::Busy)
        };
        let at = Duration::from_secs(100);
        let admitted = (0..verb.burst() + 10).filter(|_| !busy(&request, at)).count();
        assert_eq!(admitted, verb.burst() as usize, "{verb}");
        for other in Verb::ALL.into_iter().filter(|other| *other != verb) {
            let request = Request { id: 1, ask: Some(ask(other)) }.encode_to_vec();
            assert!(!busy(&request, at), "{other} suffers from {verb}");
        }
        let later = at + Duration::from_secs(1);
        let admitted = (0..2 * verb.burst()).filter(|_| !busy(&request, later)).count();
        assert!(admitted.abs_diff(verb.per_second() as usize) <= 1, "{verb}: {admitted} after a second");
    }
}

#[test]
fn too_many_requests_are_refused_with_verb_and_rate() {
    let (remote, _served) = pair();
    let refused = (0..2 * Verb::Ping.burst()).find_map(|_| remote.ping().err()).expect("a refusal");
    assert_eq!(refused, SignerError::Busy { verb: Verb::Ping });
    assert_eq!(refused.to_string(), "the signer answers at most 100 ping requests a second: try again in a second");
}

#[test]
fn a_message_that_is_too_long_is_refused_on_both_sides() {
    let (edge, signer) = channel().expect("channel");
    let _served = serve(&signer);
    let long = vec![0; MESSAGE_BYTES_MAX + 1];
    send(edge.as_raw_fd(), &long, MsgFlags::empty()).expect("sent");
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    let length = recv(edge.as_raw_fd(), &mut buffer, MsgFlags::empty()).expect("a reply");
    let reply = Reply::decode(&buffer[..length]).expect("a reply");
    assert_eq!(why(&reply.answer.expect("an answer")), Some(Why::Unreadable));
    let remote = remote(edge);
    remote.make().expect("the signer goes on");
    assert!(matches!(remote.sign_record(&long), Err(SignerError::TooLong { .. })));
    assert!(remote.sign_record(&long[..MESSAGE_BYTES_MAX - 64]).is_ok(), "the longest message passes");
}

#[test]
fn a_rotation_takes_its_steps_apart_and_counts_once_the_keys_are_opened() {
    let (remote, _served) = pair();
    let (before, sealed) = remote.make().expect("made");
    let refused = remote.rotate(RotationStep::TurnOver).expect_err("nothing is prepared");
    assert!(matches!(&refused, SignerError::Refused(why) if why.contains("no next root")), "{refused}");
    let (prepared, kept) = remote.rotate(RotationStep::Prepare).expect("prepared");
    assert_eq!(remote.held(), Some(before.clone()), "until it is opened nothing has changed");
    assert_eq!(remote.open(&kept).expect("opened"), prepared);
    let (turned, kept) = remote.rotate(RotationStep::TurnOver).expect("turned");
    let issued = || {
        let key = SvidKey::generate();
        remote.sign_svid(&web(), &key.csr(), Duration::from_secs(60), now()).expect("issued")
    };
    assert_eq!(issued().chain.len(), 2);
    remote.open(&kept).expect("opened");
    assert_eq!((issued().chain.len(), issued().root), (3, before.candidate().root));
    assert_eq!(turned.stage(), RotationStage::Turned);
    let (retired, kept) = remote.rotate(RotationStep::Retire).expect("retired");
    remote.open(&kept).expect("opened");
    assert_eq!(issued().root, retired.bundle(1).roots[0]);
    assert_eq!(retired.candidate(), before.candidate(), "the cluster is the same");
    remote.open(&sealed).expect("a blob from before any rotation opens");
}

#[test]
fn another_socket_is_no_channel() {
    let (stream, _other) = std::os::unix::net::UnixStream::pair().expect("pair");
    let domain = "west.mesh.internal".parse().expect("domain");
    assert!(RemoteSigner::new(stream.into(), domain, "west".parse().expect("name")).is_err());
}

#[test]
fn a_signature_over_a_record_costs_less_than_100_microseconds() {
    let (remote, _served) = pair();
    remote.make().expect("made");
    let mut took: Vec<Duration> = (0..2_000)
        .map(|_| {
            let start = monotonic();
            remote.sign_record(&[7; 400]).expect("signed");
            monotonic() - start
        })
        .collect();
    took.sort();
    let (p50, p99) = (took[took.len() / 2], took[took.len() * 99 / 100]);
    eprintln!("sign_record over the socket: p50 {p50:?}, p99 {p99:?}");
    // Ten times the figure: tests find mistakes, the bench decides.
    assert!(p50 < Duration::from_millis(1), "p50 {p50:?}");
}
