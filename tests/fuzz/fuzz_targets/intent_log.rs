//! Runs `intent_log` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| thinsnap_fuzz::intent_log(bytes));
