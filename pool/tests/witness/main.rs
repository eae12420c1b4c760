//! The kernel's own dm-thin as the witness of what the embedded engine writes, and the other way round.
//!
//! These tests need a kernel with dm-thin: `make test-kernel` runs them where there is one, or brings one. They share
//! no line with our engine: the kernel is driven by dmsetup.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]
#![expect(unreachable_pub, reason = "the modules are those of other test programs too")]

mod embedded;
mod flush;
mod handover;
mod kernel;
#[path = "../support"]
mod support {
    pub mod direct_exporter;
    #[expect(dead_code, reason = "the tests of the metadata use the rest")]
    pub mod judges;
    pub mod random;
}
mod truth;
