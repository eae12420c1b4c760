//! Runs `archive_layout` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| thinsnap_fuzz::archive_layout(bytes));
