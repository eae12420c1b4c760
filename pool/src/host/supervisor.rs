//! Finds the living host of a pool, or starts one that outlives its starter.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Instant;

use crate::error::Result;
use crate::host::client::{ConnectOptions, HostClient};

/// How to start a host where none lives.
#[derive(Debug, Clone)]
pub struct SpawnOptions {
    /// How to reach the host, living or started.
    pub connect: ConnectOptions,
    /// The program, normally `/proc/self/exe`'s target; it must call [`run`](crate::host::run) with `supervised`.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// A directory of this pool for `host.lock` and `host.log`; it must exist.
    pub run_dir: PathBuf,
    /// When to give up waiting for the start.
    pub deadline: Instant,
}

/// Connects to the living host, or starts one and connects to it; of several callers at once one starts it.
/// The started process has its own session and its output in `host.log`; neither the death of this process nor a
/// ctrl-C in its terminal ends it. Errors: those that the host met while opening the pool; `Unavailable` if it died
/// or was not ready in time (with the last lines of the log).
pub fn connect_or_spawn(_options: &SpawnOptions) -> Result<HostClient> {
    todo!()
}
