//! A full pool is a non-event: who needs a block waits or is told, everybody else goes on.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

#[path = "../support/host_process.rs"]
mod host_process;
#[path = "../support/host_tools.rs"]
mod host_tools;
#[path = "../support/shown_by.rs"]
mod shown_by;
#[path = "../support"]
mod support {
    pub(crate) mod direct_exporter;
    pub(crate) mod random;
}
mod cycles;
mod disk;
mod engine;
mod holdings;
mod queue;

#[test]
#[ignore = "started by other tests"]
fn the_host_process() {
    host_process::be_the_host();
}
