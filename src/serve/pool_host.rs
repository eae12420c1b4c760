//! `thinsnap pool-host`: the process that serves one pool's devices; started by the service, outlives it.

use std::path::Path;
use std::time::Duration;

use thinsnap_pool::{HostOptions, run};

use crate::error::Result;

/// A host that nobody needs any more ends by itself after this long. Longer than a restart of the service takes.
const IDLE_AFTER: Duration = Duration::from_secs(60);
