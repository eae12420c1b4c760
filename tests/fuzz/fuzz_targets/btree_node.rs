//! Runs `btree_node` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| thinsnap_fuzz::btree_node(bytes));
