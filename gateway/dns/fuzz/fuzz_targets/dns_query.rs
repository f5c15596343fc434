//! See `gateway_dns::fuzzing::dns_query`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_dns::fuzzing::dns_query(data));
