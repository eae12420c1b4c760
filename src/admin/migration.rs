//! `thinsnap migrate`: another program's thin pool becomes the pool of a root directory.
//!
//! Three steps, each of which does those before it again. Looking reads. Entering writes the store and two links in
//! the root directory, nothing else. Taking over has the kernel let the pool go, gives the pool an identity (a field that
//! other programs leave alone), and marks the store as whole; only then is it served. Killed between any two of these, the
//! same command goes on; until the mark the pool's own program can start it again and finds what it left.

use std::path::{Path, PathBuf};

use serde::Serialize;
use thinsnap_pool::{DeviceId, Inventory, PoolPaths, RunningPool, find_running_pool, give_identity, inventory};

use crate::admin::backend::lock_root;
use crate::admin::pool_files::{link_pool, pool_paths_of};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::{
    DevmapperFiles, MigrationPlan, Wanted, check_free, enter, finish, parse_thin_ids, plan, read_devmapper, state_of,
};
use crate::snapshot::Space;

/// Where the records are.
#[derive(Debug, Clone)]
pub enum MigrationSource {
    /// The root directory of containerd's devmapper snapshotter.
    Devmapper(PathBuf),
    /// A file with a list of thin devices.
    ThinIds(PathBuf),
}

/// How far to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationStep {
    /// Say what would be done.
    DryRun,
    /// Enter the records; the pool is only read.
    Apply,
    /// Take the pool over.
    TakeOver,
}

/// What is to be migrated.
#[derive(Debug, Clone)]
pub struct MigrationRequest {
    /// Where the records are.
    pub source: MigrationSource,
    /// Name of the pool in device-mapper.
    pub pool_name: Option<String>,
    /// Where the pool is, if device-mapper does not have it.
    pub devices: Option<PoolPaths>,
    /// The space that the snapshots are entered in.
    pub space: Space,
    /// Go on without those that cannot come along.
    pub leave_out: bool,
    /// How far to go.
    pub step: MigrationStep,
}

/// What was done, or would be.
#[derive(Debug, Clone, Serialize)]
pub struct Migrated {
    /// How far it went.
    pub step: MigrationStep,
    /// The space of the snapshots.
    pub space: String,
    /// Where the pool's metadata is when nobody serves it.
    pub metadata: PathBuf,
    /// Where its data is.
    pub data: PathBuf,
    /// Bytes in use of the pool's data.
    pub data_used: u64,
    /// Its thin devices that the host still sees.
    pub shown: Vec<ShownThin>,
    /// What comes along.
    #[serde(flatten)]
    pub plan: MigrationPlan,
}

/// A thin device that the host sees.
#[derive(Debug, Clone, Serialize)]
pub struct ShownThin {
    /// Its name in device-mapper.
    pub name: String,
    /// Its number.
    pub id: DeviceId,
    /// Mounts and processes that have it open.
    pub openers: u32,
}

/// Goes as far as asked. Errors: `InUse` while containerd runs, or a device of the pool is mounted at the end; `NotFound`
/// for the files or the pool; `Unsupported` for what cannot come along, and for LVM's pools; `AlreadyExists` if the root
/// directory has another pool.
pub fn migrate(config: &Config, request: &MigrationRequest) -> Result<Migrated> {
    // Until the end nobody can start containerd on the files that were read.
    let (files, wanted, going) = records(request)?;
    let found = find(config, request)?;
    let pool = inventory(&found.seen.metadata, &found.seen.data)?;
    let plan = plan(wanted, &going, &pool);
    let migrated = Migrated {
        step: request.step,
        space: request.space.as_str().to_owned(),
        metadata: found.homes.metadata.clone(),
        data: found.homes.data.clone(),
        data_used: pool.data_used.0,
        shown: found.running.iter().flat_map(|running| &running.thins).map(ShownThin::of).collect(),
        plan,
    };
    if request.step == MigrationStep::DryRun {
        return Ok(migrated);
    }
    check(request, &found, &migrated.plan)?;
    apply(config, request, &found, &pool, &migrated.plan)?;
    drop(files);
    Ok(migrated)
}

impl ShownThin {
    fn of(thin: &thinsnap_pool::RunningThin) -> Self {
        Self { name: thin.name.clone(), id: thin.id, openers: thin.openers }
    }
}

/// What is to come along, and what was on its way out; the files stay locked with the first.
fn records(request: &MigrationRequest) -> Result<(Option<DevmapperFiles>, Vec<Wanted>, Vec<DeviceId>)> {
    match &request.source {
        MigrationSource::Devmapper(root) => {
            let name = request.pool_name.as_deref().ok_or_else(|| {
                Error::new(ErrorKind::InvalidArgument, "the name of the pool is missing")
                    .advise("--pool-name NAME, as in containerd's configuration")
            })?;
            let files = DevmapperFiles::open(root, name)?;
            let (wanted, going) = read_devmapper(&files)?;
            Ok((Some(files), wanted, going))
        }
        MigrationSource::ThinIds(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| Error::io(format!("read the list {}", path.display()), error))?;
            let wanted = parse_thin_ids(&text, now_ns()).map_err(|error| error.doing(path.display().to_string()))?;
            Ok((None, wanted, Vec::new()))
        }
    }
}

fn now_ns() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Where the pool is.
struct Found {
    /// Device-mapper has it.
    running: Option<RunningPool>,
    /// Where it can be read.
    seen: PoolPaths,
    /// Where it is when nobody serves it.
    homes: PoolPaths,
}

fn find(config: &Config, request: &MigrationRequest) -> Result<Found> {
    if let Some(name) = &request.pool_name
        && let Some(running) = running(name, &config.run_dir)?
    {
        let seen = PoolPaths { metadata: running.metadata.clone(), data: running.data.clone() };
        let [metadata, data] = running.homes.clone();
        if let Some(given) = &request.devices
            && (real(&given.metadata)?, real(&given.data)?) != (real(&metadata)?, real(&data)?)
        {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("the pool {name} runs on {} and {}", metadata.display(), data.display()),
            )
            .advise("leave --metadata-device and --data-device out"));
        }
        return Ok(Found { running: Some(running), seen, homes: PoolPaths { metadata, data } });
    }
    let paths = match &request.devices {
        Some(given) => PoolPaths { metadata: real(&given.metadata)?, data: real(&given.data)? },
        // Where an earlier run that was cut short left it.
        None => Some(pool_paths_of(&config.root)).filter(|paths| paths.metadata.exists()).ok_or_else(|| {
            let name = request.pool_name.as_deref().unwrap_or("the list's pool");
            Error::new(ErrorKind::NotFound, format!("device-mapper has no pool {name}")).advise(
                "start it as before (not containerd), or say where it is: --metadata-device PATH --data-device PATH",
            )
        })?,
    };
    Ok(Found { running: None, seen: paths.clone(), homes: paths })
}

/// The pool if it runs; a kernel without thin pools runs none.
fn running(name: &str, run_dir: &Path) -> Result<Option<RunningPool>> {
    match find_running_pool(name, run_dir) {
        Err(error) if error.kind() == thinsnap_pool::ErrorKind::Unsupported => Ok(None),
        found => Ok(found?),
    }
}

fn real(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(|error| Error::io(format!("find {}", path.display()), error))
}

/// What must be settled before anything is written.
fn check(request: &MigrationRequest, found: &Found, plan: &MigrationPlan) -> Result<()> {
    if let Some(first) = plan.left_out.first().filter(|_| !request.leave_out) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{} snapshots cannot come along; the first is {:?}: {}",
                plan.left_out.len(),
                first.name,
                first.why
            ),
        )
        .advise("--dry-run tells all of them; --leave-out goes on without them"));
    }
    let Some(running) = &found.running else { return Ok(()) };
    if running.of_lvm {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("the pool {} is LVM's, which is not told of changes", running.name),
        )
        .advise("a pool on two logical volumes, disks or files of its own can be taken over"));
    }
    match running.thins.iter().find(|thin| thin.openers > 0) {
        Some(open) if request.step == MigrationStep::TakeOver => {
            Err(Error::new(ErrorKind::InUse, format!("{} is mounted or open", open.name))
                .advise("stop the containers first: they outlive containerd"))
        }
        _ => Ok(()),
    }
}

fn apply(
    config: &Config,
    request: &MigrationRequest,
    found: &Found,
    pool: &Inventory,
    plan: &MigrationPlan,
) -> Result<()> {
    let store = lock_root(&config.root)?;
    if state_of(&store.read()?)?.is_some_and(|state| state.taken_over) && pool.identity != [0; 16] {
        return check_same(&store.read()?, pool);
    }
    check_free(&store.read()?)?;
    let source = match &request.source {
        MigrationSource::Devmapper(root) => root.display().to_string(),
        MigrationSource::ThinIds(path) => path.display().to_string(),
    };
    // The links first: a root directory with records and without a pool would get a new one at the next start.
    link_pool(&config.root, &found.homes)?;
    let chosen = if pool.identity == [0; 16] { *uuid::Uuid::new_v4().as_bytes() } else { pool.identity };
    let identity = enter(&store, plan, &request.space, &source, chosen, pool.transaction_id)?;
    if request.step != MigrationStep::TakeOver {
        return Ok(());
    }
    if let Some(running) = &found.running {
        running.take_down()?;
    }
    give_identity(&found.homes.metadata, &found.homes.data, identity)?;
    finish(&store)
}

/// A migration that is done already.
fn check_same(reader: &impl crate::store::Records, pool: &Inventory) -> Result<()> {
    if reader.identity()? == Some(pool.identity) {
        tracing::info!("the pool was taken over already");
        return Ok(());
    }
    Err(Error::new(ErrorKind::AlreadyExists, "another pool was taken over into this root directory already")
        .advise("choose another --root"))
}
