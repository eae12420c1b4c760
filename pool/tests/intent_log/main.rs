//! Killed processes and power cuts against the intent log and the early writes: what was acknowledged survives the first,
//! what was flushed the second.
#![expect(clippy::unwrap_used, reason = "what supports a test may panic where a test would")]
mod adoption;
#[path = "../support/direct_exporter.rs"]
mod direct_exporter;
mod early;
mod files;
mod ground;
#[path = "../support/judges.rs"]
#[expect(dead_code, reason = "the tests of the metadata use the rest")]
mod judges;
mod killed_anywhere;
mod processes;
#[path = "../support/random.rs"]
mod random;
mod story;
mod together;
