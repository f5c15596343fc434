//! See `federation_link::fuzzing::records`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| federation_link::fuzzing::records(data));
