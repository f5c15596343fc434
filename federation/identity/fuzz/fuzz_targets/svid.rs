//! See `federation_identity::fuzzing::svid`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| federation_identity::fuzzing::svid(data));
