//! See `gateway_proxy::fuzzing::greeting`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_proxy::fuzzing::greeting(data));
