//! Services: what is visible, registering one, showing it to others.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use federation_model::{
    ACCOUNTS_MAX, AccountRef, Audience, Authentic, Body, ClusterId, Export, LEASE_MAX, LEASE_MIN, NamespaceName,
    Records, ServiceId, ServiceName, Snapshot, Staleness,
};
use proto::manage as wire;

use super::{count, naming};
use crate::{
    Kind, Refusal,
    discovery::{SERVICES_MAX, port},
    server::Shared,
};

/// What each audience was last told of each service.
type Told = BTreeMap<(ClusterId, NamespaceName, ServiceName), BTreeMap<Audience, Option<Export>>>;

impl Shared {
    pub(super) fn list_services(&self) -> Result<wire::ServiceList, Refusal> {
        let snapshot = self.ready()?;
        let told = told(&self.links.records().borrow());
        let services = snapshot.catalog.iter().map(|service| self.shown(service, &told, &snapshot));
        Ok(wire::ServiceList { services: services.collect() })
    }

    pub(super) async fn register_service(
        &self,
        request: wire::RegisterServiceRequest,
        author: String,
    ) -> Result<wire::ServiceReply, Refusal> {
        let snapshot = self.ready()?;
        let name = naming::own_service(&request.service, &snapshot.own_name)?;
        let port = port(request.port)?;
        let mut accounts = request.accounts.iter().map(|text| naming::account(text)).collect::<Result<Vec<_>, _>>()?;
        accounts.sort();
        accounts.dedup();
        if accounts.is_empty() {
            accounts = vec![AccountRef { account: (&name.service).into(), namespace: name.namespace.clone() }];
        }
        if accounts.len() > ACCOUNTS_MAX {
            let message = format!("{} accounts: a service may name {ACCOUNTS_MAX}", accounts.len());
            return Err(Refusal::invalid("too_many_accounts", message));
        }
        let _turn = self.registering.lock().await;
        let own = snapshot.own;
        let key = (own, name.namespace.clone(), name.service.clone());
        let mut told = told(&self.links.records().borrow());
        let before = told.remove(&key).unwrap_or_default();
        let ours = || snapshot.catalog.iter().filter(|service| service.id.cluster == own).count();
        if before.is_empty() && ours() >= SERVICES_MAX {
            let message = format!("this cluster has {SERVICES_MAX} services already");
            return Err(Refusal::new(Kind::Exhausted, "too_many_services", message));
        }
        let held = before.get(&Audience::Member(own)).and_then(Option::as_ref);
        let held = held.map(|export| export.staleness).unwrap_or_default();
        let staleness = chosen(&request.when_stale, request.lease_ms, held)?;
        let export = Export { service: name.service, namespace: name.namespace, port, accounts, staleness };
        // Whoever sees it already is told as well; else two audiences would know two services of one name.
        let shown = before.iter().filter(|(_, export)| export.is_some()).map(|(audience, _)| *audience);
        let audiences: BTreeSet<Audience> = shown.chain([Audience::Member(own)]).collect();
        for audience in audiences {
            if before.get(&audience) != Some(&Some(export.clone())) {
                self.tell(audience, &export, own, &author).await?;
            }
        }
        self.service_reply(&export, own)
    }

    pub(super) async fn export_service(
        &self,
        request: wire::ExportServiceRequest,
        author: String,
    ) -> Result<wire::ServiceReply, Refusal> {
        let snapshot = self.ready()?;
        let own = snapshot.own;
        let name = naming::own_service(&request.service, &snapshot.own_name)?;
        let mut audiences = BTreeSet::new();
        for cluster in &request.to {
            naming::other(cluster, &snapshot)?;
            audiences.insert(Audience::Member(naming::member(cluster, &snapshot.members)?.id));
        }
        if request.nobody && !audiences.is_empty() {
            return Err(Refusal::invalid("nobody_and_some", "give `nobody` or clusters, not both"));
        }
        if audiences.is_empty() && !request.nobody {
            audiences.insert(Audience::All);
        }
        let _turn = self.registering.lock().await;
        let id = ServiceId { service: name.service.clone(), namespace: name.namespace.clone(), cluster: own };
        let snapshot = self.ready()?;
        let service = snapshot.catalog.get(&id).ok_or_else(|| {
            let message = format!(
                "no service {name} is registered: run `hanse service register {}.{} --port PORT` first, or start the \
                 sidecar that serves it",
                name.service, name.namespace
            );
            Refusal::new(Kind::NotFound, "unknown_service", message)
        })?;
        let export = Export {
            service: name.service.clone(),
            namespace: name.namespace.clone(),
            port: service.port,
            accounts: service.accounts.clone(),
            staleness: chosen(&request.when_stale, request.lease_ms, service.staleness)?,
        };
        let mut told = told(&self.links.records().borrow());
        let before = told.remove(&(own, name.namespace, name.service)).unwrap_or_default();
        // What is chosen here is the owner's own word from now on, whoever is shown the service later.
        let own_word = (export.staleness != service.staleness).then_some(Audience::Member(own));
        for audience in own_word.iter().chain(&audiences) {
            if before.get(audience) != Some(&Some(export.clone())) {
                self.tell(*audience, &export, own, &author).await?;
            }
        }
        // Whoever was told before and is not meant now learns that it is gone.
        for (audience, held) in before {
            if held.is_some() && audience != Audience::Member(own) && !audiences.contains(&audience) {
                self.take_back(audience, &export, &author).await?;
            }
        }
        self.service_reply(&export, own)
    }

    /// Writes that an audience is no longer shown a service.
    async fn take_back(&self, audience: Audience, export: &Export, author: &str) -> Result<(), Refusal> {
        let body = Body::ServiceGone { service: export.service.clone(), namespace: export.namespace.clone() };
        let record = self.links.write(audience, body, author.to_owned()).await?;
        let name = format!("{}.{}", export.service, export.namespace);
        tracing::info!(service = %name, %author, ?audience, %record, "service taken back");
        Ok(())
    }

    /// Writes what an audience is told, and waits until it shows.
    async fn tell(&self, audience: Audience, export: &Export, own: ClusterId, author: &str) -> Result<(), Refusal> {
        let record = self.links.write(audience, Body::Service(export.clone()), author.to_owned()).await?;
        let id = ServiceId { service: export.service.clone(), namespace: export.namespace.clone(), cluster: own };
        let exported = audience != Audience::Member(own);
        self.published(record, |snapshot| {
            snapshot
                .catalog
                .get(&id)
                .is_some_and(|service| service.port == export.port && (service.exported || !exported))
        })
        .await;
        let name = format!("{}.{}", export.service, export.namespace);
        tracing::info!(service = %name, %author, exported, "service written");
        Ok(())
    }

    fn service_reply(&self, export: &Export, own: ClusterId) -> Result<wire::ServiceReply, Refusal> {
        let snapshot = self.ready()?;
        let id = ServiceId { service: export.service.clone(), namespace: export.namespace.clone(), cluster: own };
        let told = told(&self.links.records().borrow());
        let service = snapshot.catalog.get(&id).map(|service| self.shown(service, &told, &snapshot));
        Ok(wire::ServiceReply { service })
    }

    fn shown(&self, service: &federation_model::Service, told: &Told, snapshot: &Snapshot) -> wire::Service {
        let id = &service.id;
        let own = id.cluster == snapshot.own;
        let audiences = told.get(&(id.cluster, id.namespace.clone(), id.service.clone()));
        let exported_to = audiences.into_iter().flatten().filter_map(|(audience, export)| match audience {
            _ if export.is_none() => None,
            Audience::All => Some("all".to_owned()),
            Audience::Member(member) if *member == id.cluster => None,
            Audience::Member(member) => Some(naming::shown(member, &snapshot.members)),
            Audience::Law => None,
        });
        let age = if own { None } else { self.links.data_age(&id.cluster) };
        wire::Service {
            name: service.name.to_string(),
            dns: service.name.dns(),
            port: service.port.into(),
            accounts: service.accounts.iter().map(ToString::to_string).collect(),
            exported_to: exported_to.collect(),
            own,
            instances: if own { count(self.registry.instances(&id.service, &id.namespace).len()) } else { 0 },
            when_stale: service.staleness.when.to_string(),
            lease_ms: u64::try_from(service.staleness.lease.as_millis()).unwrap_or(u64::MAX),
            data_age_ms: naming::age_ms(age),
            freshness: match (own, service.staleness.is_over(age)) {
                (true, _) => "own".to_owned(),
                (false, false) => "fresh".to_owned(),
                (false, true) => format!("stale ({})", service.staleness.when),
            },
        }
    }
}

/// What a request says of stale data, over what held before.
pub(crate) fn chosen(when: &str, lease_ms: u64, before: Staleness) -> Result<Staleness, Refusal> {
    let when = match when {
        "" => before.when,
        word => word.parse().map_err(|error: String| Refusal::invalid("bad_when_stale", error))?,
    };
    let lease = match lease_ms {
        0 => before.lease,
        millis => Duration::from_millis(millis),
    };
    if lease_ms > 0 && !(LEASE_MIN..=LEASE_MAX).contains(&lease) {
        let message = format!("a lease of {} s: choose 10 s to 24 h", lease.as_secs_f64());
        return Err(Refusal::invalid("bad_lease", message));
    }
    Ok(Staleness { when, lease })
}

/// The newest word to each audience, `None` when it was taken back.
fn told(records: &Records) -> Told {
    let mut newest: BTreeMap<_, BTreeMap<Audience, (u64, u64)>> = BTreeMap::new();
    let mut told = Told::new();
    for record in records.iter().map(Authentic::value) {
        let (namespace, service, export) = match &record.body {
            Body::Service(export) => (&export.namespace, &export.service, Some(export.clone())),
            Body::ServiceGone { service, namespace } => (namespace, service, None),
            _ => continue,
        };
        let key = (record.writer, namespace.clone(), service.clone());
        let place = (record.epoch, record.seq);
        let last = newest.entry(key.clone()).or_default().entry(record.audience).or_default();
        if place >= *last {
            *last = place;
            told.entry(key).or_default().insert(record.audience, export);
        }
    }
    told
}
