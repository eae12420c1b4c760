//! What a service consists of below its sockets: root directory, store, pool-host, snapshotter, images,
//! containers; opened in this order, so that the store's lock guards everything after it.
//!
//! `serve` and the command line without a service open the same thing; who comes second gets `InUse`. A
//! pool-host that is alive from an earlier service is adopted, with all that is mounted on it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thinsnap_pool::{DescriptorStore, NoStore, Replaced, StopOutcome, finish_replacement};

use crate::admin::backups::Backups;
use crate::admin::engine::PoolEngine;
use crate::admin::metadata::MetadataReader;
use crate::admin::pool_files::{self, note_of, pool_paths_of, private_dir};
use crate::admin::run_dir;
use crate::config::{Config, Limits};
use crate::container::Containers;
use crate::error::{Error, ErrorKind, Result};
use crate::image::Images;
use crate::migrate::refuse_unfinished;
use crate::snapshotter::Snapshotter;
use crate::store::Store;

/// What to do if there is no pool in the root directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMissing {
    /// Make one, as the configuration has it.
    Create,
    /// Say so.
    Refuse,
}

/// What keeps a pool-host's devices beyond the death of this process and of the host.
pub struct Keeping {
    /// What was kept for this process by whoever started it; empty if nothing was.
    pub descriptors: Vec<OwnedFd>,
    /// Where to put what is to be kept.
    pub store: Arc<dyn DescriptorStore>,
}

impl Default for Keeping {
    fn default() -> Self {
        Self { descriptors: Vec::new(), store: Arc::new(NoStore) }
    }
}

/// Everything below the sockets.
pub struct Backend {
    root: PathBuf,
    run_dir: PathBuf,
    engine: PoolEngine,
    backups: Arc<Backups>,
    snapshotter: Arc<Snapshotter>,
    images: Images,
    import_limits: Limits,
    containers: Containers,
}

impl Backend {
    /// Opens everything. Errors: `InUse` if another process has it open, `NotFound` if there is no pool and none
    /// is to be made, and those of the layers below.
    pub fn open(config: &Config, missing: PoolMissing) -> Result<Self> {
        Self::open_keeping(config, missing, Keeping::default())
    }

    /// As [`Backend::open`], with a place that keeps the pool-host's devices if this process and the host both die.
    pub fn open_keeping(config: &Config, missing: PoolMissing, keeping: Keeping) -> Result<Self> {
        let paths = pool_paths_of(&config.root);
        let made = pool_files::is_made(&paths)? || note_of(&config.root).exists();
        match (made, missing) {
            (true, _) => pool_files::agree(&paths, &config.pool)?,
            (false, PoolMissing::Create) => pool_files::check_plan(config)?,
            (false, PoolMissing::Refuse) => return Err(no_pool(config)),
        }
        let store = lock_root(&config.root)?;
        refuse_unfinished(&store.read()?)?;
        if !made {
            pool_files::make(config)?;
            tracing::info!(root = %config.root.display(), "made a pool");
        }
        // Where it was made: on files or disks of other names there are links by now.
        let paths = pool_paths_of(&config.root);
        // A replacement of the metadata that was cut short leaves a disk without a pool.
        if finish_replacement(&note_of(&config.root))? {
            tracing::info!("finished putting new metadata in its place");
        }
        private_dir(&config.run_dir)?;
        let engine =
            PoolEngine::start(config, &paths, keeping).inspect_err(|_| run_dir::remove_unused(&config.run_dir))?;
        let pool = engine.pool();
        pool.set_no_space(config.room.first_policy())?;
        let snapshotter = Snapshotter::open(pool, store.clone(), config.snapshotter.clone())?;
        let recovered = snapshotter.recovered();
        tracing::info!(
            engine = engine.name(),
            host = engine.host_pid(),
            why = engine.why(),
            limbo_drained = recovered.limbo_drained,
            "opened the pool"
        );
        let images = Images::open(Arc::clone(&snapshotter), store.clone(), &config.root.join("work"))?;
        let containers = Containers::new(Arc::clone(&snapshotter), store);
        let import_limits = config.import.clone();
        let (root, run_dir) = (config.root.clone(), config.run_dir.clone());
        let backups = Arc::new(Backups::new(&root, &config.backup));
        Ok(Self { root, run_dir, engine, backups, snapshotter, images, import_limits, containers })
    }

    /// The root directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Opens the pool's metadata for reading, beside the engine that writes it.
    #[must_use]
    pub fn metadata(&self) -> MetadataReader {
        MetadataReader::Served { path: pool_paths_of(&self.root).metadata, pool: Arc::clone(self.snapshotter.pool()) }
    }

    /// The records.
    #[must_use]
    pub fn store(&self) -> &Store {
        self.snapshotter.store()
    }

    /// The backups of the metadata.
    #[must_use]
    pub fn backups(&self) -> &Arc<Backups> {
        &self.backups
    }

    /// The snapshotter.
    #[must_use]
    pub fn snapshotter(&self) -> &Arc<Snapshotter> {
        &self.snapshotter
    }

    /// The images.
    #[must_use]
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// What an import may ask of us.
    #[must_use]
    pub fn import_limits(&self) -> &Limits {
        &self.import_limits
    }

    /// The containers.
    #[must_use]
    pub fn containers(&self) -> &Containers {
        &self.containers
    }

    /// Why this engine serves the pool, for people.
    #[must_use]
    pub fn why_this_engine(&self) -> &str {
        self.engine.why()
    }

    /// True if the kernel serves the pool, and no process of ours.
    #[must_use]
    pub fn is_served_by_kernel(&self) -> bool {
        self.engine.host_pid().is_none()
    }

    /// Why no pool-host serves, if the pool needs one and none has for more than a moment.
    #[must_use]
    pub fn host_trouble(&self) -> Option<String> {
        self.engine.trouble()
    }

    /// Replaces the pool-host by one of this program, under the I/O of running containers. `None`: there is nothing to
    /// replace, and `force` is not given. Errors: `Unsupported` if no process of ours serves the pool.
    pub fn replace_host(&self, force: bool) -> Result<Option<Replaced>> {
        self.engine.replace(force)
    }

    /// Takes the pool down unless one of its devices is open (then who serves it stays, for the next service to adopt),
    /// and waits until it is done.
    pub fn close(self) -> Result<StopOutcome> {
        let Self { engine, snapshotter, images, containers, run_dir, .. } = self;
        // Holds the root's lock until the end: who starts meanwhile waits with his run directory.
        let _store = snapshotter.store().clone();
        drop((images, containers, snapshotter));
        let outcome = engine.close()?;
        if outcome == StopOutcome::Stopping {
            run_dir::remove(&run_dir);
        }
        Ok(outcome)
    }
}

/// Where the pool-host of a run directory keeps what it acknowledged and has not committed.
#[must_use]
pub fn intent_log_in(run_dir: &Path) -> PathBuf {
    run_dir.join("intent.log")
}

/// Where the pool-host of a run directory shows its devices' files: mounted while one lives, gone when it ends in order.
#[must_use]
pub fn export_of(run_dir: &Path) -> PathBuf {
    run_dir.join("export")
}

/// Where the pool-host of a run directory listens.
#[must_use]
pub fn host_socket_of(run_dir: &Path) -> PathBuf {
    run_dir.join("host.sock")
}

/// Makes the pool of a configuration and nothing else; who serves the root meanwhile makes it `InUse`.
pub fn create_pool(config: &Config) -> Result<()> {
    pool_files::check_plan(config)?;
    if pool_files::is_made(&pool_paths_of(&config.root))? {
        let root = config.root.display();
        return Err(Error::new(ErrorKind::AlreadyExists, format!("there is a pool in {root} already"))
            .advise("choose another directory, or grow this one: thinsnap pool grow --data SIZE"));
    }
    let _store = lock_root(&config.root)?;
    pool_files::make(config)
}

/// Opens the store. From here to its drop, whoever opens the same root gets `InUse`.
pub(super) fn lock_root(root: &Path) -> Result<Store> {
    private_dir(root)?;
    Store::open(&root.join("store.redb")).map_err(|error| match error.kind() {
        ErrorKind::InUse => error.advise("another process has it open: if it is a service, name its --socket"),
        _ => error,
    })
}

fn no_pool(config: &Config) -> Error {
    let root = config.root.display();
    Error::new(ErrorKind::NotFound, format!("no pool in {root}"))
        .advise(format!("thinsnap pool create {root} --size 100G, or name another directory with --root"))
}
