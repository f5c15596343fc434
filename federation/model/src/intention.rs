//! Intentions: who may, or may not, call whom.

use std::{fmt, str::FromStr};

use crate::{DestinationPattern, SourcePattern};

/// What an intention says of the calls it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    Allow,
    Deny,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

impl FromStr for Action {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "allow" => Ok(Self::Allow),
            "deny" => Ok(Self::Deny),
            _ => Err(format!("action {:?} is neither allow nor deny", text.chars().take(40).collect::<String>())),
        }
    }
}

/// Which of the four laws an intention belongs to. Rules in different layers never replace each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layer {
    /// The law in force.
    #[default]
    Rule,
    /// Rules that end by themselves. Reserved: this version writes none and enforces a deny in it.
    Timed,
    /// Denies that nothing outranks.
    Guardrail,
    /// Rules on trial: shown, never enforced.
    Shadow,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rule => "rule",
            Self::Timed => "timed",
            Self::Guardrail => "guardrail",
            Self::Shadow => "shadow",
        })
    }
}

/// What an intention is filed under. Two writes to one key replace each other or stay as siblings.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IntentionKey {
    pub source: SourcePattern,
    pub destination: DestinationPattern,
    pub layer: Layer,
}

/// What one record says of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleState {
    Is(Action),
    /// A tombstone: the rule that it replaces is gone.
    Deleted,
    /// The record carries critical fields that this version does not understand: it denies, within its scope, what its
    /// writer may deny.
    NotUnderstood,
}

/// A rule with its key: the body of an intention record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intention {
    pub key: IntentionKey,
    pub state: RuleState,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_are_two_words() {
        for action in [Action::Allow, Action::Deny] {
            assert_eq!(action.to_string().parse(), Ok(action));
        }
        for bad in ["", "Allow", "permit", "deny "] {
            assert!(bad.parse::<Action>().is_err(), "{bad:?}");
        }
        assert!("x".repeat(10_000).parse::<Action>().expect_err("no action").len() < 100);
    }
}
