//! The host's side: serves one pool to many connections until nobody needs it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::export::Exporter;
use crate::thin_pool::ThinPool;

/// How a host process behaves.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// The unix socket to serve on, at most 107 bytes, mode 0600.
    pub socket: PathBuf,
    /// With no client connected and no device open for this long, the host ends by itself.
    pub idle_after: Duration,
    /// True if a supervisor reads readiness or the start error from standard output.
    pub supervised: bool,
}

/// The whole life of a host process: leaves the caller's session, opens the pool with `open`, says that it is
/// ready, serves, and returns when it was asked to stop (`SIGTERM`, [`StopOutcome`](crate::host::StopOutcome))
/// or nobody was left, with no device open. Call it first thing in a process of one thread.
///
/// Errors: those of `open`; `InUse` if another host serves the socket.
pub fn run(
    _options: &HostOptions,
    _open: impl FnOnce() -> Result<(Arc<dyn ThinPool>, Arc<dyn Exporter>)>,
) -> Result<()> {
    todo!()
}
