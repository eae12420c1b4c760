//! Runs `config` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| thinsnap_fuzz::config(bytes));
