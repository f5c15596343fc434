//! See `federation_link::fuzzing::state_row`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| federation_link::fuzzing::state_row(data));
