//! `thinsnap pool-host`: the process that serves one pool's devices; started by the service, outlives it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use thinsnap_pool::{
    ByteCount, EmbeddedOptions, Exporter, FuseExporter, FuseOptions, HostOptions, NoSpace, PoolPaths, ThinPool,
    open_embedded, run_host,
};

use crate::admin::{export_of, host_socket_of, intent_log_in};
use crate::config::LogFormat;
use crate::error::Result;
use crate::serve::log;

/// A host that nobody needs any more ends by itself after this long. Longer than a restart of the service takes.
const IDLE_AFTER: Duration = Duration::from_secs(60);

/// The whole life of the process. Its log goes to the file that the service gave it as stderr.
pub fn pool_host(paths: &PoolPaths, run_dir: &Path, no_space: NoSpace, metadata_cache: ByteCount) -> Result<()> {
    log::start("info", LogFormat::Text)?;
    let options = HostOptions { socket: host_socket_of(run_dir), idle_after: IDLE_AFTER, supervised: true };
    run_host(&options, |inherited| {
        let mut export = FuseOptions::new(export_of(run_dir));
        export.no_space = no_space;
        export.alive = Some(run_dir.join("host.alive"));
        let exporter: Arc<dyn Exporter> = Arc::new(FuseExporter::begin(export, inherited)?);
        let intent_log = Some(intent_log_in(run_dir));
        let options = EmbeddedOptions { intent_log, metadata_cache, ..EmbeddedOptions::default() };
        let pool: Arc<dyn ThinPool> = open_embedded(paths, Arc::clone(&exporter), &options)?;
        Ok((pool, exporter))
    })?;
    Ok(())
}
