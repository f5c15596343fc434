//! The API on a real Unix socket and a real TLS listener, with a federation in memory behind it.

mod enrolment;
mod feed;
mod floods;
mod manage;
mod members;
mod revoking;
mod support;
