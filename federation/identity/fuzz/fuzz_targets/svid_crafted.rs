//! See `federation_identity::fuzzing::svid_crafted`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| federation_identity::fuzzing::svid_crafted(data));
