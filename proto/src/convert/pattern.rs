//! The scope of a rule: source, destination and layer.

use federation_model::{
    AccountRef, ClusterPattern, DestinationPattern, IntentionKey, Label, Layer, SPIFFE_ID_BYTES_MAX, SourcePattern,
};

use super::{ConvertError, field};
use crate::record as wire;

impl From<&IntentionKey> for wire::Scope {
    fn from(key: &IntentionKey) -> Self {
        let layer = match key.layer {
            Layer::Rule => wire::Layer::Rule,
            Layer::Timed => wire::Layer::Timed,
            Layer::Guardrail => wire::Layer::Guardrail,
            Layer::Shadow => wire::Layer::Shadow,
        };
        Self { source: Some((&key.source).into()), destination: Some((&key.destination).into()), layer: layer.into() }
    }
}

impl TryFrom<&wire::Scope> for IntentionKey {
    type Error = ConvertError;
    fn try_from(message: &wire::Scope) -> Result<Self, ConvertError> {
        let layer = match wire::Layer::try_from(message.layer) {
            Ok(wire::Layer::Rule) => Layer::Rule,
            Ok(wire::Layer::Timed) => Layer::Timed,
            Ok(wire::Layer::Guardrail) => Layer::Guardrail,
            Ok(wire::Layer::Shadow) => Layer::Shadow,
            Err(_) => {
                return Err(ConvertError::Value {
                    field: "scope.layer",
                    detail: format!("{} is unknown", message.layer),
                });
            }
        };
        let source = message.source.as_ref().ok_or(ConvertError::Missing { field: "scope.source" })?;
        let destination = message.destination.as_ref().ok_or(ConvertError::Missing { field: "scope.destination" })?;
        Ok(Self { source: source.try_into()?, destination: destination.try_into()?, layer })
    }
}

impl From<&SourcePattern> for wire::Source {
    fn from(pattern: &SourcePattern) -> Self {
        match pattern {
            SourcePattern::Spiffe(id) => Self { spiffe_id: id.to_string(), ..Self::default() },
            SourcePattern::Account { account, namespace, cluster } => Self {
                spiffe_id: String::new(),
                account: account.to_string(),
                namespace: namespace.to_string(),
                cluster: cluster_bytes(cluster),
            },
        }
    }
}

impl TryFrom<&wire::Source> for SourcePattern {
    type Error = ConvertError;
    fn try_from(message: &wire::Source) -> Result<Self, ConvertError> {
        if message.spiffe_id.is_empty() {
            return Ok(Self::Account {
                account: field::label("source.account", &message.account)?,
                namespace: field::label("source.namespace", &message.namespace)?,
                cluster: cluster_pattern("source.cluster", &message.cluster)?,
            });
        }
        // Two readers must never see two different sources in one record.
        if !(message.account.is_empty() && message.namespace.is_empty() && message.cluster.is_empty()) {
            return Err(ConvertError::value("source.spiffe_id", "an account stands beside it, only one of them may"));
        }
        field::at_most("source.spiffe_id", message.spiffe_id.len(), SPIFFE_ID_BYTES_MAX)?;
        field::text("source.spiffe_id", &message.spiffe_id).map(Self::Spiffe)
    }
}

impl From<&DestinationPattern> for wire::Destination {
    fn from(pattern: &DestinationPattern) -> Self {
        Self {
            service: pattern.service.to_string(),
            namespace: pattern.namespace.to_string(),
            cluster: cluster_bytes(&pattern.cluster),
        }
    }
}

impl TryFrom<&wire::Destination> for DestinationPattern {
    type Error = ConvertError;
    fn try_from(message: &wire::Destination) -> Result<Self, ConvertError> {
        Ok(Self {
            service: field::label("destination.service", &message.service)?,
            namespace: field::label("destination.namespace", &message.namespace)?,
            cluster: cluster_pattern("destination.cluster", &message.cluster)?,
        })
    }
}

impl From<&AccountRef> for wire::Account {
    fn from(account: &AccountRef) -> Self {
        Self { account: account.account.to_string(), namespace: account.namespace.to_string() }
    }
}

impl TryFrom<&wire::Account> for AccountRef {
    type Error = ConvertError;
    fn try_from(message: &wire::Account) -> Result<Self, ConvertError> {
        Ok(Self {
            account: field::text("account.account", &message.account)?,
            namespace: field::text("account.namespace", &message.namespace)?,
        })
    }
}

/// Empty means any cluster.
fn cluster_bytes(cluster: &ClusterPattern) -> Vec<u8> {
    match cluster {
        Label::Any => Vec::new(),
        Label::Is(id) => id.as_bytes().to_vec(),
    }
}

fn cluster_pattern(field: &'static str, bytes: &[u8]) -> Result<ClusterPattern, ConvertError> {
    if bytes.is_empty() { Ok(Label::Any) } else { field::cluster(field, bytes).map(Label::Is) }
}
