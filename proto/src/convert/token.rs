//! Token texts: what an operator copies from one cluster to another, or to a workload.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use federation_model::{
    AccountRef, ClusterName, Digest, Endpoint, JoinToken, Timestamp, TokenId, TokenSecret, TrustDomain,
};
use prost::Message;

use super::{ConvertError, field, record};
use crate::token as wire;

/// Longest token text in bytes: eight endpoints of full length fit.
pub const TOKEN_TEXT_BYTES_MAX: usize = 4096;

const JOIN_PREFIX: &str = "hanse1.";
const WORKLOAD_PREFIX: &str = "hansew1.";

/// What a cluster hands to one of its workloads so that it can enrol.
#[derive(Clone, Debug)]
pub struct WorkloadToken {
    pub id: TokenId,
    pub secret: TokenSecret,
    /// Cluster that issued it, by name: for messages; the pin is what counts.
    pub cluster: ClusterName,
    pub trust_domain: TrustDomain,
    /// SHA-256 of the public key (SPKI DER) of the cluster's root certificate.
    pub pin: Digest,
    /// The account that the workload gets.
    pub account: AccountRef,
    pub expires_at: Timestamp,
}

/// Why a text is no token. The text itself, which is secret, never stands in the message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenTextError {
    #[error("token is empty: paste the whole line that the issuer printed")]
    Empty,
    #[error("token has {0} bytes, at most {TOKEN_TEXT_BYTES_MAX} are allowed")]
    TooLong(usize),
    #[error("token does not start with {expected:?}: paste the whole line that the issuer printed")]
    Prefix { expected: &'static str },
    #[error("this is a workload token: `hanse link join` takes a join token, made by `hanse link token`")]
    IsWorkloadToken,
    #[error("this is a join token: a workload takes a token made by `hanse workload token`")]
    IsJoinToken,
    #[error("token was cut or changed on its way (base64): copy it again")]
    Base64,
    #[error("token was cut or changed on its way: copy it again ({0})")]
    Content(#[from] ConvertError),
}

impl TokenTextError {
    /// Short fixed word for metrics and audit.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::TooLong(_) => "too_long",
            Self::Prefix { .. } => "prefix",
            Self::IsWorkloadToken => "is_workload_token",
            Self::IsJoinToken => "is_join_token",
            Self::Base64 => "base64",
            Self::Content(_) => "content",
        }
    }
}

/// `hanse1.` and the token in unpadded base64url (RFC 4648, 5).
pub fn join_token_text(token: &JoinToken) -> String {
    let message = wire::JoinToken {
        id: token.id.0.to_vec(),
        secret: token.secret.0.to_vec(),
        issuer: token.issuer.to_string(),
        issuer_trust_domain: token.issuer_trust_domain.to_string(),
        issuer_pin: token.issuer_pin.0.to_vec(),
        endpoints: token.endpoints.iter().map(Endpoint::to_string).collect(),
        joiner: token.joiner.to_string(),
        expires_at_ms: token.expires_at.as_millis(),
    };
    format!("{JOIN_PREFIX}{}", URL_SAFE_NO_PAD.encode(message.encode_to_vec()))
}

/// Reads a join token; blanks around it are ignored.
///
/// # Errors
/// No join token, cut, changed, or with a field past its bound.
pub fn parse_join_token(text: &str) -> Result<JoinToken, TokenTextError> {
    let message: wire::JoinToken = parse(text, JOIN_PREFIX)?;
    if message.endpoints.is_empty() {
        return Err(ConvertError::Missing { field: "join_token.endpoints" }.into());
    }
    Ok(JoinToken {
        id: field::fixed("join_token.id", &message.id).map(TokenId)?,
        secret: field::fixed("join_token.secret", &message.secret).map(TokenSecret)?,
        issuer: field::text("join_token.issuer", &message.issuer)?,
        issuer_trust_domain: field::text("join_token.issuer_trust_domain", &message.issuer_trust_domain)?,
        issuer_pin: field::digest("join_token.issuer_pin", &message.issuer_pin)?,
        endpoints: record::endpoints("join_token.endpoints", &message.endpoints)?,
        joiner: field::text("join_token.joiner", &message.joiner)?,
        expires_at: Timestamp::from_millis(message.expires_at_ms),
    })
}

/// `hansew1.` and the token in unpadded base64url (RFC 4648, 5).
pub fn workload_token_text(token: &WorkloadToken) -> String {
    let message = wire::WorkloadToken {
        id: token.id.0.to_vec(),
        secret: token.secret.0.to_vec(),
        cluster: token.cluster.to_string(),
        trust_domain: token.trust_domain.to_string(),
        pin: token.pin.0.to_vec(),
        account: token.account.account.to_string(),
        namespace: token.account.namespace.to_string(),
        expires_at_ms: token.expires_at.as_millis(),
    };
    format!("{WORKLOAD_PREFIX}{}", URL_SAFE_NO_PAD.encode(message.encode_to_vec()))
}

/// Reads a workload token; blanks around it are ignored.
///
/// # Errors
/// No workload token, cut, changed, or with a field past its bound.
pub fn parse_workload_token(text: &str) -> Result<WorkloadToken, TokenTextError> {
    let message: wire::WorkloadToken = parse(text, WORKLOAD_PREFIX)?;
    Ok(WorkloadToken {
        id: field::fixed("workload_token.id", &message.id).map(TokenId)?,
        secret: field::fixed("workload_token.secret", &message.secret).map(TokenSecret)?,
        cluster: field::text("workload_token.cluster", &message.cluster)?,
        trust_domain: field::text("workload_token.trust_domain", &message.trust_domain)?,
        pin: field::digest("workload_token.pin", &message.pin)?,
        account: AccountRef {
            account: field::text("workload_token.account", &message.account)?,
            namespace: field::text("workload_token.namespace", &message.namespace)?,
        },
        expires_at: Timestamp::from_millis(message.expires_at_ms),
    })
}

fn parse<M: Message + Default>(text: &str, prefix: &'static str) -> Result<M, TokenTextError> {
    let text = text.trim_ascii();
    if text.is_empty() {
        return Err(TokenTextError::Empty);
    }
    if text.len() > TOKEN_TEXT_BYTES_MAX {
        return Err(TokenTextError::TooLong(text.len()));
    }
    let Some(encoded) = text.strip_prefix(prefix) else {
        return Err(match prefix {
            JOIN_PREFIX if text.starts_with(WORKLOAD_PREFIX) => TokenTextError::IsWorkloadToken,
            WORKLOAD_PREFIX if text.starts_with(JOIN_PREFIX) => TokenTextError::IsJoinToken,
            expected => TokenTextError::Prefix { expected },
        });
    };
    // The decoder's own error quotes a byte of the text: a secret, so it is left out.
    let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| TokenTextError::Base64)?;
    Ok(field::message("token", &bytes, TOKEN_TEXT_BYTES_MAX)?)
}
