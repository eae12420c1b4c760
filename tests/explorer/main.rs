//! Power cuts, explored: stories are told on recorded disks, and every disk that a cut may leave is opened and judged.
//!
//! What must hold then: every flushed byte is there; what was not flushed is old or new, never other bytes and never
//! another device's; verbs that returned are durable, the one in flight has happened or not; the snapshotter's
//! records agree with the pool. The same world serves the fault injection: operations of the disks fail on command.
//!
//! - `THINSNAP_EXPLORE_STATES=N` explores until N different disks were judged (`make crash-explore`: a million).
//! - `THINSNAP_EXPLORE_FIRST=SEED` begins with another story.
//! - `THINSNAP_EXPLORE=SEED/CUT/MASKS` judges one disk, as a finding prints it.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

mod cuts;
mod disks;
mod expected;
mod explore;
mod faults;
mod files;
mod finding;
mod judge;
mod machine;
mod model;
mod recovery;
mod story;
mod tally;
mod tokens;
mod views;
mod watched;

#[expect(unreachable_pub, reason = "the tests of the pool use it as a module of their own")]
#[path = "../../pool/tests/support/direct_exporter.rs"]
mod direct_exporter;
#[expect(dead_code, reason = "the tests of the metadata use the rest")]
#[path = "../../pool/tests/support/judges.rs"]
mod judges;
#[expect(unreachable_pub, reason = "the tests of the pool use it as a module of their own")]
#[path = "../../pool/tests/support/random.rs"]
mod random;
