//! See `federation_link::fuzzing::session_frame`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| federation_link::fuzzing::session_frame(data));
