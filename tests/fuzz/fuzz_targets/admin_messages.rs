//! Runs `admin_messages` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| thinsnap_fuzz::admin_messages(bytes));
