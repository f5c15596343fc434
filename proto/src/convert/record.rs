//! Records: what clusters write, with the rules for what this version does not understand.
//!
//! A record from a later version must neither be refused (its log has no gaps) nor be ignored (it may forbid):
//!
//! | in the record                                          | becomes                                  |
//! |--------------------------------------------------------|------------------------------------------|
//! | a critical feature, and a scope that can be read       | an intention, [`RuleState::NotUnderstood`] |
//! | a critical feature, and no scope that can be read      | [`Body::Unknown`], critical              |
//! | a rule with a state that is unknown                    | an intention, [`RuleState::NotUnderstood`] |
//! | a rule with a layer that is unknown                    | [`Body::Unknown`], critical              |
//! | a kind that is unknown, nothing critical               | [`Body::Unknown`], not critical          |
//! | terms of which a word is unknown                       | the narrower: own law, approval by hand, no relaying |
//! | a stance that is unknown                               | [`Stance::Blocked`]                      |
//! | a word on stale data that is unknown                   | [`WhenStale::Deny`]                      |
//!
//! This version knows no critical feature.

use std::{collections::BTreeMap, time::Duration};

use federation_model::{
    ACCOUNTS_MAX, Accept, AccountRef, Action, Admission, Approval, Body, Candidate, DESPITE_MAX, ENDPOINT_BYTES_MAX,
    ENDPOINTS_MAX, EPOCHS_MAX, Endpoint, Eviction, Export, FederationId, Head, Intention, IntentionKey, LEASE_DEFAULT,
    LEASE_MAX, MemberTerms, RECORD_BYTES_MAX, REPLACES_MAX, ROOT_BYTES_MAX, ROOTS_MAX, Record, RecordId, Relay,
    Revocation, RuleState, SERIAL_BYTES_MAX, Staleness, Stance, Timestamp, TrustBundle, WhenStale,
};
use prost::Message;

use super::{ConvertError, audience, field};
use crate::record as wire;

/// Longest author in bytes.
pub const AUTHOR_BYTES_MAX: usize = 256;
/// The lowest field number of a body; lower numbers are the record's own fields.
const KIND_MIN: u32 = 20;
/// Stands for a critical feature that nobody defines; written only for bodies that this version did not understand.
const FEATURE_UNKNOWN: u32 = u32::MAX;

/// Field numbers of the bodies in `record.proto`: what `kind` repeats.
mod kind {
    pub(super) const FOUNDING: u32 = 20;
    pub(super) const ADMISSION: u32 = 21;
    pub(super) const TERMS: u32 = 22;
    pub(super) const LAWMAKER: u32 = 23;
    pub(super) const BUNDLE: u32 = 24;
    pub(super) const RULE: u32 = 25;
    pub(super) const SERVICE: u32 = 26;
    pub(super) const SERVICE_GONE: u32 = 27;
    pub(super) const EVICTION: u32 = 28;
    pub(super) const STANCE: u32 = 29;
    pub(super) const REVOCATION: u32 = 31;
}

/// The bytes that a writer signs.
///
/// A record past the bounds is encoded as it stands; whoever writes one uses [`encode_record_checked`].
pub fn encode_record(record: &Record) -> Vec<u8> {
    wire::Record::from(record).encode_to_vec()
}

/// The bytes that a writer signs, once it is sure that every reader takes them as the same record.
///
/// # Errors
/// What [`decode_record`] would say of them, or a record that reads back as another one.
pub fn encode_record_checked(record: &Record) -> Result<Vec<u8>, ConvertError> {
    let bytes = encode_record(record);
    if decode_record(&bytes)? != *record {
        return Err(ConvertError::value("record.body", "it reads back as another record"));
    }
    Ok(bytes)
}

/// Reads the bytes that a writer signed.
///
/// # Errors
/// Too long, no protobuf, or a field that is missing, wrong or past its bound. What this version does not know is no
/// error: see the table above.
pub fn decode_record(bytes: &[u8]) -> Result<Record, ConvertError> {
    // An envelope adds at most 4 + 66 bytes to its record and has the same bound.
    let message: wire::Record = field::message("record", bytes, RECORD_BYTES_MAX)?;
    Record::try_from(&message)
}

impl From<&Record> for wire::Record {
    fn from(record: &Record) -> Self {
        let (kind, critical, scope, body) = encode_body(&record.body);
        Self {
            federation: field::empty_if_zero(record.federation.digest()),
            writer: record.writer.as_bytes().to_vec(),
            audience: Some((&record.audience).into()),
            epoch: record.epoch,
            seq: record.seq,
            previous: field::empty_if_zero(&record.previous),
            replaces: record.replaces.iter().map(wire::RecordId::from).collect(),
            author: record.author.clone(),
            written_at_ms: record.written_at.as_millis(),
            critical: if critical { vec![FEATURE_UNKNOWN] } else { Vec::new() },
            scope,
            kind,
            body,
        }
    }
}

/// Kind, whether critical, scope, body.
type WireBody = (u32, bool, Option<wire::Scope>, Option<wire::record::Body>);

fn encode_body(body: &Body) -> WireBody {
    use wire::record::Body as Wire;

    let plain = |kind, body| (kind, false, None, Some(body));
    match body {
        Body::Founding(candidate) => plain(kind::FOUNDING, Wire::Founding(candidate.into())),
        Body::Admission(admission) => plain(
            kind::ADMISSION,
            Wire::Admission(wire::Admission {
                candidate: Some((&admission.candidate).into()),
                lawmaker: admission.lawmaker,
            }),
        ),
        Body::Terms(terms) => plain(kind::TERMS, Wire::Terms(terms.into())),
        Body::Lawmaker { cluster, on } => {
            plain(kind::LAWMAKER, Wire::Lawmaker(wire::Lawmaker { cluster: cluster.as_bytes().to_vec(), on: *on }))
        }
        Body::Bundle(bundle) => plain(kind::BUNDLE, Wire::Bundle(bundle.into())),
        Body::Intention(Intention { key, state }) => {
            let wire_state = match state {
                RuleState::Is(Action::Allow) => wire::rule::State::Allow,
                RuleState::Is(Action::Deny) => wire::rule::State::Deny,
                RuleState::Deleted => wire::rule::State::Deleted,
                RuleState::NotUnderstood => wire::rule::State::Unspecified,
            };
            let rule = wire::Rule { state: wire_state.into() };
            let critical = *state == RuleState::NotUnderstood;
            (kind::RULE, critical, Some(key.into()), Some(Wire::Rule(rule)))
        }
        Body::Service(export) => plain(kind::SERVICE, Wire::Service(export.into())),
        Body::ServiceGone { service, namespace } => plain(
            kind::SERVICE_GONE,
            Wire::ServiceGone(wire::ServiceGone { service: service.to_string(), namespace: namespace.to_string() }),
        ),
        Body::Eviction(eviction) => plain(kind::EVICTION, Wire::Eviction(eviction.into())),
        Body::Stance { cluster, stance } => {
            use wire::stance::What;
            let what = match stance {
                Stance::Approved { despite } => What::Approved(wire::Approved {
                    despite: despite.iter().map(|signer| signer.as_bytes().to_vec()).collect(),
                }),
                Stance::Blocked => What::Blocked(true),
            };
            plain(kind::STANCE, Wire::Stance(wire::Stance { cluster: cluster.as_bytes().to_vec(), what: Some(what) }))
        }
        Body::Revocation(revocation) => plain(kind::REVOCATION, Wire::Revocation(revocation.into())),
        Body::Unknown { kind, critical } => (*kind, *critical, None, None),
    }
}

impl TryFrom<&wire::Record> for Record {
    type Error = ConvertError;
    fn try_from(message: &wire::Record) -> Result<Self, ConvertError> {
        if message.epoch == 0 {
            return Err(ConvertError::Missing { field: "record.epoch" });
        }
        if message.seq == 0 {
            return Err(ConvertError::Missing { field: "record.seq" });
        }
        if (message.seq == 1) != message.previous.is_empty() {
            return Err(ConvertError::value("record.previous", "the first of an epoch has none, all others have one"));
        }
        if (message.kind == kind::FOUNDING) != message.federation.is_empty() {
            return Err(ConvertError::value("record.federation", "a founding record has none, all others have one"));
        }
        field::at_most("record.author", message.author.len(), AUTHOR_BYTES_MAX)?;
        // Shown in tables and logs, where a control character could forge a line.
        if message.author.chars().any(char::is_control) {
            return Err(ConvertError::value("record.author", "it holds a control character"));
        }
        field::count("record.replaces", message.replaces.len(), REPLACES_MAX)?;
        Ok(Self {
            federation: field::digest_or_zero("record.federation", &message.federation)
                .map(FederationId::from_digest)?,
            writer: field::cluster("record.writer", &message.writer)?,
            audience: audience::required("record.audience", message.audience.as_ref())?,
            epoch: message.epoch,
            seq: message.seq,
            previous: field::digest_or_zero("record.previous", &message.previous)?,
            replaces: message.replaces.iter().map(RecordId::try_from).collect::<Result<_, _>>()?,
            author: message.author.clone(),
            written_at: Timestamp::from_millis(message.written_at_ms),
            body: decode_body(message)?,
        })
    }
}

fn decode_body(message: &wire::Record) -> Result<Body, ConvertError> {
    use wire::record::Body as Wire;

    if message.kind < KIND_MIN {
        return Err(ConvertError::Value { field: "record.kind", detail: format!("{} is no body", message.kind) });
    }
    let found = message.body.as_ref().map(|body| match body {
        Wire::Founding(_) => kind::FOUNDING,
        Wire::Admission(_) => kind::ADMISSION,
        Wire::Terms(_) => kind::TERMS,
        Wire::Lawmaker(_) => kind::LAWMAKER,
        Wire::Bundle(_) => kind::BUNDLE,
        Wire::Rule(_) => kind::RULE,
        Wire::Service(_) => kind::SERVICE,
        Wire::ServiceGone(_) => kind::SERVICE_GONE,
        Wire::Eviction(_) => kind::EVICTION,
        Wire::Stance(_) => kind::STANCE,
        Wire::Revocation(_) => kind::REVOCATION,
    });
    // Whoever reads `kind` and whoever reads the body must see one and the same thing.
    if found.is_some_and(|found| found != message.kind) {
        return Err(ConvertError::value("record.kind", format!("it says {}, the body is another", message.kind)));
    }
    if !message.critical.is_empty() {
        return Ok(not_understood(message));
    }
    let Some(body) = &message.body else {
        if matches!(message.kind, kind::FOUNDING..=kind::STANCE | kind::REVOCATION) {
            return Err(ConvertError::Missing { field: "record.body" });
        }
        return Ok(Body::Unknown { kind: message.kind, critical: false });
    };
    Ok(match body {
        Wire::Founding(candidate) => Body::Founding(candidate.try_into()?),
        Wire::Admission(admission) => {
            let candidate = admission.candidate.as_ref();
            let candidate = candidate.ok_or(ConvertError::Missing { field: "admission.candidate" })?;
            Body::Admission(Admission { candidate: Candidate::try_from(candidate)?, lawmaker: admission.lawmaker })
        }
        Wire::Terms(terms) => Body::Terms(terms.try_into()?),
        Wire::Lawmaker(lawmaker) => {
            Body::Lawmaker { cluster: field::cluster("lawmaker.cluster", &lawmaker.cluster)?, on: lawmaker.on }
        }
        Wire::Bundle(bundle) => Body::Bundle(bundle.try_into()?),
        Wire::Rule(rule) => return decode_rule(message, rule),
        Wire::Service(service) => Body::Service(service.try_into()?),
        Wire::ServiceGone(gone) => Body::ServiceGone {
            service: field::text("service_gone.service", &gone.service)?,
            namespace: field::text("service_gone.namespace", &gone.namespace)?,
        },
        Wire::Eviction(eviction) => Body::Eviction(eviction.try_into()?),
        Wire::Stance(stance) => {
            Body::Stance { cluster: field::cluster("stance.cluster", &stance.cluster)?, stance: stance.try_into()? }
        }
        Wire::Revocation(revocation) => Body::Revocation(revocation.try_into()?),
    })
}

/// The record carries a critical feature, and this version knows none.
fn not_understood(message: &wire::Record) -> Body {
    match message.scope.as_ref().map(IntentionKey::try_from) {
        Some(Ok(key)) => Body::Intention(Intention { key, state: RuleState::NotUnderstood }),
        _ => Body::Unknown { kind: message.kind, critical: true },
    }
}

fn decode_rule(message: &wire::Record, rule: &wire::Rule) -> Result<Body, ConvertError> {
    let scope = message.scope.as_ref().ok_or(ConvertError::Missing { field: "record.scope" })?;
    if wire::Layer::try_from(scope.layer).is_err() {
        return Ok(Body::Unknown { kind: message.kind, critical: true });
    }
    let state = match wire::rule::State::try_from(rule.state) {
        Ok(wire::rule::State::Allow) => RuleState::Is(Action::Allow),
        Ok(wire::rule::State::Deny) => RuleState::Is(Action::Deny),
        Ok(wire::rule::State::Deleted) => RuleState::Deleted,
        Ok(wire::rule::State::Unspecified) | Err(_) => RuleState::NotUnderstood,
    };
    Ok(Body::Intention(Intention { key: scope.try_into()?, state }))
}

impl From<&MemberTerms> for wire::Terms {
    fn from(terms: &MemberTerms) -> Self {
        let accept = match terms.accept {
            Accept::Federation => wire::terms::Accept::Federation,
            Accept::Own => wire::terms::Accept::Own,
        };
        let approval = match terms.approval {
            Approval::Auto => wire::terms::Approval::Auto,
            Approval::Manual => wire::terms::Approval::Manual,
        };
        let relay = match terms.relay {
            Relay::Nobody => wire::terms::Relay::Nobody,
            Relay::Members => wire::terms::Relay::Members,
        };
        Self {
            accept: accept.into(),
            endpoints: terms.endpoints.iter().map(Endpoint::to_string).collect(),
            approval: approval.into(),
            relay: relay.into(),
        }
    }
}

impl TryFrom<&wire::Terms> for MemberTerms {
    type Error = ConvertError;
    fn try_from(message: &wire::Terms) -> Result<Self, ConvertError> {
        let accept = match wire::terms::Accept::try_from(message.accept) {
            Ok(wire::terms::Accept::Federation) => Accept::Federation,
            Ok(wire::terms::Accept::Own) | Err(_) => Accept::Own,
        };
        let approval = match wire::terms::Approval::try_from(message.approval) {
            Ok(wire::terms::Approval::Auto) => Approval::Auto,
            Ok(wire::terms::Approval::Manual) | Err(_) => Approval::Manual,
        };
        let relay = match wire::terms::Relay::try_from(message.relay) {
            Ok(wire::terms::Relay::Members) => Relay::Members,
            Ok(wire::terms::Relay::Nobody) | Err(_) => Relay::Nobody,
        };
        Ok(Self { accept, approval, relay, endpoints: endpoints("terms.endpoints", &message.endpoints)? })
    }
}

/// At most [`ENDPOINTS_MAX`] endpoints.
pub(super) fn endpoints(field: &'static str, texts: &[String]) -> Result<Vec<Endpoint>, ConvertError> {
    field::count(field, texts.len(), ENDPOINTS_MAX)?;
    texts
        .iter()
        .map(|text| {
            field::at_most(field, text.len(), ENDPOINT_BYTES_MAX)?;
            field::text(field, text)
        })
        .collect()
}

impl From<&Eviction> for wire::Eviction {
    fn from(eviction: &Eviction) -> Self {
        let head = |(epoch, head): (&u64, &Head)| wire::EpochHead {
            epoch: *epoch,
            seq: head.seq,
            digest: head.digest.0.to_vec(),
        };
        Self { cluster: eviction.cluster.as_bytes().to_vec(), heads: eviction.heads.iter().map(head).collect() }
    }
}

impl TryFrom<&wire::Eviction> for Eviction {
    type Error = ConvertError;
    fn try_from(message: &wire::Eviction) -> Result<Self, ConvertError> {
        field::count("eviction.heads", message.heads.len(), EPOCHS_MAX)?;
        let mut heads = BTreeMap::new();
        for head in &message.heads {
            let digest = field::digest("eviction.heads.digest", &head.digest)?;
            if heads.insert(head.epoch, Head { seq: head.seq, digest }).is_some() {
                return Err(ConvertError::value("eviction.heads", format!("epoch {} stands twice", head.epoch)));
            }
        }
        Ok(Self { cluster: field::cluster("eviction.cluster", &message.cluster)?, heads })
    }
}

impl TryFrom<&wire::Stance> for Stance {
    type Error = ConvertError;
    /// One that this version does not know is a block: when in doubt, no traffic.
    fn try_from(message: &wire::Stance) -> Result<Self, ConvertError> {
        let Some(wire::stance::What::Approved(approved)) = &message.what else { return Ok(Self::Blocked) };
        field::count("stance.despite", approved.despite.len(), DESPITE_MAX)?;
        let despite = approved.despite.iter().map(|signer| field::cluster("stance.despite", signer));
        Ok(Self::Approved { despite: despite.collect::<Result<_, _>>()? })
    }
}

impl From<&Revocation> for wire::Revocation {
    fn from(revocation: &Revocation) -> Self {
        Self {
            key: revocation.key.0.to_vec(),
            serial: revocation.serial.clone(),
            not_after_ms: revocation.not_after.as_millis(),
        }
    }
}

impl TryFrom<&wire::Revocation> for Revocation {
    type Error = ConvertError;
    fn try_from(message: &wire::Revocation) -> Result<Self, ConvertError> {
        if message.serial.is_empty() {
            return Err(ConvertError::Missing { field: "revocation.serial" });
        }
        field::at_most("revocation.serial", message.serial.len(), SERIAL_BYTES_MAX)?;
        Ok(Self {
            key: field::digest("revocation.key", &message.key)?,
            serial: message.serial.clone(),
            not_after: Timestamp::from_millis(message.not_after_ms),
        })
    }
}

impl From<&TrustBundle> for wire::Bundle {
    fn from(bundle: &TrustBundle) -> Self {
        Self { trust_domain: bundle.trust_domain.to_string(), sequence: bundle.sequence, roots: bundle.roots.clone() }
    }
}

impl TryFrom<&wire::Bundle> for TrustBundle {
    type Error = ConvertError;
    fn try_from(message: &wire::Bundle) -> Result<Self, ConvertError> {
        field::count("bundle.roots", message.roots.len(), ROOTS_MAX)?;
        for root in &message.roots {
            field::at_most("bundle.roots", root.len(), ROOT_BYTES_MAX)?;
        }
        Ok(Self {
            trust_domain: field::text("bundle.trust_domain", &message.trust_domain)?,
            sequence: message.sequence,
            roots: message.roots.clone(),
        })
    }
}

impl From<&Export> for wire::Service {
    fn from(export: &Export) -> Self {
        Self {
            service: export.service.to_string(),
            namespace: export.namespace.to_string(),
            port: u32::from(export.port),
            accounts: export.accounts.iter().map(wire::Account::from).collect(),
            when_stale: wire::service::WhenStale::from(export.staleness.when).into(),
            lease_ms: lease_ms(export.staleness.lease),
        }
    }
}

impl TryFrom<&wire::Service> for Export {
    type Error = ConvertError;
    fn try_from(message: &wire::Service) -> Result<Self, ConvertError> {
        field::count("service.accounts", message.accounts.len(), ACCOUNTS_MAX)?;
        if message.accounts.is_empty() {
            return Err(ConvertError::Missing { field: "service.accounts" });
        }
        Ok(Self {
            service: field::text("service.service", &message.service)?,
            namespace: field::text("service.namespace", &message.namespace)?,
            port: field::port("service.port", message.port)?,
            accounts: message.accounts.iter().map(AccountRef::try_from).collect::<Result<_, _>>()?,
            staleness: Staleness {
                when: match wire::service::WhenStale::try_from(message.when_stale) {
                    Ok(wire::service::WhenStale::Keep) => WhenStale::Keep,
                    Ok(wire::service::WhenStale::PreferLocal) => WhenStale::PreferLocal,
                    Ok(wire::service::WhenStale::Deny) | Err(_) => WhenStale::Deny,
                },
                lease: match message.lease_ms {
                    0 => LEASE_DEFAULT,
                    // Shorter than may be chosen here is narrower, so it stands.
                    millis => Duration::from_millis(millis).min(LEASE_MAX),
                },
            },
        })
    }
}

impl From<WhenStale> for wire::service::WhenStale {
    fn from(when: WhenStale) -> Self {
        match when {
            WhenStale::Keep => Self::Keep,
            WhenStale::PreferLocal => Self::PreferLocal,
            WhenStale::Deny => Self::Deny,
        }
    }
}

/// The default is left out, so that a service without any wish reads as it did before there were leases.
fn lease_ms(lease: Duration) -> u64 {
    if lease == LEASE_DEFAULT { 0 } else { u64::try_from(lease.as_millis()).unwrap_or(u64::MAX) }
}
