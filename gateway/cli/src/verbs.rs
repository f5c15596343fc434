//! The tree of verbs, as clap reads it.

use std::{path::PathBuf, time::Duration};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::Format;

/// What every verb understands.
#[derive(Debug, Clone, Args)]
pub struct Globals {
    /// Unix socket of the gateway.
    #[arg(long, global = true, env = "HANSE_SOCKET", value_name = "PATH", default_value = "/run/hanse/hanse.sock")]
    pub socket: PathBuf,
}

/// `-o`, for every verb that answers with data.
#[derive(Debug, Clone, Copy, Args)]
pub struct Output {
    /// How to print the answer.
    #[arg(short = 'o', long = "output", value_enum, value_name = "FORMAT", default_value_t = Format::Table)]
    pub format: Format,
}

/// The verbs of an operator.
#[derive(Debug, Clone, Subcommand)]
pub enum Operator {
    /// What this gateway is and how it is doing.
    Status(Output),
    /// Link this cluster with others.
    #[command(subcommand)]
    Link(LinkVerb),
    /// The members of the federation.
    #[command(subcommand)]
    Cluster(ClusterVerb),
    /// Workloads of this cluster: who may enrol, and who did.
    #[command(subcommand)]
    Workload(WorkloadVerb),
    /// Services: what can be dialled by name.
    #[command(subcommand)]
    Service(ServiceVerb),
    /// Intentions: who may call whom.
    #[command(subcommand)]
    Intention(IntentionVerb),
    /// What the mesh DNS would answer, and why. Exits 1 when the name is not there.
    Dns(DnsQuestion),
    /// Identities and trust bundles.
    #[command(subcommand)]
    Cert(CertVerb),
    /// Diagnose this cluster and its links with real handshakes. Exits 1 when something failed.
    Check(Output),
    /// Read the gateway's configuration again.
    Reload(Output),
    /// Set what the gateway logs: a level, or a filter such as info,federation_link=debug.
    Log {
        #[arg(value_name = "LEVEL")]
        level: String,
        #[command(flatten)]
        output: Output,
    },
    /// The version of this program.
    Version(Output),
    /// Print a completion script for a shell.
    Completions {
        #[arg(value_enum)]
        shell: Shell,
    },
}

/// `hanse link …`
#[derive(Debug, Clone, Subcommand)]
pub enum LinkVerb {
    /// Issue a one-time token with which a cluster joins this federation. Prints only the token on stdout.
    Token {
        /// Name of the cluster that will join, and the only one that may use the token.
        #[arg(value_name = "CLUSTER")]
        cluster: String,
        /// How long the token works, such as 30m; at most 24h [default: 15m].
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        ttl: Option<Duration>,
        /// The joiner may make rules about others' services.
        #[arg(long)]
        lawmaker: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Join a federation with a token, which is read from a file, standard input or a prompt: never an argument.
    Join {
        /// File that holds the token; '-' is standard input. Left out on a terminal: asks for it.
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Wait until every link is up, for at most 60 s.
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Every link and its state.
    List(Output),
    /// Everything known of the links, or of one.
    Status {
        #[arg(value_name = "CLUSTER")]
        cluster: Option<String>,
        /// Wait until they are up, for at most 60 s; exits 1 when they are not by then.
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Tokens that this cluster issued, and what became of them.
    Tokens(Output),
    /// Stop talking to a member. This cluster's own decision: no other is bound by it.
    Remove {
        #[arg(value_name = "CLUSTER")]
        cluster: String,
        #[command(flatten)]
        output: Output,
    },
}

/// `hanse cluster …`
#[derive(Debug, Clone, Subcommand)]
pub enum ClusterVerb {
    /// Every member of the federation.
    List(Output),
    /// Let a member in here that was blocked, that waits for approval, or that was suspended. For this cluster alone.
    Approve {
        #[command(flatten)]
        member: Member,
        #[command(flatten)]
        output: Output,
    },
    /// Shut a member out here, until `hanse cluster approve`. This cluster's own decision: no other is bound by it.
    Block {
        #[command(flatten)]
        member: Member,
        #[command(flatten)]
        output: Output,
    },
    /// Put a member out of the federation, as a lawmaker: suspended everywhere at once, out for good when a second
    /// lawmaker says the same, or when this is the only other one.
    Evict {
        #[command(flatten)]
        member: Member,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Make a member a lawmaker (on), or take that back (off: needs two lawmakers, or the member itself).
    Lawmaker {
        #[command(flatten)]
        member: Member,
        #[arg(value_enum, value_name = "on|off")]
        switch: Switch,
        #[command(flatten)]
        output: Output,
    },
    /// Leave the federation. This cluster goes on alone, with its own services and rules; a token brings it back.
    Leave {
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        output: Output,
    },
}

/// A member by name.
#[derive(Debug, Clone, Args)]
pub struct Member {
    /// Its name, or name@id with at least six digits of the id where clusters of one name came and went.
    #[arg(value_name = "CLUSTER")]
    pub cluster: String,
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

/// `hanse workload …`
#[derive(Debug, Clone, Subcommand)]
pub enum WorkloadVerb {
    /// Issue a one-time token with which a sidecar enrols as an account. Prints only the token on stdout.
    Token {
        #[arg(value_name = "ACCOUNT[.NAMESPACE]")]
        account: String,
        /// How long the token works, such as 30m; at most 24h [default: 15m].
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        ttl: Option<Duration>,
        #[command(flatten)]
        output: Output,
    },
    /// Every workload that enrolled here.
    List(Output),
}

/// `hanse service …`
#[derive(Debug, Clone, Subcommand)]
pub enum ServiceVerb {
    /// Every service that is visible here.
    List(Output),
    /// Register a service of this cluster. Nothing outside sees it before it is exported.
    Register {
        #[arg(value_name = "SERVICE[.NAMESPACE]")]
        service: String,
        /// The port that clients dial.
        #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
        /// Account that may serve it, as ACCOUNT[.NAMESPACE]; may be given several times [default: the account of the
        /// service's own name].
        #[arg(long = "account", value_name = "ACCOUNT", value_delimiter = ',')]
        accounts: Vec<String>,
        #[command(flatten)]
        stale: StaleArgs,
        #[command(flatten)]
        output: Output,
    },
    /// Show a service of this cluster to other members.
    Export {
        #[arg(value_name = "SERVICE[.NAMESPACE]")]
        service: String,
        /// Members that may see it [default: all]. Whoever saw it before and is not named sees it no more.
        #[arg(long, value_name = "CLUSTER", value_delimiter = ',')]
        to: Vec<String>,
        /// Show it to nobody any more.
        #[arg(long, conflicts_with = "to")]
        nobody: bool,
        #[command(flatten)]
        stale: StaleArgs,
        #[command(flatten)]
        output: Output,
    },
}

/// What callers in other clusters do once they did not hear from this one for longer than the lease. Left out: as it was.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct StaleArgs {
    /// keep: the last rules known stay in force. prefer-local: their own service of that name stands in, if they have
    /// one. deny: nobody reaches it, live connections are cut [default for a new service: keep].
    #[arg(long, value_enum, value_name = "POLICY")]
    pub when_stale: Option<WhenStaleArg>,
    /// How long that is, 10s to 24h [default for a new service: 15m].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub lease: Option<Duration>,
}

/// A policy for stale data by its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WhenStaleArg {
    Keep,
    PreferLocal,
    Deny,
}

impl WhenStaleArg {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::PreferLocal => "prefer-local",
            Self::Deny => "deny",
        }
    }
}

/// `hanse intention …`
#[derive(Debug, Clone, Subcommand)]
pub enum IntentionVerb {
    /// Allow a source to call a destination.
    Allow {
        #[command(flatten)]
        pair: Pair,
        /// On trial: shown, never enforced.
        #[arg(long)]
        shadow: bool,
        /// Wait until every member says that it is in force, for at most 20 s; exits 1 when some have not by then.
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Forbid a source to call a destination; live connections are cut.
    Deny {
        #[command(flatten)]
        pair: Pair,
        /// A deny that no allow outranks.
        #[arg(long, conflicts_with = "shadow")]
        guardrail: bool,
        /// On trial: shown, never enforced.
        #[arg(long)]
        shadow: bool,
        /// Wait until every member says that it is in force, for at most 20 s; exits 1 when some have not by then.
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Every intention, in order of precedence, and whether it counts here.
    List(Output),
    /// Take an intention back.
    Delete {
        #[command(flatten)]
        pair: Pair,
        /// The layer in which it stands.
        #[arg(long, value_enum, default_value_t = LayerArg::Rule)]
        layer: LayerArg,
        /// What it says; tells how a source without a cluster is meant (allow: this cluster, deny: any). Left out:
        /// whichever of the two exists.
        #[arg(long, value_enum)]
        action: Option<ActionArg>,
        /// Wait until every member says that it is in force, for at most 20 s; exits 1 when some have not by then.
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Whether a source may call a destination, and which rule decides. Exits 0 if it may, 1 if not.
    Check {
        #[command(flatten)]
        pair: Pair,
        #[command(flatten)]
        output: Output,
    },
}

/// The two sides of an intention.
#[derive(Debug, Clone, Args)]
pub struct Pair {
    /// account[.namespace[.cluster]], '*', or a whole SPIFFE ID.
    #[arg(value_name = "SOURCE")]
    pub source: String,
    /// service[.namespace[.cluster]] or '*'.
    #[arg(value_name = "DESTINATION")]
    pub destination: String,
}

/// A layer by its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LayerArg {
    Rule,
    Guardrail,
    Shadow,
}

impl LayerArg {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::Guardrail => "guardrail",
            Self::Shadow => "shadow",
        }
    }
}

/// An action by its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ActionArg {
    Allow,
    Deny,
}

impl ActionArg {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// `hanse dns …`
#[derive(Debug, Clone, Args)]
pub struct DnsQuestion {
    /// The name, such as payments.billing.west.mesh.internal.
    #[arg(value_name = "NAME")]
    pub name: String,
    #[arg(value_name = "TYPE", default_value = "A")]
    pub kind: String,
    /// Also say whether this account may call it.
    #[arg(long = "as", value_name = "ACCOUNT[.NAMESPACE]")]
    pub account: Option<String>,
    #[command(flatten)]
    pub output: Output,
}

/// `hanse cert …`
#[derive(Debug, Clone, Subcommand)]
pub enum CertVerb {
    /// This cluster's certificates, every member's trust bundle, and the rotation of the root.
    Status(Output),
    /// The certificates that this cluster issued and that have not ended, and the revoked keys of every member.
    List(Output),
    /// Revokes a certificate of this cluster: its key is believed no more, by any member, and what stands on it is cut.
    /// Nothing takes that back; the workload gets another identity with another key.
    Revoke {
        /// Its serial number, as `hanse cert list` shows it.
        serial: String,
        #[command(flatten)]
        output: Output,
    },
    /// Makes another intermediate, which signs from then on. The root stays, so nobody has to be waited for, and what the
    /// one before signed is good until it ends.
    RotateIntermediate(Output),
    /// Rotates this cluster's root: a new one is published, every member acknowledges it, then it signs, and the old one
    /// goes once its last SVID has ended. Goes on with a rotation that is under way.
    RotateRoot {
        /// Do not wait for this member, which may be away; until the old root goes it is served by a chain that it
        /// knows.
        #[arg(long, value_name = "CLUSTER", value_delimiter = ',')]
        without: Vec<String>,
        /// Give the rotation up, while the new root does not sign yet.
        #[arg(long, conflicts_with_all = ["without", "wait"])]
        abort: bool,
        /// Return once the old root is gone.
        #[arg(long)]
        wait: bool,
        /// How long to wait for members to acknowledge the new root. The rotation goes on in any case.
        #[arg(long, requires = "wait", default_value = "10m", value_parser = duration)]
        timeout: Duration,
        #[command(flatten)]
        output: Output,
    },
}

/// The whole command with the operator's verbs alone; the executable adds its programs beside them.
pub fn command() -> clap::Command {
    Alone::command()
}

/// The operator's verbs as a command of their own.
#[derive(Debug, Parser)]
#[command(name = "hanse", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Alone {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) operator: Operator,
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration.as_secs() > 0 => Ok(duration),
        Ok(_) => Err("shorter than a second".into()),
        Err(error) => Err(format!("{error}; write it like 90s, 15m or 2h")),
    }
}

#[cfg(test)]
#[path = "verbs/tests.rs"]
mod tests;
