//! See `gateway_proxy::fuzzing::mesh_frame`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_proxy::fuzzing::mesh_frame(data));
