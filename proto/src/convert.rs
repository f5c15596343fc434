//! From bytes and messages into the model, and back: one file per noun.
//!
//! In: bytes from peers, files and operators, whose size is checked before they are parsed. Out: model values, or a
//! [`ConvertError`] that names the field. Never: a panic, whatever the bytes are; a signature check (identity's).

mod audience;
mod candidate;
mod envelope;
mod error;
mod field;
mod pattern;
mod receipt;
mod record;
mod token;
mod vector;

#[cfg(test)]
mod testing;

pub use candidate::{CANDIDATE_BYTES_MAX, decode_candidate, encode_candidate};
pub use envelope::{Envelope, SIGNATURE_BYTES, decode_envelope, encode_envelope};
pub use error::ConvertError;
pub use receipt::{RECEIPT_BYTES_MAX, decode_receipt, encode_receipt};
pub use record::{AUTHOR_BYTES_MAX, decode_record, encode_record, encode_record_checked};
pub use token::{
    TOKEN_TEXT_BYTES_MAX, TokenTextError, WorkloadToken, join_token_text, parse_join_token, parse_workload_token,
    workload_token_text,
};
