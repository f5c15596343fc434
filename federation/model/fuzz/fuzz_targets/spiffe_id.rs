//! See `federation_model::fuzzing::spiffe_id`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| federation_model::fuzzing::spiffe_id(data));
