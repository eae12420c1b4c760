//! The kernel's dm-thin as an engine: the laws, what outlives a process, what is healed, what is refused.
//!
//! Where this kernel has no dm-thin every test says SKIPPED; `make test-kernel` runs them in a virtual machine. They
//! take turns: what a test leaves in device-mapper is found by looking at all of it.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

#[path = "support/host_tools.rs"]
mod host_tools;
mod kernel_story {
    mod disks;
    mod errors;
    mod full;
    mod handover;
    mod life;
    mod living;
    mod logged;
    mod rights;
    mod told;
    mod views;
}
mod support {
    pub(crate) mod direct_exporter;
    pub(crate) mod disk;
    pub(crate) mod judges;
    pub(crate) mod kernel_stage;
    pub(crate) mod laws;
    pub(crate) mod random;
    pub(crate) mod stage;
}

use std::sync::{Mutex, MutexGuard, PoisonError};

use support::kernel_stage::{KernelStage, skipped_without_dm};
use support::stage::Stage;

static ONE: Mutex<()> = Mutex::new(());

/// The turn of a test, or `None` where it cannot run.
fn turn() -> Option<MutexGuard<'static, ()>> {
    let turn = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    (!skipped_without_dm()).then_some(turn)
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_the_kernel_engine_keeps_the_laws() {
    let Some(_turn) = turn() else { return };
    support::laws::run(&|| Box::new(KernelStage::new()) as Box<dyn Stage>);
}
