//! See `federation_identity::fuzzing::sealed`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| federation_identity::fuzzing::sealed(data));
