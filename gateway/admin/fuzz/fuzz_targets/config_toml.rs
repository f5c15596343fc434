//! See `gateway_admin::fuzzing::config_toml`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_admin::fuzzing::config_toml(data));
