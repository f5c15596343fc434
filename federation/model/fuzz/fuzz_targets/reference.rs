//! See `federation_model::fuzzing::reference`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| federation_model::fuzzing::reference(data));
