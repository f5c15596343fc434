//! Opening the link: the store's records become a replica, or a first start becomes a federation.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, atomic::AtomicBool},
};

use federation_identity::{federation_id, now, tls};
use federation_model::{
    Approval, Audience, Authentic, Body, ClusterId, Digest, FederationId, MemberTerms, Record, Replica, Stance,
    TrustBundle, fold,
};
use federation_store::{Change, Expect, Kind, Store};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Incoming, Link, LinkError, Options, Shared, accept,
    compose::compose,
    endpoint, join,
    limits::{DRIVER_QUEUE, EVENTS_QUEUE, TUNNELS_QUEUE},
    metrics,
    records::{self, Unfit},
    registry::Registry,
    replicate::{Driver, Start},
    state::{self, State},
    supervisor, tokens,
};

pub(crate) async fn open(options: Options) -> Result<(Link, Incoming), LinkError> {
    metrics::describe();
    let (driver, commands) = mpsc::channel(DRIVER_QUEUE);
    let (tunnels, tunnels_queue) = mpsc::channel(TUNNELS_QUEUE);
    let (events, events_queue) = mpsc::channel(EVENTS_QUEUE);
    let joins_open = Arc::new(AtomicBool::new(false));
    let transport = endpoint::transport(&options.limits);
    let accepting = match options.listen {
        Some(address) => {
            let server = tls::session_server(&options.live_svid, &options.verifier, joins_open.clone());
            let server = server.map_err(|error| LinkError::Tls(error.to_string()))?;
            Some(endpoint::listening(address, server, transport.clone(), &options.limits)?)
        }
        None => None,
    };
    let dialling = endpoint::dialling()?;
    let listening = accepting.as_ref().and_then(|endpoint| endpoint.local_addr().ok());
    let terms = terms(&options, listening);
    let own = options.candidate.id;
    let clock = tokens::remembered_clock(options.store.as_ref()).await?.max(now());
    let Options { store, signer, candidate, live_svid, verifier, limits, seal, epoch_floor, .. } = options;
    let shared = Arc::new(Shared {
        own,
        joins: Semaphore::new(limits.joins_max),
        join_bucket: Mutex::new(join::Bucket::new(limits.joins_per_second)),
        store,
        signer,
        candidate,
        live_svid,
        verifier,
        terms,
        limits,
        seal,
        epoch_floor,
        transport,
        accepting: accepting.clone(),
        dialling,
        registry: Registry::new(own),
        snapshot: watch::Sender::new(None),
        records: watch::Sender::default(),
        receipts: Default::default(),
        recent: Arc::default(),
        driver,
        tunnels,
        events,
        joins_open,
        clock: Mutex::new(clock),
        issuing: tokio::sync::Mutex::new(()),
        joining: tokio::sync::Mutex::new(()),
        cancel: CancellationToken::new(),
        tasks: TaskTracker::new(),
        opened: tokio::time::Instant::now(),
    });
    let replica = load(&shared).await?;
    let arrivals = next_arrival(shared.store.as_ref()).await?;
    let driver = Driver::new(shared.clone(), Start { replica, arrivals });
    // Nothing is known of an open token before the first sweep, and a joiner may be waiting.
    if let Err(error) = tokens::sweep(&shared).await {
        tracing::error!(%error, "join tokens could not be swept");
    }
    shared.tasks.spawn(driver.run(commands));
    shared.tasks.spawn(supervisor::run(shared.clone()));
    shared.tasks.spawn(sweep(shared.clone()));
    if let Some(endpoint) = accepting {
        shared.tasks.spawn(accept::run(shared.clone(), endpoint));
    }
    Ok((Link { shared }, Incoming { tunnels: tunnels_queue, events: events_queue }))
}

/// What this cluster says of itself: where to dial it, if anywhere.
fn terms(options: &Options, listening: Option<SocketAddr>) -> MemberTerms {
    let mut endpoints = options.advertise.clone();
    if endpoints.is_empty() {
        endpoints.clone_from(&options.terms.endpoints);
    }
    if let Some(address) = listening.filter(|address| endpoints.is_empty() && !address.ip().is_unspecified()) {
        endpoints.extend(address.to_string().parse());
    }
    MemberTerms { endpoints, ..options.terms }
}

async fn sweep(shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = shared.cancel.cancelled() => return,
            () = tokio::time::sleep(tokens::SWEEP) => {}
        }
        if let Err(error) = tokens::sweep(&shared).await {
            tracing::warn!(%error, "join tokens could not be swept");
        }
    }
}

async fn load(shared: &Shared) -> Result<Replica, LinkError> {
    let key = state::key();
    let state = match shared.store.get(&key).await? {
        Some(row) => Some(State::decode(&row.value).ok_or_else(|| LinkError::Unreadable {
            row: key.to_string(),
            detail: "it is of another version".into(),
        })?),
        None => None,
    };
    let Some(state) = state else { return found(shared).await };
    if state.own != shared.own {
        return Err(LinkError::OtherCluster { found: state.own, own: shared.own });
    }
    let mut replica = Replica::new(shared.own, state.federation);
    replica.set_floor(shared.epoch_floor);
    let records = stored(shared, &state.federation).await?;
    if !records.iter().any(|record| matches!(record.value().body, Body::Founding(_))) {
        return Err(LinkError::NoFounding { federation: state.federation.to_string() });
    }
    for refused in replica.load(records) {
        tracing::warn!(error = %refused, "stored record does not count");
    }
    refresh(shared, &mut replica, state).await?;
    Ok(replica)
}

/// Every stored record, by order of arrival, signatures checked again: the store is believed no more than a peer.
async fn stored(shared: &Shared, federation: &FederationId) -> Result<Vec<Authentic<Record>>, LinkError> {
    let mut rows = Vec::new();
    for row in shared.store.list(Kind::Record, &[]).await? {
        let unreadable = || LinkError::Unreadable { row: row.key.to_string(), detail: "it is cut".into() };
        rows.push(records::read_row(&row).ok_or_else(unreadable)?);
    }
    rows.sort_by_key(|(arrival, _)| *arrival);
    let envelopes = rows.into_iter().map(|(_, raw)| raw).collect();
    let (records, unfit) = records::check_all(*federation, envelopes).await;
    for unfit in unfit {
        match unfit {
            // A fork may have made its writer's admission void.
            Unfit::UnknownWriter(writer) => {
                tracing::warn!(writer = %writer.short(), "stored record is of no member's any more");
            }
            // A deny may be among them: nothing is served from half a law.
            Unfit::Unreadable(detail) | Unfit::Forged(detail) => {
                return Err(LinkError::Unreadable { row: "record".into(), detail });
            }
            Unfit::OtherFederation => {
                let detail = "it founds another federation than this cluster is in".into();
                return Err(LinkError::Unreadable { row: "record".into(), detail });
            }
        }
    }
    Ok(records)
}

async fn next_arrival(store: &dyn Store) -> Result<u64, LinkError> {
    let rows = store.list(Kind::Record, &[]).await?;
    Ok(rows.iter().filter_map(records::read_row).map(|(arrival, _)| arrival + 1).max().unwrap_or(0))
}

/// The first start: founds a federation of one.
async fn found(shared: &Shared) -> Result<Replica, LinkError> {
    if !shared.store.list(Kind::Record, &[]).await?.is_empty() {
        let detail = "there are records, but the row that says of which federation is missing".into();
        return Err(LinkError::Unreadable { row: state::key().to_string(), detail });
    }
    let mut replica = founded(shared)?;
    for body in own_words(shared) {
        say(shared, &mut replica, Audience::Law, body)?;
    }
    let federation = replica.federation();
    let mut changes: Vec<Change> =
        replica.records().zip(0..).map(|(record, arrival)| records::put(record, arrival)).collect();
    let state = State { own: shared.own, federation, blocked: Default::default() };
    changes.push(Change::put(state::key(), state.encode()).expecting(Expect::Absent));
    shared.store.apply(changes).await?;
    tracing::info!(federation = %federation.short(), cluster = %shared.candidate.name, "federation founded");
    Ok(replica)
}

/// A federation of this cluster alone, with its founding record and nothing else; not yet durable.
pub(crate) fn founded(shared: &Shared) -> Result<Replica, LinkError> {
    let founding = Record {
        federation: FederationId::from_digest(Digest::ZERO),
        writer: shared.own,
        audience: Audience::Law,
        epoch: 1,
        seq: 1,
        previous: Digest::ZERO,
        replaces: Vec::new(),
        author: "founding".into(),
        written_at: now(),
        body: Body::Founding(shared.candidate.clone()),
    };
    let key = &shared.candidate.replication_key;
    let founding = records::sign(shared.signer.as_ref(), key, founding);
    let founding = founding.map_err(|error| LinkError::Record(error.to_string()))?;
    let federation = federation_id(founding.digest());
    let mut replica = Replica::new(shared.own, federation);
    if let Some(error) = replica.load([founding]).into_iter().next() {
        return Err(LinkError::Record(error.to_string()));
    }
    Ok(replica)
}

/// Terms and bundle, as this cluster is configured.
fn own_words(shared: &Shared) -> [Body; 2] {
    [Body::Terms(shared.terms.clone()), Body::Bundle(own_bundle(shared))]
}

fn own_bundle(shared: &Shared) -> TrustBundle {
    let candidate = &shared.candidate;
    TrustBundle { trust_domain: candidate.trust_domain.clone(), sequence: 1, roots: vec![candidate.root.clone()] }
}

fn say(shared: &Shared, replica: &mut Replica, audience: Audience, body: Body) -> Result<Authentic<Record>, LinkError> {
    let record = compose(shared, replica, audience, body, "start".into());
    let record = record.map_err(|error| LinkError::Record(error.to_string()))?;
    replica.on_local(record.clone()).map_err(|error| LinkError::Record(error.to_string()))?;
    Ok(record)
}

/// Says anew what changed in the configuration since the last start.
async fn refresh(shared: &Shared, replica: &mut Replica, state: State) -> Result<(), LinkError> {
    let own = shared.own;
    let of_own = |wanted: fn(&Body) -> bool| {
        let last =
            replica.records().filter(|record| record.value().writer == own && wanted(&record.value().body)).last();
        last.map(|record| record.value().body.clone())
    };
    let mut changed = Vec::new();
    let before = of_own(|body| matches!(body, Body::Terms(_)));
    if let Some(Body::Terms(MemberTerms { approval: Approval::Auto, .. })) = &before
        && shared.terms.approval == Approval::Manual
    {
        // Whom this cluster took in before it began to approve by hand stays.
        let members = fold(own, state.federation, 0, replica.records()).map(|held| held.members).unwrap_or_default();
        let active = members.iter().filter(|member| member.id != own && member.state.is_active());
        changed.extend(active.map(|member| {
            let despite = member.evicted_by.iter().copied().collect();
            stance(own, member.id, Stance::Approved { despite })
        }));
    }
    if before != Some(Body::Terms(shared.terms.clone())) {
        changed.push((Audience::Law, Body::Terms(shared.terms.clone())));
    }
    if of_own(|body| matches!(body, Body::Bundle(_))).is_none() {
        changed.push((Audience::Law, Body::Bundle(own_bundle(shared))));
    }
    changed.extend(state.blocked.iter().map(|member| stance(own, *member, Stance::Blocked)));
    if changed.is_empty() {
        return Ok(());
    }
    let mut arrival = next_arrival(shared.store.as_ref()).await?;
    let mut rows = Vec::new();
    for (audience, body) in changed {
        rows.push(records::put(&say(shared, replica, audience, body)?, arrival));
        arrival += 1;
    }
    if !state.blocked.is_empty() {
        let state = State { blocked: Default::default(), ..state };
        rows.push(Change::put(state::key(), state.encode()));
    }
    shared.store.apply(rows).await?;
    Ok(())
}

fn stance(own: ClusterId, cluster: ClusterId, stance: Stance) -> (Audience, Body) {
    (Audience::Member(own), Body::Stance { cluster, stance })
}
