//! What must hold of all bytes that are found on a disk; `fuzz/` looks for some of which it does not.
//!
//! In: any bytes. Out: nothing, or a panic that says which promise was broken. Never: in a product; only fuzzers and the
//! replay of their corpus (`testbed/tests/fuzz.rs`) turn the feature on.

use crate::embedded::fuzzing;

/// A target and its name.
pub type Target = (&'static str, fn(&[u8]));

/// Every target of this room.
pub const TARGETS: &[Target] = &[("store_row", store_row), ("store_head", store_head)];

/// Inputs from which each target starts.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    fuzzing::seeds(target)
}

/// Rows, their keys and the manifest.
pub fn store_row(data: &[u8]) {
    fuzzing::row(data);
}

/// The head file.
pub fn store_head(data: &[u8]) {
    fuzzing::head(data);
}
