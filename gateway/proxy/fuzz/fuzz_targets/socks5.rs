//! See `gateway_proxy::fuzzing::socks5`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_proxy::fuzzing::socks5(data));
