//! `thinsnap pool-host`: the process that serves one pool's devices; started by the service, outlives it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use thinsnap_pool::{
    ByteCount, EmbeddedOptions, Export, ExportOptions, HostOptions, NoSpace, PoolPaths, ThinPool, begin_export,
    open_embedded, run_host,
};

use crate::admin::{export_of, host_socket_of, intent_log_in};
use crate::config::LogFormat;
use crate::error::Result;
use crate::serve::log;

/// A host that nobody needs any more ends by itself after this long. Longer than a restart of the service takes.
const IDLE_AFTER: Duration = Duration::from_secs(60);

/// What the service tells its pool-host.
#[derive(Debug, Clone)]
pub struct HostWork {
    /// What to do with writes that find no room.
    pub no_space: NoSpace,
    /// Most bytes of metadata in memory.
    pub metadata_cache: ByteCount,
    /// How devices are shown.
    pub export: Export,
}

/// The whole life of the process. Its log goes to the file that the service gave it as stderr.
pub fn pool_host(paths: &PoolPaths, run_dir: &Path, work: &HostWork) -> Result<()> {
    log::start("info", LogFormat::Text)?;
    let options = HostOptions { socket: host_socket_of(run_dir), idle_after: IDLE_AFTER, supervised: true };
    run_host(&options, |inherited| {
        let mut options = ExportOptions::new(export_of(run_dir));
        options.no_space = work.no_space;
        options.alive = Some(run_dir.join("host.alive"));
        let exporter = begin_export(work.export, options, inherited)?;
        let intent_log = Some(intent_log_in(run_dir));
        let metadata_cache = work.metadata_cache;
        let options = EmbeddedOptions { intent_log, metadata_cache, ..EmbeddedOptions::default() };
        let pool: Arc<dyn ThinPool> = open_embedded(paths, Arc::clone(&exporter), &options)?;
        Ok((pool, exporter))
    })?;
    Ok(())
}
