//! See `gateway_admin::fuzzing::config_yaml`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_admin::fuzzing::config_yaml(data));
