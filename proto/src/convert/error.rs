//! Why bytes are no message of ours.

/// Why bytes or a message do not make a model value; always names the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    #[error("{field} has {bytes} bytes, at most {max} are allowed")]
    TooLong { field: &'static str, bytes: usize, max: usize },
    #[error("{field} has {count} entries, at most {max} are allowed")]
    TooMany { field: &'static str, count: usize, max: usize },
    #[error("{field} is missing")]
    Missing { field: &'static str },
    #[error("{field} has {bytes} bytes instead of {expected}")]
    Length { field: &'static str, bytes: usize, expected: usize },
    #[error("{field} is not what it should be: {detail}")]
    Value { field: &'static str, detail: String },
    #[error("{field} is no valid protobuf: {detail}")]
    Protobuf { field: &'static str, detail: String },
}

impl ConvertError {
    /// Short fixed word for metrics and audit.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "too_long",
            Self::TooMany { .. } => "too_many",
            Self::Missing { .. } => "missing",
            Self::Length { .. } => "length",
            Self::Value { .. } => "value",
            Self::Protobuf { .. } => "protobuf",
        }
    }

    /// The field at fault, as `message.field`.
    pub fn field(&self) -> &'static str {
        match self {
            Self::TooLong { field, .. }
            | Self::TooMany { field, .. }
            | Self::Missing { field }
            | Self::Length { field, .. }
            | Self::Value { field, .. }
            | Self::Protobuf { field, .. } => field,
        }
    }

    /// A wrong value with its cause, whose text the model has already cut to a line.
    pub(crate) fn value(field: &'static str, cause: impl ToString) -> Self {
        Self::Value { field, detail: cause.to_string() }
    }
}
