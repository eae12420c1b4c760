//! Who serves the pool: a pool-host of ours, or the kernel; chosen at the start, never both.
//!
//! A pool that is in use goes on with who serves it: its devices cannot change their server. `auto` accepts that, an
//! engine that was asked for by name is refused. A pool that nobody uses is handed over in order: the embedded engine
//! commits what its intent log holds, the kernel commits what it has, and only then the other one opens it. Killed in
//! between, the pool is down, which any start goes on from.

use std::io::ErrorKind::NotFound;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use thinsnap_pool::{
    ConnectOptions, DescriptorStore, DeviceId, Engine, HostKeeper, KernelOptions, KernelPool, PoolPaths, Replaced,
    SpawnOptions, StopOutcome, ThinPool, choose_engine, kernel_serves, open_kernel, withdraw_from_kernel,
};

use crate::admin::backend::{Keeping, export_of, host_socket_of, intent_log_in};
use crate::admin::pool_files::private_dir;
use crate::admin::run_dir;
use crate::config::{Config, run_dir_of, word_of};
use crate::error::{Error, ErrorKind, Result};

/// Longest wait for a pool-host to open its pool: a metadata device of 16 GiB is read whole.
const HOST_START_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest wait for a living host's first answer.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a call whose pool-host dies waits for the next one.
const PATIENCE: Duration = Duration::from_secs(30);
/// This very program, also when its file was replaced since it was started: service and pool-host are one version.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// Open devices that a refusal names.
const NAMED_MAX: usize = 8;

/// The engine of an open pool.
pub(super) struct PoolEngine {
    served_by: ServedBy,
    why: String,
}

enum ServedBy {
    /// The embedded engine, in a process that outlives us.
    Host(HostKeeper),
    /// dm-thin.
    Kernel(Arc<KernelPool>),
}

impl PoolEngine {
    /// Opens the pool with the engine that the configuration asks for, or goes on with the one that has it in use.
    /// The caller holds the root's lock. Errors: `InUse` if the engine asked for by name is not the one that serves
    /// devices in use; `Unsupported` and `Denied` if the machine cannot do it.
    pub(super) fn start(config: &Config, paths: &PoolPaths, keeping: Keeping) -> Result<Self> {
        let choice = choose_engine(config.engine)?;
        let Keeping { descriptors, store } = keeping;
        if !choice.kernel {
            let busy = withdraw_from_kernel(paths, &kernel_options(config))?;
            if !busy.is_empty() {
                return Err(served_by_another("kernel", "embedded", &busy));
            }
            return Self::host(config, paths, descriptors, store, choice.why);
        }
        // While the kernel has the pool no pool-host can: then there is none to look for.
        if !kernel_serves(paths, &kernel_options(config))? && host_has_it(config, &descriptors) {
            let keeper = start_host(config, paths, descriptors, Arc::clone(&store))?;
            match keeper.close()? {
                StopOutcome::Stopping => {
                    tracing::info!("the pool-host has gone: the kernel takes the pool over");
                    run_dir::remove(&config.run_dir);
                    private_dir(&config.run_dir)?;
                }
                StopOutcome::Busy(_) if config.engine == Engine::Auto => {
                    let why = "devices were in use when the service started, and a pool-host serves them".to_owned();
                    return Self::host(config, paths, Vec::new(), store, why);
                }
                StopOutcome::Busy(busy) => return Err(served_by_another("embedded", "kernel", &busy)),
            }
        }
        store.forget();
        let pool = open_kernel(paths, &kernel_options(config))?;
        Ok(Self { served_by: ServedBy::Kernel(pool), why: choice.why })
    }

    fn host(
        config: &Config,
        paths: &PoolPaths,
        descriptors: Vec<OwnedFd>,
        store: Arc<dyn DescriptorStore>,
        why: String,
    ) -> Result<Self> {
        let keeper = start_host(config, paths, descriptors, store)?;
        let host = keeper.client();
        if config.upgrade_on_start && !is_this_program(host.info().pid) {
            // The old program goes on serving: nothing is lost by that but what the new one does better.
            if let Err(error) = keeper.replace() {
                tracing::warn!(%error, "the pool-host runs another program and was not replaced");
            }
        }
        // The service before this one may have been killed with calls on their way.
        host.outlast_others()?;
        Ok(Self { served_by: ServedBy::Host(keeper), why })
    }

    /// The pool.
    pub(super) fn pool(&self) -> Arc<dyn ThinPool> {
        match &self.served_by {
            ServedBy::Host(keeper) => Arc::clone(keeper.client()) as _,
            ServedBy::Kernel(pool) => Arc::clone(pool) as _,
        }
    }

    /// `embedded` or `kernel`.
    pub(super) fn name(&self) -> &'static str {
        match &self.served_by {
            ServedBy::Host(_) => "embedded",
            ServedBy::Kernel(_) => "kernel",
        }
    }

    /// Why it is this one.
    pub(super) fn why(&self) -> &str {
        &self.why
    }

    /// The pool-host's process.
    pub(super) fn host_pid(&self) -> Option<u32> {
        match &self.served_by {
            ServedBy::Host(keeper) => Some(keeper.client().info().pid),
            ServedBy::Kernel(_) => None,
        }
    }

    /// Why no pool-host serves, if the pool needs one and none has for more than a moment.
    pub(super) fn trouble(&self) -> Option<String> {
        match &self.served_by {
            ServedBy::Host(keeper) => keeper.trouble(),
            ServedBy::Kernel(_) => None,
        }
    }

    /// Replaces the pool-host by one of this program; `None`: nothing is to be replaced, and `force` is not given.
    pub(super) fn replace(&self, force: bool) -> Result<Option<Replaced>> {
        match &self.served_by {
            ServedBy::Host(keeper) if force || !is_this_program(keeper.client().info().pid) => {
                Ok(Some(keeper.replace()?))
            }
            ServedBy::Host(_) => Ok(None),
            ServedBy::Kernel(_) if force => Err(Error::new(
                ErrorKind::Unsupported,
                "replace the pool-host: there is none, the kernel serves this pool",
            )
            .advise("a new version of the service is all of an upgrade: restart it, containers do not notice")),
            ServedBy::Kernel(_) => Ok(None),
        }
    }

    /// Takes the pool down, unless one of its devices is open: then who serves it goes on.
    pub(super) fn close(self) -> Result<StopOutcome> {
        let pool = match self.served_by {
            ServedBy::Host(keeper) => return Ok(keeper.close()?),
            ServedBy::Kernel(pool) => pool,
        };
        match pool.close() {
            Ok(()) => Ok(StopOutcome::Stopping),
            Err(error) => match pool.devices_in_use()? {
                busy if busy.is_empty() => Err(error.into()),
                busy => Ok(StopOutcome::Busy(busy)),
            },
        }
    }
}

/// How the kernel is to open the pool of a configuration.
#[must_use]
pub fn kernel_options(config: &Config) -> KernelOptions {
    KernelOptions {
        run_dir: config.run_dir.clone(),
        intent_log: Some(intent_log_in(&config.run_dir)),
        // For a pool that another program made, which has no identity to name its devices by.
        name: run_dir_of(&config.root).file_name().map(|name| name.to_string_lossy().into_owned()),
        watcher: std::env::current_exe().ok(),
        ..KernelOptions::default()
    }
}

/// True if a pool-host lives, or one that died has left devices that wait for the next, or a mount: who ends in order
/// takes his export directory along. What else a dead one left stands in its intent log, which `open_kernel` drains.
fn host_has_it(config: &Config, descriptors: &[OwnedFd]) -> bool {
    !descriptors.is_empty()
        || UnixStream::connect(host_socket_of(&config.run_dir)).is_ok()
        // The mount of a dead one answers with errors of its own.
        || !matches!(export_of(&config.run_dir).symlink_metadata(), Err(error) if error.kind() == NotFound)
}

fn served_by_another(serves: &str, wanted: &str, busy: &[DeviceId]) -> Error {
    let mut names: Vec<String> = busy.iter().take(NAMED_MAX).map(DeviceId::to_string).collect();
    if busy.len() > NAMED_MAX {
        names.push("...".to_owned());
    }
    Error::new(
        ErrorKind::InUse,
        format!(
            "open the pool with the {wanted} engine: the {serves} engine serves {} of its devices, which are in use: {}",
            busy.len(),
            names.join(", ")
        ),
    )
    .advise(format!(
        "start with --engine auto or --engine {serves} to go on as it is; to change, stop the containers that use these          devices first (unmount), then start again with --engine {wanted}"
    ))
}

/// True if a process runs the same file as this one.
fn is_this_program(pid: u32) -> bool {
    let file = |path: &str| std::fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    file(THIS_PROGRAM) == file(&format!("/proc/{pid}/exe"))
}

fn start_host(
    config: &Config,
    paths: &PoolPaths,
    descriptors: Vec<OwnedFd>,
    store: Arc<dyn DescriptorStore>,
) -> Result<HostKeeper> {
    Ok(HostKeeper::start(spawn_options(config, paths), descriptors, store)?)
}

fn spawn_options(config: &Config, paths: &PoolPaths) -> SpawnOptions {
    let socket = host_socket_of(&config.run_dir);
    let policy = config.room.first_policy();
    let args = [
        "pool-host".into(),
        "--data".into(),
        paths.data.clone().into_os_string(),
        "--metadata".into(),
        paths.metadata.clone().into_os_string(),
        "--run-dir".into(),
        config.run_dir.clone().into_os_string(),
        // Also for the writes that a host finds waiting when it takes over from a dead one.
        "--no-space-wait-ms".into(),
        policy.wait.as_millis().to_string().into(),
        "--no-space-memory".into(),
        policy.memory.0.to_string().into(),
        "--metadata-cache".into(),
        config.pool.metadata_cache.0.to_string().into(),
        "--export".into(),
        word_of(config.export).into(),
    ];
    SpawnOptions {
        connect: ConnectOptions { socket, identity: None, handshake_timeout: HANDSHAKE_TIMEOUT, patience: PATIENCE },
        program: THIS_PROGRAM.into(),
        args: args.into(),
        run_dir: config.run_dir.clone(),
        start_timeout: HOST_START_TIMEOUT,
    }
}
