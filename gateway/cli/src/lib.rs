//! The operator's verbs: what a person or a script does to one gateway.
//!
//! In: parsed arguments, and a token from a file, standard input or a prompt. Out: data on standard output (a table,
//! JSON or YAML), words on standard error, and an exit code that scripts can rely on (see [`exit`]).
//! Never: does what the manage API cannot; takes a secret as an argument; prints a control character that came from
//! elsewhere.

mod client;
mod cluster;
pub mod exit;
mod format;
mod run;
mod show;
mod terminal;
mod verbs;

pub use client::{Client, ClientError, REPLY_BYTES_MAX, REQUEST_LIMIT};
pub use format::Format;
pub use run::{CreateBackup, answer, create_backup, create_backup_on, run, run_as, run_on};
pub use terminal::{TOKEN_FILE_BYTES_MAX, Terminal};
pub use verbs::{
    CertVerb, ClusterVerb, Globals, IntentionVerb, LinkVerb, Operator, Output, ServiceVerb, StaleArgs, WhenStaleArg,
    WorkloadVerb, command,
};
