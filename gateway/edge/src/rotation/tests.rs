//! The steps against a federation that says what the test wants, with a real store and a real signer apart.

use std::{
    collections::BTreeSet,
    os::fd::AsFd,
    sync::{Mutex as Lock, PoisonError},
    thread::JoinHandle,
};

use federation_identity::{
    Verifier,
    seal::Kek,
    signer::{Server, channel},
};
use federation_link::WriteError;
use federation_model::{Audience, Bundles, TrustBundle, TrustDomain};
use gateway_api::BoxFuture;
use proto::store::OwnCluster;
use tokio::sync::watch;

use super::*;

/// Short, since the old root stays for it.
const TTL: Duration = Duration::from_secs(1);

fn cluster(number: u8) -> ClusterId {
    ClusterId::from_digest(Digest([number; 32]))
}

/// A federation of this cluster, number 0, and of others.
struct Fake {
    bundle: Lock<TrustBundle>,
    /// Every bundle that was published, with its record.
    published: Lock<Vec<(TrustBundle, RecordId)>>,
    members: Lock<Vec<ClusterId>>,
    /// Who enforces every record.
    enforcing: Lock<BTreeSet<ClusterId>>,
    refuses: Lock<bool>,
    ticks: watch::Sender<u64>,
}

fn lock<T>(of: &Lock<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ground for Fake {
    fn bundle(&self) -> Option<TrustBundle> {
        Some(lock(&self.bundle).clone())
    }

    fn record(&self) -> Option<RecordId> {
        lock(&self.published).last().map(|(_, id)| *id)
    }

    fn publish(&self, bundle: TrustBundle, _: String) -> BoxFuture<'_, Result<RecordId, WriteError>> {
        Box::pin(async move {
            if *lock(&self.refuses) {
                return Err(WriteError::Store("the disk is full".into()));
            }
            let seq = bundle.sequence;
            let id = RecordId { writer: cluster(0), audience: Audience::Law, epoch: 1, seq, digest: Digest([9; 32]) };
            *lock(&self.bundle) = bundle.clone();
            lock(&self.published).push((bundle, id));
            Ok(id)
        })
    }

    fn enforcement(&self, _: &RecordId) -> Enforcement {
        let mut found = Enforcement::default();
        for member in lock(&self.members).iter() {
            match lock(&self.enforcing).contains(member) {
                true => found.by.push(*member),
                false => found.behind.push((*member, Some(Duration::from_secs(40)))),
            }
        }
        found
    }

    fn receipts(&self) -> watch::Receiver<u64> {
        self.ticks.subscribe()
    }
}

/// An edge's part of a rotation, which may be started again on the same store.
struct World {
    store: Arc<dyn Store>,
    fake: Arc<Fake>,
    rotation: Arc<Rotation>,
    _served: JoinHandle<()>,
}

fn signer() -> (Arc<RemoteSigner>, JoinHandle<()>) {
    let (edge, end) = channel().expect("channel");
    let (domain, name) = ("west.mesh.internal".parse().expect("domain"), "west".parse().expect("name"));
    let served = std::thread::spawn(move || {
        let (domain, name) = ("west.mesh.internal".parse().expect("domain"), "west".parse().expect("name"));
        let _ = Server::new(Kek::from_bytes([7; 32]), domain, name).serve(end.as_fd());
    });
    (Arc::new(RemoteSigner::new(edge, domain, name).expect("remote")), served)
}

impl World {
    async fn new() -> Self {
        let (remote, served) = signer();
        let (authority, keys) = remote.make().expect("made");
        let store = federation_store::memory();
        let row = OwnCluster { keys, ..OwnCluster::default() };
        store.apply(vec![Change::put(Key::new(Kind::Own, b"self"), row.encode_to_vec())]).await.expect("kept");
        let fake = Arc::new(Fake {
            bundle: Lock::new(authority.bundle(1)),
            published: Lock::default(),
            members: Lock::new((0..3).map(cluster).collect()),
            enforcing: Lock::new(BTreeSet::from([cluster(0)])),
            refuses: Lock::default(),
            ticks: watch::Sender::new(0),
        });
        Self::on(store, fake, remote, served).await
    }

    async fn on(store: Arc<dyn Store>, fake: Arc<Fake>, signer: Arc<RemoteSigner>, served: JoinHandle<()>) -> Self {
        let domain: TrustDomain = "west.mesh.internal".parse().expect("domain");
        let live = LiveSvid::new();
        let edge = domain.edge(&"west".parse().expect("name"));
        let issued = Issued::open(Arc::clone(&store)).await.expect("open");
        svid::issue(signer.as_ref(), &issued, &edge, TTL, &live).await.expect("an SVID");
        let (store_too, ground) = (Arc::clone(&store), Arc::clone(&fake) as Arc<dyn Ground>);
        let inputs = Inputs { signer, store, ground, live, issued, edge, svid_ttl: TTL, sequence_floor: 0 };
        Self { store: store_too, fake, rotation: Rotation::new(inputs), _served: served }
    }

    /// The same on a store that was restored, as far as a rotation notices.
    fn restored(self, sequence_floor: u64) -> Self {
        let inputs = Inputs { sequence_floor, ..Arc::into_inner(self.rotation).expect("not running").inputs };
        Self { rotation: Rotation::new(inputs), ..self }
    }

    /// Members give back a bundle with a root that was published after the backup.
    fn gives_back(&self, sequence: u64, root: Vec<u8>) {
        let mut bundle = lock(&self.fake.bundle);
        bundle.sequence = sequence;
        bundle.roots.truncate(1);
        bundle.roots.push(root);
    }

    /// What a kill leaves: the store and the federation.
    async fn killed(self) -> Self {
        let (remote, served) = signer();
        let row = self.store.get(&Key::new(Kind::Own, b"self")).await.expect("read").expect("a row");
        let keys = OwnCluster::decode(row.value.as_slice()).expect("a row").keys;
        remote.open(&keys).expect("opened");
        Self::on(self.store, self.fake, remote, served).await
    }

    async fn advance(&self) -> Result<(Duration, bool)> {
        let mut step = self.rotation.step.lock().await;
        self.rotation.advance(&mut step).await
    }

    async fn phase(&self) -> RotationPhase {
        self.rotation.status().await.expect("read").expect("a rotation").phase
    }

    fn acknowledge(&self, members: impl IntoIterator<Item = u8>) {
        lock(&self.fake.enforcing).extend(members.into_iter().map(cluster));
    }

    fn stage(&self) -> RotationStage {
        self.rotation.authority().expect("keys").stage()
    }

    fn published(&self) -> Vec<(u64, usize)> {
        lock(&self.fake.published).iter().map(|(bundle, _)| (bundle.sequence, bundle.roots.len())).collect()
    }

    /// Steps until the old root is gone, as the clock allows.
    async fn until_retired(&self) {
        loop {
            let (pause, _) = self.advance().await.expect("a step");
            if self.phase().await == RotationPhase::Retired {
                return;
            }
            sleep(pause.min(TTL * 3)).await;
        }
    }
}

#[tokio::test]
async fn the_new_root_signs_once_every_member_knows_it_and_the_old_one_goes_after_its_last_svid() {
    let world = World::new().await;
    let pin = world.rotation.pin().expect("a pin");
    assert!(world.rotation.status().await.expect("read").is_none());
    let told = world.rotation.start(Vec::new(), "ada".into()).await.expect("started");
    assert_eq!((told.phase, told.author.as_str()), (RotationPhase::Published, "ada"));
    assert_eq!(told.enforcement.behind.len(), 2);
    for acknowledged in [1, 2] {
        world.advance().await.expect("nothing to do");
        assert_eq!(world.stage(), RotationStage::Prepared, "it does not sign before {acknowledged} knows it");
        world.acknowledge([acknowledged]);
    }
    let turned_at = now();
    world.advance().await.expect("turned");
    assert_eq!(world.phase().await, RotationPhase::Signing);
    world.advance().await.expect("waits");
    let old_until = world.rotation.status().await.expect("read").expect("told").old_until.expect("an end");
    assert!(old_until >= turned_at.after(TTL), "an SVID of just before lives on");
    assert_eq!(world.rotation.pin().expect("a pin"), pin, "tokens from before hold while the old root does");
    world.until_retired().await;
    assert!(now() > old_until);
    assert_eq!(world.published(), [(2, 2), (3, 1)]);
    assert_ne!(world.rotation.pin().expect("a pin"), pin);
    // The edge's own SVID is one by the new root alone.
    let verifier = Verifier::new();
    let mut bundles = Bundles::default();
    bundles.update(lock(&world.fake.bundle).clone()).expect("a bundle");
    verifier.publish(&bundles);
    let svid = world.rotation.inputs.live.get().expect("an SVID");
    verifier.session_peer(svid.chain(), now()).expect("believed");
    assert_eq!(svid.chain().len(), 3);
}

#[tokio::test]
async fn members_left_out_by_name_are_not_waited_for_and_others_are() {
    let world = World::new().await;
    world.rotation.start(vec![cluster(1)], "ada".into()).await.expect("started");
    world.advance().await.expect("waits");
    assert_eq!(world.phase().await, RotationPhase::Published, "2 was not left out");
    let told = world.rotation.start(vec![cluster(2), cluster(1)], "bob".into()).await.expect("goes on");
    assert_eq!((told.phase, told.author.as_str()), (RotationPhase::Signing, "ada"));
    assert_eq!(told.without, [cluster(1), cluster(2)]);
    let refused = world.rotation.start(vec![cluster(2)], "bob".into()).await.expect_err("too late");
    assert_eq!(refused.reason, "already_signing");
    world.rotation.start(Vec::new(), "bob".into()).await.expect("asking again changes nothing");
    assert_eq!(world.published(), [(2, 2)]);
}

#[tokio::test]
async fn a_member_that_is_out_is_waited_for_no_longer() {
    let world = World::new().await;
    world.acknowledge([1]);
    world.rotation.start(Vec::new(), "ada".into()).await.expect("started");
    assert_eq!(world.phase().await, RotationPhase::Published);
    lock(&world.fake.members).retain(|member| *member != cluster(2));
    world.advance().await.expect("turned");
    assert_eq!(world.phase().await, RotationPhase::Signing);
}

#[tokio::test]
async fn it_is_given_up_with_the_old_root_alone_and_only_before_the_new_one_signs() {
    let world = World::new().await;
    let refused = world.rotation.abort("ada").await.expect_err("nothing to give up");
    assert_eq!(refused.reason, "no_rotation");
    let old = lock(&world.fake.bundle).roots.clone();
    world.rotation.start(Vec::new(), "ada".into()).await.expect("started");
    let told = world.rotation.abort("ada").await.expect("given up");
    assert!(told.phase == RotationPhase::Aborted && told.ended_at.is_some());
    assert_eq!(world.published(), [(2, 2), (3, 1)], "the sequence goes forward");
    assert_eq!(lock(&world.fake.bundle).roots, old);
    assert_eq!(world.rotation.abort("ada").await.expect_err("once").reason, "no_rotation");

    world.acknowledge([1, 2]);
    world.rotation.start(Vec::new(), "ada".into()).await.expect("another one starts");
    assert_eq!(world.phase().await, RotationPhase::Signing);
    assert_eq!(world.rotation.abort("ada").await.expect_err("too late").reason, "already_signing");
}

#[tokio::test]
async fn a_kill_in_any_phase_loses_nothing_and_publishes_nothing_twice() {
    let world = World::new().await;
    // Prepared, and killed before it could publish.
    *lock(&world.fake.refuses) = true;
    let told = world.rotation.start(Vec::new(), "ada".into()).await.expect("started");
    assert_eq!((told.phase, world.published().len()), (RotationPhase::Prepared, 0));
    let world = world.killed().await;
    assert_eq!(world.phase().await, RotationPhase::Prepared);
    *lock(&world.fake.refuses) = false;
    world.advance().await.expect("published");
    let roots = lock(&world.fake.bundle).roots.clone();
    let world = world.killed().await;
    world.advance().await.expect("waits");
    assert_eq!((world.published(), lock(&world.fake.bundle).roots.clone()), (vec![(2, 2)], roots.clone()));
    // Turned, and killed before it was noted until when the old root is needed.
    world.acknowledge([1, 2]);
    {
        let mut step = world.rotation.step.lock().await;
        let row = world.rotation.row().await.expect("read").expect("a row");
        world.rotation.take(&mut step, RotationStep::TurnOver, &row).await.expect("turned");
    }
    let world = world.killed().await;
    assert_eq!(world.phase().await, RotationPhase::Signing);
    world.advance().await.expect("noted");
    assert!(world.rotation.status().await.expect("read").expect("told").old_until.is_some());
    // Retired, and killed before it could publish.
    *lock(&world.fake.refuses) = true;
    while world.stage() != RotationStage::Settled {
        let (pause, _) = world.advance().await.unwrap_or((Duration::ZERO, false));
        sleep(pause.min(TTL * 3)).await;
    }
    assert_eq!(world.published(), [(2, 2)]);
    let world = world.killed().await;
    *lock(&world.fake.refuses) = false;
    world.advance().await.expect("published");
    assert_eq!(world.published(), [(2, 2), (3, 1)]);
    assert_eq!(lock(&world.fake.bundle).roots, roots[1..]);
    assert_eq!(world.phase().await, RotationPhase::Retired);
}

#[tokio::test]
async fn svids_of_a_longer_life_from_before_keep_the_old_root() {
    let world = World::new().await;
    let until = now().after(Duration::from_secs(3600));
    let key = Key::new(Kind::Own, b"self");
    let row = world.store.get(&key).await.expect("read").expect("a row");
    let row = OwnCluster::decode(row.value.as_slice()).expect("a row");
    let row = OwnCluster { svids_until_ms: until.as_millis(), ..row };
    world.store.apply(vec![Change::put(key, row.encode_to_vec())]).await.expect("kept");
    world.acknowledge([1, 2]);
    world.rotation.start(Vec::new(), "ada".into()).await.expect("started");
    let told = world.rotation.status().await.expect("read").expect("told");
    assert_eq!((told.phase, told.old_until), (RotationPhase::Signing, Some(until)));
}

/// A root that others know of this cluster and its keys do not.
fn foreign() -> Vec<u8> {
    let (remote, _served) = signer();
    remote.make().expect("made").0.bundle(0).roots.remove(0)
}

#[tokio::test]
async fn keys_that_are_older_than_the_bundle_change_nothing_of_it_until_an_operator_says_so() {
    let world = World::new().await.restored(5000);
    world.advance().await.expect("nothing to do");
    assert_eq!(world.rotation.trouble(), None);
    world.gives_back(7, foreign());
    let (pause, _) = world.advance().await.expect("looked");
    assert!(pause <= RECHECK, "it looks again soon, not in {pause:?}");
    assert_eq!(world.published(), [], "the bundle was taken back by older keys");
    let trouble = world.rotation.trouble().expect("told");
    assert!(trouble.contains("lists 1 roots") && trouble.contains("hanse cert rotate-root"), "{trouble}");

    world.rotation.start(Vec::new(), "ada".into()).await.expect("started");
    assert_eq!(world.published(), [(5001, 2)], "what was set aside at the restore is left out");
    assert_eq!(world.rotation.trouble(), None);
    world.acknowledge([1, 2]);
    world.until_retired().await;
    assert_eq!(world.published(), [(5001, 2), (5002, 1)]);
}

#[tokio::test]
async fn a_prepared_root_that_nobody_was_told_of_never_signs_after_a_restore() {
    // The backup is from a rotation that was given up since; then another one was begun.
    let world = World::new().await;
    world.rotation.start(Vec::new(), "ada".into()).await.expect("started");
    let world = world.restored(5000);
    world.gives_back(9, foreign());
    world.acknowledge([1, 2]);
    for _ in 0..3 {
        world.advance().await.expect("looked");
        assert_eq!(world.stage(), RotationStage::Prepared, "a root signs that is in no bundle");
    }
    assert_eq!(world.published().len(), 1, "only what the first rotation published");
    world.rotation.abort("ada").await.expect("given up");
    assert_eq!(world.stage(), RotationStage::Settled);
    assert!(world.rotation.trouble().is_some(), "the bundle still lists a root of nobody knows what key");
}
