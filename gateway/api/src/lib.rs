//! The gRPC services of a gateway: manage (operators), workload identity and discovery (sidecars).
//!
//! In: requests over a Unix socket whose peer the kernel names, and over TLS whose peer identity proves. Out: replies in
//! the one shape that `-o json` prints, SVIDs for workloads that proved who they are, and to each sidecar the signed
//! records that concern it.
//! Never: knows how links or the proxy work (see [`Links`], [`Connections`], [`System`], which the program implements);
//! answers a request whose peer was not judged; forwards a record in other words than its writer signed.

mod backend;
mod connection;
mod discovery;
mod errors;
mod feed;
mod issued;
mod manage;
pub mod metrics;
mod registry;
mod server;
mod socket;
mod tls;
mod tokens;
mod workload;

pub use backend::{
    Backup, BackupSummary, BoxFuture, Certificate, Check, CheckState, Connections, Departed, Direction, IssuedToken,
    Joined, LinkPhase, LinkState, Links, Probed, Rotation, RotationPhase, System, TokenState, TokenSummary,
};
pub use connection::{CONNECTIONS_MAX, Peer, STRANGER_LIMIT};
pub use discovery::{SERVES_MAX, SERVICES_MAX, SUBSCRIBE_LIMIT};
pub use errors::{Kind, Refusal};
pub use issued::{ISSUED_MAX, Issued, IssuedSvid};
pub use registry::{EnrolledBy, FEEDS_MAX, Instance, NOTICES_MAX, Registry};
pub use server::{Api, Inputs, Settings};
pub use socket::{Access, Socket, SocketError, bind};
pub use tls::{HANDSHAKE_LIMIT, HANDSHAKES_MAX};
pub use tokens::WORKLOAD_TOKENS_OPEN_MAX;
