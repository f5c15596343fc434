//! Tokens: used once, by their joiner, in time; and what everybody else hears.

use std::{collections::BTreeSet, time::Duration};

use federation_identity::{
    LiveSvid,
    join::{ProofKey, joiner_proof},
    now, tls,
};
use federation_model::{BAD_PROOFS_MAX, JoinToken, TokenId, TokenSecret};
use proto::{
    convert::{encode_candidate, join_token_text, parse_join_token},
    federation::{JoinAnswer, JoinRequest},
};

use crate::{
    TokenState, endpoint,
    testing::{Cluster, Disk, Setup, until},
    wire::{self, Frame},
};

/// A joiner that speaks the protocol by hand.
pub(super) struct Joiner {
    disk: Disk,
    connection: quinn::Connection,
    _endpoint: quinn::Endpoint,
}

impl Joiner {
    pub(super) async fn dial(disk: Disk, issuer: &Cluster, token: &JoinToken) -> Self {
        let joiner = Self::try_dial(disk, issuer, token).await.expect("handshake");
        // In TLS 1.3 the client is done first: whoever comes to know more members meanwhile may judge it otherwise.
        until("the issuer judged the handshake", || joiner.connection.stats().frame_rx.handshake_done > 0).await;
        joiner
    }

    pub(super) async fn try_dial(
        disk: Disk,
        issuer: &Cluster,
        token: &JoinToken,
    ) -> Result<Self, quinn::ConnectionError> {
        let live = LiveSvid::new();
        live.set(disk.svid(Duration::from_secs(600)));
        let tls = tls::join_client(&live, token.issuer_pin, token.issuer_trust_domain.clone()).expect("config");
        let transport = endpoint::transport(&crate::testing::limits());
        let config = endpoint::client_config(tls, transport).expect("config");
        let socket = endpoint::dialling().expect("socket");
        let connection = socket.connect_with(config, issuer.address(), endpoint::SERVER_NAME).expect("dials").await?;
        Ok(Self { disk, connection, _endpoint: socket })
    }

    pub(super) fn request(&self, token: &JoinToken) -> JoinRequest {
        let candidate = encode_candidate(&self.disk.signer.candidate());
        let exporter = endpoint::exporter(&self.connection, tls::EXPORTER_JOIN).expect("exporter");
        let key = ProofKey::derive(&token.secret);
        JoinRequest {
            version_min: 1,
            version_max: 1,
            token_id: token.id.0.to_vec(),
            proof: joiner_proof(&key, &exporter, &candidate, &token.issuer_pin).to_vec(),
            candidate,
            now_ms: now().as_millis(),
        }
    }

    /// Sends a request; the answer, or reason and detail of the refusal.
    pub(super) async fn ask(&self, request: JoinRequest) -> Result<JoinAnswer, (String, String)> {
        let (mut send, mut receive) = self.connection.open_bi().await.expect("stream");
        wire::write(&mut send, Frame::JoinRequest(request)).await.expect("sent");
        match wire::read(&mut receive, wire::FRAME_BYTES_MAX).await.expect("an answer") {
            Frame::JoinAnswer(answer) => {
                let Frame::Records(records) = wire::read(&mut receive, wire::FRAME_BYTES_MAX).await.expect("records")
                else {
                    panic!("records")
                };
                assert_eq!(records.envelopes.len(), answer.envelopes as usize);
                Ok(answer)
            }
            Frame::Refusal(refusal) => Err((refusal.reason, refusal.detail)),
            other => panic!("{}", wire::name(&other)),
        }
    }
}

/// One attempt of `disk` with `token`, as it should be made.
async fn try_join(disk: Disk, issuer: &Cluster, token: &JoinToken) -> Result<JoinAnswer, (String, String)> {
    let joiner = Joiner::dial(disk, issuer, token).await;
    let request = joiner.request(token);
    joiner.ask(request).await
}

pub(super) async fn token(issuer: &Cluster, joiner: &str) -> JoinToken {
    parse_join_token(&issuer.token_for(joiner).await).expect("a token")
}

async fn state(issuer: &Cluster, token: &JoinToken) -> TokenState {
    let tokens = issuer.link.tokens().await.expect("tokens");
    tokens.into_iter().find(|held| held.id == token.id).expect("listed").state
}

const GENERIC: (&str, &str) = ("invalid_token", "the token is not valid here");

pub(super) fn is_generic(refused: &(String, String)) -> bool {
    (refused.0.as_str(), refused.1.as_str()) == GENERIC
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_64_that_race_for_one_token_exactly_one_wins() {
    let east = Cluster::start("east").await;
    let token = token(&east, "west").await;
    let mut joiners = Vec::new();
    for _ in 0..64 {
        joiners.push(Joiner::dial(Disk::new("west"), &east, &token).await);
    }
    let mut asking = tokio::task::JoinSet::new();
    for joiner in joiners {
        let request = joiner.request(&token);
        asking.spawn(async move { joiner.ask(request).await });
    }
    let outcomes = asking.join_all().await;
    let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(won, 1);
    let reasons: BTreeSet<&str> =
        outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).map(|(reason, _)| reason.as_str()).collect();
    assert_eq!(reasons, BTreeSet::from(["token_used"]));
    let held = east.link.snapshot().borrow().clone().expect("some");
    assert_eq!(held.members.len(), 2, "one admission, in one write with the token's use");
    assert!(matches!(state(&east, &token).await, TokenState::Used(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tokens_have_one_winner_each() {
    let east = Cluster::start("east").await;
    for round in 0..8 {
        let name = format!("west{round}");
        let token = token(&east, &name).await;
        let (mut joiners, mut asking) = (Vec::new(), tokio::task::JoinSet::new());
        for _ in 0..6 {
            joiners.push(Joiner::dial(Disk::with_domain(&name, &format!("d{round}.test")), &east, &token).await);
        }
        for joiner in joiners {
            let request = joiner.request(&token);
            asking.spawn(async move { joiner.ask(request).await });
        }
        assert_eq!(asking.join_all().await.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_key_may_ask_again_and_gets_the_same_answer() {
    let east = Cluster::start("east").await;
    let token = token(&east, "west").await;
    let west = Disk::new("west");
    let first = try_join(west.clone(), &east, &token).await.expect("admitted");
    let again = try_join(west.clone(), &east, &token).await.expect("the answer was lost, say");
    assert_eq!((first.federation, first.issuer, first.envelopes), (again.federation, again.issuer, again.envelopes));
    let held = east.link.records().borrow().clone();
    let admissions =
        held.iter().filter(|record| matches!(record.value().body, federation_model::Body::Admission(_))).count();
    assert_eq!(admissions, 1);
    // The whole cluster may then come and join with it, and another may not.
    let west = Cluster::open(west, Setup::default()).await;
    west.link.join(&join_token_text(&token)).await.expect("joins");
    west.linked(&east).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replayed_token_is_refused_with_its_reason() {
    let (east, west) = (Cluster::start("east").await, Cluster::start("west").await);
    let text = east.token_for("west").await;
    west.link.join(&text).await.expect("joins");
    let other = Cluster::open(Disk::with_domain("west", "other.test"), Setup::default()).await;
    let error = other.link.join(&text).await.expect_err("used");
    assert_eq!(error.reason(), "token_used", "{error}");
    assert_eq!(other.link.snapshot().borrow().as_ref().expect("own law").members.len(), 1);
    let listed = east.link.tokens().await.expect("tokens");
    assert_eq!((listed[0].refusals, &listed[0].state), (1, &TokenState::Used(west.id())));
    let error = west.link.join(&text).await.expect_err("in a federation");
    assert_eq!(error.reason(), "has_members", "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_bad_proofs_void_a_token_and_every_guess_hears_the_same() {
    let east = Cluster::start("east").await;
    let good = token(&east, "west").await;
    let bad = JoinToken { secret: TokenSecret([7; 32]), ..good.clone() };
    let unknown = JoinToken { id: TokenId([9; 16]), ..good.clone() };
    for _ in 0..BAD_PROOFS_MAX {
        assert_eq!(state(&east, &good).await, TokenState::Open);
        let refused = try_join(Disk::new("west"), &east, &bad).await.expect_err("bad proof");
        assert!(is_generic(&refused), "{refused:?}");
    }
    assert_eq!(state(&east, &good).await, TokenState::Burned);
    for token in [&good, &unknown] {
        let refused = try_join(Disk::new("west"), &east, token).await.expect_err("void or unknown");
        assert!(is_generic(&refused), "{refused:?}");
    }
    let west = Cluster::start("west").await;
    let error = west.link.join(&join_token_text(&good)).await.expect_err("void");
    assert_eq!(error.reason(), "invalid_token", "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_captured_proof_is_worth_nothing_on_another_connection() {
    let east = Cluster::start("east").await;
    let token = token(&east, "west").await;
    let west = Disk::new("west");
    let captured = Joiner::dial(west.clone(), &east, &token).await.request(&token);
    let replayer = Joiner::dial(west, &east, &token).await;
    assert!(is_generic(&replayer.ask(captured).await.expect_err("another exporter")));
    assert_eq!(state(&east, &token).await, TokenState::Open, "one bad proof does not void it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_answers_in_the_issuers_place_is_found_out_before_anything_is_sent() {
    let (east, mallory) = (Cluster::start("east").await, Cluster::start("mallory").await);
    // Mallory has a door open, too, and the token's address leads to it.
    let lure = token(&mallory, "west").await;
    let mut token = token(&east, "west").await;
    token.endpoints.clone_from(&lure.endpoints);
    let west = Cluster::start("west").await;
    let error = west.link.join(&join_token_text(&token)).await.expect_err("not the pinned key");
    assert_eq!(error.reason(), "pin", "{error}");
    // Even under east's name: the pin is of the key.
    let twin = Cluster::open(Disk::with_domain("east", "east.mesh.internal"), Setup::default()).await;
    let lure = parse_join_token(&twin.token_for("west").await).expect("token");
    token.endpoints.clone_from(&lure.endpoints);
    let error = west.link.join(&join_token_text(&token)).await.expect_err("not the pinned key");
    assert_eq!(error.reason(), "pin", "{error}");
    // And the other side: what a man in the middle passes on is bound to another connection.
    let relayed = Joiner::dial(Disk::new("west"), &twin, &lure).await;
    let passed_on = Joiner::dial(Disk::new("west"), &east, &token).await;
    let refused = passed_on.ask(relayed.request(&token)).await.expect_err("bound to the other connection");
    assert!(is_generic(&refused));
    assert_eq!(east.link.snapshot().borrow().as_ref().expect("some").members.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_token_is_refused_on_both_sides_and_its_key_is_gone() {
    let east = Cluster::start("east").await;
    let west_name = "west".parse().expect("name");
    let (text, _) = east.link.issue_token(west_name, Duration::from_secs(1), false).await.expect("issued");
    let parsed = parse_join_token(&text).expect("token");
    // The door stays open for the other one.
    let _open = east.token_for("north").await;
    until("expired", || now() > parsed.expires_at).await;
    let west = Cluster::start("west").await;
    let error = west.link.join(&text).await.expect_err("expired");
    assert_eq!(error.reason(), "token_expired", "{error}");
    assert!(error.to_string().contains("hanse link token west"), "{error}");
    let refused = try_join(Disk::new("west"), &east, &parsed).await.expect_err("expired");
    assert!(is_generic(&refused), "{refused:?}");
    assert_eq!(state(&east, &parsed).await, TokenState::Expired);
    crate::tokens::sweep(&east.link.shared).await.expect("swept");
    let held = crate::tokens::get(&east.link.shared, &parsed.id).await.expect("read").expect("shown");
    assert!(held.token.proof_key.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_was_set_back_revives_no_token() {
    let east = Cluster::start("east").await;
    let token = token(&east, "west").await;
    // As if this process, or one before it, had seen a later time than the clock shows now.
    *crate::registry::lock(&east.link.shared.clock) = token.expires_at.after(Duration::from_secs(1));
    let refused = try_join(Disk::new("west"), &east, &token).await.expect_err("expired");
    assert!(is_generic(&refused));
    crate::tokens::sweep(&east.link.shared).await.expect("swept");
    let disk = east.kill().await;
    let east = Cluster::open(disk, Setup::default()).await;
    assert_eq!(state(&east, &token).await, TokenState::Expired, "the store remembers the time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_for_its_joiner_alone_and_void_once_another_shows_it() {
    let east = Cluster::start("east").await;
    let text = east.token_for("west").await;
    let north = Cluster::start("north").await;
    let error = north.link.join(&text).await.expect_err("not north's");
    assert_eq!(error.reason(), "other_joiner", "{error}");
    let token = parse_join_token(&text).expect("token");
    assert_eq!(state(&east, &token).await, TokenState::Open, "nothing was sent");
    let refused = try_join(Disk::new("north"), &east, &token).await.expect_err("not north's");
    assert_eq!(refused.0, "other_joiner");
    assert_eq!(state(&east, &token).await, TokenState::Burned);
    assert!(is_generic(&try_join(Disk::new("west"), &east, &token).await.expect_err("void")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_cannot_join_itself_or_one_of_its_own_domain() {
    let east = Cluster::start("east").await;
    let error = east.link.join(&east.token_for("west").await).await.expect_err("itself");
    assert_eq!(error.reason(), "own_cluster", "{error}");
    let twin = Cluster::open(Disk::with_domain("twin", "east.mesh.internal"), Setup::default()).await;
    let error = twin.link.join(&east.token_for("twin").await).await.expect_err("same domain");
    assert_eq!(error.reason(), "own_trust_domain", "{error}");
    let issued = east.link.issue_token("east".parse().expect("name"), Duration::from_secs(60), false).await;
    assert_eq!(issued.expect_err("itself").reason(), "own_cluster");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_or_domain_that_is_taken_is_refused_and_named() {
    let east = Cluster::start("east").await;
    let (one, other) = (token(&east, "west").await, token(&east, "west").await);
    let third = token(&east, "north").await;
    // All three pass the handshake as strangers, before any of them is a member.
    let first = Joiner::dial(Disk::new("west"), &east, &one).await;
    let second = Joiner::dial(Disk::with_domain("west", "second.test"), &east, &other).await;
    let in_domain = Joiner::dial(Disk::with_domain("north", "west.mesh.internal"), &east, &third).await;
    first.ask(first.request(&one)).await.expect("admitted");
    let refused = second.ask(second.request(&other)).await.expect_err("name taken");
    assert_eq!(refused.0, "name_taken");
    assert!(refused.1.contains("west"), "{refused:?}");
    let refused = in_domain.ask(in_domain.request(&third)).await.expect_err("domain taken");
    assert_eq!(refused.0, "domain_taken");
    assert!(refused.1.contains("west.mesh.internal"), "{refused:?}");
    assert_eq!(state(&east, &other).await, TokenState::Open, "set up anew, the joiner may still use it");
    // Once the domain is known, not even the handshake passes, and the joiner is told what may be wrong.
    let late = Cluster::open(Disk::with_domain("north", "west.mesh.internal"), Setup::default()).await;
    let error = late.link.join(&join_token_text(&third)).await.expect_err("domain taken");
    assert_eq!(error.reason(), "domain_taken", "{error}");
    assert!(error.to_string().contains("west.mesh.internal"), "{error}");
    let issued = east.link.issue_token("west".parse().expect("name"), Duration::from_secs(60), false).await;
    assert_eq!(issued.expect_err("a member").reason(), "member_already");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_differ_by_more_than_five_minutes_do_not_join() {
    let east = Cluster::start("east").await;
    let token = token(&east, "west").await;
    for skew in [-6 * 60_000_i64, 6 * 60_000] {
        let joiner = Joiner::dial(Disk::new("west"), &east, &token).await;
        let mut request = joiner.request(&token);
        request.now_ms = request.now_ms.saturating_add_signed(skew);
        let refused = joiner.ask(request).await.expect_err("skewed");
        assert_eq!(refused.0, "clock_skew");
        assert!(refused.1.contains("clock"), "{refused:?}");
    }
    assert_eq!(state(&east, &token).await, TokenState::Open, "with the clock set right it still works");
    try_join(Disk::new("west"), &east, &token).await.expect("admitted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_that_is_not_who_the_connection_proves_is_refused() {
    let east = Cluster::start("east").await;
    let token = token(&east, "west").await;
    let joiner = Joiner::dial(Disk::new("west"), &east, &token).await;
    let exporter = endpoint::exporter(&joiner.connection, tls::EXPORTER_JOIN).expect("exporter");
    let proved = |candidate: Vec<u8>| {
        let key = ProofKey::derive(&token.secret);
        let proof = joiner_proof(&key, &exporter, &candidate, &token.issuer_pin).to_vec();
        JoinRequest { candidate, proof, ..joiner.request(&token) }
    };
    // Somebody else's root under the same name.
    let request = proved(encode_candidate(&Disk::new("west").signer.candidate()));
    assert_eq!(joiner.ask(request).await.expect_err("another root").0, "candidate");
    // The right root, but an id that it does not make.
    let joiner = Joiner::dial(joiner.disk.clone(), &east, &token).await;
    let mut candidate = joiner.disk.signer.candidate();
    candidate.id = east.id();
    let exporter = endpoint::exporter(&joiner.connection, tls::EXPORTER_JOIN).expect("exporter");
    let bytes = encode_candidate(&candidate);
    let proof = joiner_proof(&ProofKey::derive(&token.secret), &exporter, &bytes, &token.issuer_pin).to_vec();
    let request = JoinRequest { candidate: bytes, proof, ..joiner.request(&token) };
    assert_eq!(joiner.ask(request).await.expect_err("id of the issuer").0, "own_cluster");
    assert_eq!(east.link.snapshot().borrow().as_ref().expect("some").members.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_passes_the_door_only_while_a_token_is_open() {
    let east = Cluster::start("east").await;
    let token = token(&Cluster::start("other").await, "west").await;
    let own_pin = crate::tokens::own_pin(&east.link.shared).expect("pin");
    let token = JoinToken { issuer_pin: own_pin, issuer_trust_domain: east.disk.domain.clone(), ..token };
    let tried = Joiner::try_dial(Disk::new("west"), &east, &token).await;
    // In TLS 1.3 the client is done before the server has judged it: the refusal may come right after.
    if let Ok(joiner) = tried {
        let closed = tokio::time::timeout(crate::testing::SOON, joiner.connection.closed()).await.expect("closed");
        assert!(matches!(closed, quinn::ConnectionError::ConnectionClosed(_)), "{closed}");
    }
    let _token = east.token_for("west").await;
    let joiner = Joiner::dial(Disk::new("west"), &east, &token).await;
    assert!(is_generic(&joiner.ask(joiner.request(&token)).await.expect_err("not east's token")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_a_federation_that_was_left_are_void() {
    let (east, west) = (Cluster::start("east").await, Cluster::start("west").await);
    let old = west.token_for("north").await;
    west.join(&east).await;
    // Another one keeps west's door open.
    let _open = west.token_for("south").await;
    let north = Cluster::start("north").await;
    let error = north.link.join(&old).await.expect_err("that federation is gone");
    assert_eq!(error.reason(), "invalid_token", "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_token_outlives_its_issuers_restart() {
    let east = Cluster::start("east").await;
    let text = east.token_for("west").await;
    let address = east.address();
    let disk = east.kill().await;
    let east = Cluster::open(disk, Setup { listen: Some(address), ..Setup::default() }).await;
    let west = Cluster::start("west").await;
    west.link.join(&text).await.expect("joins");
    west.linked(&east).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_text_that_was_cut_or_an_issuer_that_is_away_is_said_so() {
    let (east, west) = (Cluster::start("east").await, Cluster::start("west").await);
    let text = east.token_for("west").await;
    let error = west.link.join(text.get(..text.len() - 9).expect("long")).await.expect_err("cut");
    assert!(matches!(error.reason(), "base64" | "content"), "{error}");
    assert_eq!(west.link.join("").await.expect_err("empty").reason(), "empty");
    let mut token = parse_join_token(&text).expect("token");
    let closed = std::net::UdpSocket::bind("127.0.0.1:0").expect("socket");
    token.endpoints = vec![closed.local_addr().expect("bound").to_string().parse().expect("endpoint")];
    let error = west.link.join(&join_token_text(&token)).await.expect_err("nobody there");
    assert_eq!(error.reason(), "unreachable", "{error}");
    assert!(error.to_string().contains(token.endpoints[0].as_str()), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issuing_keeps_its_bounds() {
    let east = Cluster::start("east").await;
    let name: federation_model::ClusterName = "west".parse().expect("name");
    for life in [Duration::ZERO, Duration::from_secs(25 * 3600)] {
        let error = east.link.issue_token(name.clone(), life, false).await.expect_err("bounds");
        assert_eq!(error.reason(), "life");
    }
    for number in 0..federation_model::TOKENS_OPEN_MAX {
        east.token_for(&format!("c{number}")).await;
    }
    let error = east.link.issue_token(name.clone(), Duration::from_secs(60), false).await.expect_err("too many");
    assert_eq!(error.reason(), "too_many");
    let quiet = Cluster::open(Disk::new("quiet"), Setup::outbound_only()).await;
    let error = quiet.link.issue_token(name, Duration::from_secs(60), false).await.expect_err("no door");
    assert_eq!(error.reason(), "no_endpoint");
    let west = Cluster::start("west").await;
    let token = parse_join_token(&east.link.tokens().await.map(|_| String::new()).unwrap_or_default());
    assert!(token.is_err());
    drop(west);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lawmakers_token_makes_a_lawmaker_and_only_one_can_issue_it() {
    let (east, west) = (Cluster::start("east").await, Cluster::start("west").await);
    let life = Duration::from_secs(60);
    let (text, summary) = east.link.issue_token("west".parse().expect("name"), life, true).await.expect("issued");
    assert!(summary.lawmaker);
    west.link.join(&text).await.expect("joins");
    let held = west.link.snapshot().borrow().clone().expect("some");
    assert!(held.members.get(&west.id()).expect("member").lawmaker);
    let north = Cluster::start("north").await;
    north.join(&west).await;
    let error = north.link.issue_token("south".parse().expect("name"), life, true).await.expect_err("no lawmaker");
    assert_eq!(error.reason(), "not_lawmaker");
}
