//! The signer behind its socket: whatever an edge that was broken into asks, it signs nothing of another cluster.

use std::{sync::LazyLock, time::Duration};

use federation_model::{Role, SpiffeId};
use prost::Message;

use super::{
    Server, keys,
    wire::{Answer, Ask, Nothing, Reply, Request, Sealed, SvidRequest},
};
use crate::{
    LocalSigner, SvidKey, csr_key_digest, now,
    seal::{Kek, seal_to},
};

const KEK: [u8; 32] = [5; 32];
const DOMAIN: &str = "west.mesh.internal";

struct Keys {
    sealed: Vec<u8>,
    local: LocalSigner,
    secret: Vec<u8>,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let domain = DOMAIN.parse().expect("a domain");
    let (local, keys) = LocalSigner::generate(&domain, &"west".parse().expect("a name"), now()).expect("keys");
    let sealed = keys::seal(&Kek::from_bytes(KEK), &keys).expect("sealed");
    let secret = seal_to(&local.candidate().sealing_key, b"grant", b"secret").expect("sealed");
    Keys { sealed, local, secret }
});

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let csr = SvidKey::generate().csr();
    let svid = |id: &str| Ask::SignSvid(SvidRequest { spiffe_id: id.into(), csr: csr.clone(), ttl_ms: 60_000 });
    [
        Ask::Ping(Nothing {}),
        Ask::Start(Nothing {}),
        svid(&format!("spiffe://{DOMAIN}/ns/shop/sa/web")),
        svid(&format!("spiffe://{DOMAIN}/hanse/edge/west")),
        svid("spiffe://east.mesh.internal/ns/shop/sa/web"),
        Ask::SignRecord(b"record".to_vec()),
        Ask::SignReceipt(b"receipt".to_vec()),
        Ask::Unseal(Sealed { aad: b"grant".to_vec(), sealed: vec![1; 60] }),
        Ask::Open(vec![1; 80]),
    ]
    .into_iter()
    .map(|ask| Request { id: 7, ask: Some(ask) }.encode_to_vec())
    .collect()
}

/// One request to a signer with its keys open.
pub fn signer(data: &[u8]) {
    let keys = &*KEYS;
    let request = Request::decode(data);
    // Keys that are made anew cost milliseconds and are the vectors' no more.
    if request.as_ref().is_ok_and(|request| matches!(request.ask, Some(Ask::Make(_)))) {
        return;
    }
    let domain = DOMAIN.parse().expect("a domain");
    let mut server = Server::new(Kek::from_bytes(KEK), domain, "west".parse().expect("a name"));
    let open = Request { id: 1, ask: Some(Ask::Open(keys.sealed.clone())) }.encode_to_vec();
    let opened = reply(&server.answer(&open, Duration::ZERO));
    assert!(matches!(opened.answer, Some(Answer::Opened(_))));

    let reply = reply(&server.answer(data, Duration::from_secs(60)));
    let answer = reply.answer.expect("an answer of this version");
    let Ok(Request { id, ask }) = request else {
        assert!(matches!(answer, Answer::Refused(_)), "an answer to no request");
        return;
    };
    assert_eq!(reply.id, id);
    match (ask, answer) {
        (_, Answer::Refused(_))
        | (Some(Ask::Ping(_)), Answer::Pong(_))
        | (Some(Ask::Start(_)), Answer::Started(_))
        | (Some(Ask::SignRecord(_) | Ask::SignReceipt(_)), Answer::Signature(_)) => {}
        (Some(Ask::Open(sealed)), Answer::Opened(_)) => assert_eq!(sealed, keys.sealed, "opened what was never sealed"),
        (Some(Ask::Rotate(rotate)), Answer::Made(_)) => assert_eq!(rotate.sealed, keys.sealed),
        (Some(Ask::Unseal(request)), Answer::Value(_)) => assert_eq!(request.sealed, keys.secret),
        (Some(Ask::SignSvid(request)), Answer::Svid(svid)) => {
            let id: SpiffeId = request.spiffe_id.parse().expect("it was signed");
            assert_eq!(id.trust_domain(), &keys.local.candidate().trust_domain, "signed a name of another domain");
            match id.role() {
                Role::Workload(_) => {}
                Role::Edge => assert_eq!(id.path(), "/hanse/edge/west", "signed another edge"),
                role => panic!("signed {id} as {role:?}"),
            }
            assert!(csr_key_digest(&request.csr).is_ok());
            assert!(svid.not_after_ms - svid.not_before_ms <= crate::LEAF_LIFETIME_MAX.as_millis() as u64);
        }
        _ => panic!("the answer is to something else"),
    }
}

fn reply(bytes: &[u8]) -> Reply {
    Reply::decode(bytes).expect("a reply")
}
