//! See `federation_store::fuzzing::store_row`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| federation_store::fuzzing::store_row(data));
