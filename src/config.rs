//! The configuration: a TOML file, every field documented, every value checked at the start.
//!
//! Everything has a default; `thinsnap serve --root DIR --size 100G` needs no file. A field that is not known
//! is refused with the nearest one that is: a misspelt floor must not silently be no floor.

mod limits;

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thinsnap_pool::{BlockSize, ByteCount, Engine, Export, METADATA_CACHE_DEFAULT};

use crate::config::backup::{BACKUP_FIELDS, BackupTable};
use crate::config::known::check_fields;
use crate::config::limits::{IMPORT_FIELDS, Number};
use crate::config::room::{AUTO_EXTEND_FIELDS, POOL_ROOM_FIELDS, RoomTable, WATERMARKS_FIELDS};
pub use crate::config::room::{AutoExtend, RoomConfig, Share, Watermarks, part};
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{FsType, Space};

mod backup;
mod choice;
mod known;

pub use backup::BackupConfig;
pub(crate) use choice::word_of;
pub use choice::{parse_engine, parse_export};
pub use limits::Limits;

/// Where pool and records stand if nobody says otherwise.
pub const ROOT_DEFAULT: &str = "/var/lib/thinsnap";
/// Where the service listens if nobody says otherwise.
pub const SOCKET_DEFAULT: &str = "/run/thinsnap/thinsnap.sock";
/// Parent of the run directories, one for each root: on tmpfs, so that what must not outlive a boot does not.
pub const RUN_PARENT: &str = "/run/thinsnap";
/// Longest path of a unix socket, in bytes (sun_path without its NUL).
pub const SOCKET_PATH_LEN_MAX: usize = 107;
/// Smallest file system that a profile may ask for: below it XFS refuses to be made.
const SNAPSHOT_SIZE_MIN: u64 = 300 << 20;
/// Least memory for metadata: each size of record in it, and some hundred nodes.
const METADATA_CACHE_MIN: ByteCount = ByteCount(4 << 20);

/// How snapshots of one space are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// File system of the base device.
    pub fs: FsType,
    /// Size of a snapshot without a label; a label can make it larger than its parent, never smaller.
    pub size: ByteCount,
}

/// What the snapshotter needs to know.
#[derive(Debug, Clone)]
pub struct SnapshotterConfig {
    /// Profiles by snapshotter name.
    pub profiles: BTreeMap<String, Profile>,
    /// The profile of names that are not in the map.
    pub default_profile: Profile,
    /// Prepare answers `NoSpace` when less data space is free, or less room on the file system below it.
    pub data_floor: Share,
    /// Prepare answers `NoSpace` when less metadata space is free above the pool's reserve.
    pub metadata_floor: Share,
    /// A directory of ours for temporary mounts.
    pub work_dir: PathBuf,
}

/// How a pool is laid out when it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolConfig {
    /// Data space of a pool that is made on first use; `None`: the pool must be there, or its data device tells.
    pub size: Option<ByteCount>,
    /// Metadata space; `None`: taken from the data space.
    pub metadata_size: Option<ByteCount>,
    /// Size of a data block.
    pub block_size: BlockSize,
    /// Block device or file for the data; `None`: a sparse file in the root.
    pub data_device: Option<PathBuf>,
    /// Block device or file for the metadata; `None`: a file in the root.
    pub metadata_device: Option<PathBuf>,
    /// Memory of a pool-host for what it knows of the metadata.
    pub metadata_cache: ByteCount,
}

/// Where and for whom the service listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketConfig {
    /// Path of the unix socket.
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// Owning group: a name or a number; `None`: the process's own.
    pub group: Option<String>,
    /// Who may use containerd's service.
    pub snapshots: SnapshotPeers,
}

/// Who may use containerd's service on the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotPeers {
    /// Root, as containerd runs.
    Root,
    /// Everybody whom the socket's mode and group let connect.
    Connected,
}

/// How log lines look on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Everything that `serve` needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of pool and records.
    pub root: PathBuf,
    /// Directory for what lives as long as the machine runs: the pool-host's socket, exports, the intent log.
    pub run_dir: PathBuf,
    /// Who moves the blocks.
    pub engine: Engine,
    /// How the embedded engine shows its devices.
    pub export: Export,
    /// The pool.
    pub pool: PoolConfig,
    /// What is done when its room runs short.
    pub room: RoomConfig,
    /// The socket.
    pub socket: SocketConfig,
    /// Profiles and floors.
    pub snapshotter: SnapshotterConfig,
    /// What an import may ask of us.
    pub import: Limits,
    /// A service that finds a living pool-host of another program replaces it at its start.
    pub upgrade_on_start: bool,
    /// Backups of the metadata.
    pub backup: BackupConfig,
    /// Log filter, as `tracing` reads it: `info`, `thinsnap=debug`.
    pub log_level: String,
    /// Log format.
    pub log_format: LogFormat,
}

/// What the command line says over the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--root`
    pub root: Option<PathBuf>,
    /// `--socket`
    pub socket: Option<PathBuf>,
    /// `--engine`
    pub engine: Option<Engine>,
    /// `--export`
    pub export: Option<Export>,
    /// `--size`
    pub size: Option<ByteCount>,
    /// `--metadata-size`
    pub metadata_size: Option<ByteCount>,
    /// `--block-size`
    pub block_size: Option<BlockSize>,
    /// `--data-device`
    pub data_device: Option<PathBuf>,
    /// `--metadata-device`
    pub metadata_device: Option<PathBuf>,
    /// `--log-level`
    pub log_level: Option<String>,
    /// `--log-format`
    pub log_format: Option<LogFormat>,
}

// The file as it is written. `dist/thinsnap.toml` shows every field with its default.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    root: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    engine: Option<String>,
    export: Option<String>,
    pool: PoolTable,
    socket: SocketTable,
    floors: FloorsTable,
    import: BTreeMap<String, Number>,
    backup: BackupTable,
    log: LogTable,
    host: HostTable,
    default: ProfileTable,
    snapshotter: BTreeMap<String, ProfileTable>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PoolTable {
    size: Option<String>,
    metadata_size: Option<String>,
    block_size: Option<String>,
    data_device: Option<PathBuf>,
    metadata_device: Option<PathBuf>,
    metadata_cache: Option<String>,
    #[serde(flatten)]
    room: RoomTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SocketTable {
    path: Option<PathBuf>,
    mode: Option<String>,
    group: Option<String>,
    snapshots: Option<SnapshotPeers>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FloorsTable {
    data: Option<String>,
    metadata: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LogTable {
    level: Option<String>,
    format: Option<LogFormat>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct HostTable {
    upgrade_on_start: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ProfileTable {
    fs: Option<FsType>,
    size: Option<String>,
}

const TOP_FIELDS: [&str; 13] = [
    "root",
    "run_dir",
    "engine",
    "export",
    "pool",
    "socket",
    "floors",
    "backup",
    "import",
    "log",
    "default",
    "snapshotter",
    "host",
];
const POOL_FIELDS: [&str; 6] =
    ["size", "metadata_size", "block_size", "data_device", "metadata_device", "metadata_cache"];
const SOCKET_FIELDS: [&str; 4] = ["path", "mode", "group", "snapshots"];
const FLOORS_FIELDS: [&str; 2] = ["data", "metadata"];
const HOST_FIELDS: [&str; 1] = ["upgrade_on_start"];
const LOG_FIELDS: [&str; 2] = ["level", "format"];
const PROFILE_FIELDS: [&str; 2] = ["fs", "size"];

impl Config {
    /// The configuration of a file (or of none) under the command line's words. Errors: `InvalidArgument`,
    /// naming the field; `NotFound` if the file is not there.
    pub fn load(path: Option<&Path>, overrides: Overrides) -> Result<Self> {
        let Some(path) = path else { return Self::parse("", overrides) };
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::io(format!("read the configuration {}", path.display()), error))?;
        Self::parse(&text, overrides).map_err(|error| error.doing(format!("configuration {}", path.display())))
    }

    /// The same from text.
    pub fn parse(text: &str, overrides: Overrides) -> Result<Self> {
        let table: toml::Table = toml::from_str(text).map_err(|error| invalid(&error))?;
        refuse_unknown_fields(&table)?;
        let file: File = toml::from_str(text).map_err(|error| invalid(&error))?;

        let root = absolute(overrides.root.or(file.root).unwrap_or_else(|| ROOT_DEFAULT.into()))?;
        let run_dir = match file.run_dir {
            Some(dir) => absolute(dir)?,
            None => run_dir_of(&root),
        };
        let socket = SocketConfig {
            path: socket_path(absolute(
                overrides.socket.or(file.socket.path).unwrap_or_else(|| SOCKET_DEFAULT.into()),
            )?)?,
            mode: mode_bits(file.socket.mode.as_deref().unwrap_or("0660"))?,
            group: file.socket.group,
            snapshots: file.socket.snapshots.unwrap_or(SnapshotPeers::Root),
        };
        let engine = match (overrides.engine, &file.engine) {
            (Some(engine), _) => engine,
            (None, Some(word)) => parse_engine(word).map_err(|error| error.doing("field `engine`"))?,
            (None, None) => Engine::Auto,
        };
        let export = match (overrides.export, &file.export) {
            (Some(export), _) => export,
            (None, Some(word)) => parse_export(word).map_err(|error| error.doing("field `export`"))?,
            (None, None) => Export::Auto,
        };
        let block_size = match (overrides.block_size, file.pool.block_size) {
            (Some(size), _) => size,
            (None, Some(text)) => BlockSize::from_bytes(size_field("pool.block_size", &text)?.0)?,
            (None, None) => BlockSize::DEFAULT,
        };
        let pool = PoolConfig {
            size: or_field(overrides.size, "pool.size", file.pool.size)?,
            metadata_size: or_field(overrides.metadata_size, "pool.metadata_size", file.pool.metadata_size)?,
            block_size,
            data_device: overrides.data_device.or(file.pool.data_device).map(absolute).transpose()?,
            metadata_device: overrides.metadata_device.or(file.pool.metadata_device).map(absolute).transpose()?,
            metadata_cache: metadata_cache(file.pool.metadata_cache)?,
        };
        let built_in = Profile { fs: FsType::Ext4, size: ByteCount(10 << 30) };
        let default_profile = profile("default", file.default, &built_in)?;
        let mut profiles = BTreeMap::new();
        for (name, table) in file.snapshotter {
            Space::new(name.clone())?;
            let filled = profile(&format!("snapshotter.{name}"), table, &default_profile)?;
            profiles.insert(name, filled);
        }
        let snapshotter = SnapshotterConfig {
            profiles,
            default_profile,
            data_floor: floor("floors.data", file.floors.data.as_deref(), 256 << 20)?,
            metadata_floor: floor("floors.metadata", file.floors.metadata.as_deref(), 1 << 20)?,
            work_dir: run_dir.join("work"),
        };
        Ok(Self {
            root,
            run_dir,
            engine,
            export,
            pool,
            room: file.pool.room.checked()?,
            socket,
            snapshotter,
            import: Limits::of_table(file.import)?,
            upgrade_on_start: file.host.upgrade_on_start.unwrap_or(true),
            backup: file.backup.check()?,
            log_level: overrides.log_level.or(file.log.level).unwrap_or_else(|| "info".to_owned()),
            log_format: overrides.log_format.or(file.log.format).unwrap_or(LogFormat::Text),
        })
    }
}

/// The run directory of a root: the root's path does not fit into a socket's, a digest of it does.
#[must_use]
pub fn run_dir_of(root: &Path) -> PathBuf {
    use sha2::Digest;
    // Two names of one directory are one root.
    let canonical = root.canonicalize().unwrap_or_else(|_| root.to_owned());
    let digest = sha2::Sha256::digest(canonical.as_os_str().as_bytes());
    let name: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    Path::new(RUN_PARENT).join(name)
}

/// A size as people write it: `100G`, `64KiB`, `1.5T`, `4096`. Units are binary; `B` and `iB` may follow.
pub fn parse_size(text: &str) -> Result<ByteCount> {
    let wrong = || {
        Error::new(ErrorKind::InvalidArgument, format!("{:?} is not a size", text.chars().take(40).collect::<String>()))
            .advise("write a number with a unit, as in 512M, 64KiB or 1.5T; units are powers of 1024")
    };
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return Err(wrong()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let places = u32::try_from(fraction.len()).ok().filter(|places| (1..=6).contains(places)).ok_or_else(wrong)?;
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let fraction: u64 = fraction.parse().map_err(|_| wrong())?;
    if fraction != 0 && shift == 0 {
        return Err(wrong());
    }
    let part = (u128::from(fraction) << shift) / u128::from(10_u64.pow(places));
    let total = (u128::from(whole) << shift) + part;
    u64::try_from(total).map(ByteCount).map_err(|_| wrong())
}

fn invalid(error: &toml::de::Error) -> Error {
    Error::new(ErrorKind::InvalidArgument, error.to_string().trim_end().to_owned())
}

fn size_field(field: &str, text: &str) -> Result<ByteCount> {
    parse_size(text).map_err(|error| error.doing(format!("field `{field}`")))
}

fn or_field(over: Option<ByteCount>, field: &str, text: Option<String>) -> Result<Option<ByteCount>> {
    match (over, text) {
        (Some(size), _) => Ok(Some(size)),
        (None, Some(text)) => size_field(field, &text).map(Some),
        (None, None) => Ok(None),
    }
}

fn metadata_cache(text: Option<String>) -> Result<ByteCount> {
    let size = or_field(None, "pool.metadata_cache", text)?.unwrap_or(METADATA_CACHE_DEFAULT);
    if size < METADATA_CACHE_MIN {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("field `pool.metadata_cache`: {size} is below {METADATA_CACHE_MIN}, with which a pool works well"),
        ));
    }
    Ok(size)
}

fn floor(field: &str, text: Option<&str>, built_in: u64) -> Result<Share> {
    text.map_or(Ok(Share::Bytes(ByteCount(built_in))), |text| Share::parse(field, text))
}

fn profile(field: &str, table: ProfileTable, fallback: &Profile) -> Result<Profile> {
    let size = or_field(None, &format!("{field}.size"), table.size)?.unwrap_or(fallback.size);
    if size.0 < SNAPSHOT_SIZE_MIN {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!(
                "field `{field}.size`: {size} is below {}, the least that holds a file system",
                ByteCount(SNAPSHOT_SIZE_MIN)
            ),
        ));
    }
    Ok(Profile { fs: table.fs.unwrap_or(fallback.fs), size })
}

fn absolute(path: PathBuf) -> Result<PathBuf> {
    std::path::absolute(&path).map_err(|error| Error::io(format!("find the directory of {}", path.display()), error))
}

fn socket_path(path: PathBuf) -> Result<PathBuf> {
    let len = path.as_os_str().len();
    if len > SOCKET_PATH_LEN_MAX {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("socket path {} has {len} bytes; a unix socket's ends at {SOCKET_PATH_LEN_MAX}", path.display()),
        )
        .advise("choose a shorter path, for instance below /run"));
    }
    Ok(path)
}

fn mode_bits(text: &str) -> Result<u32> {
    match u32::from_str_radix(text.trim_start_matches("0o"), 8) {
        Ok(bits) if bits <= 0o777 => Ok(bits),
        _ => Err(Error::new(ErrorKind::InvalidArgument, format!("field `socket.mode`: {text:?} is no octal mode"))
            .advise("write it as in \"0660\"")),
    }
}

fn refuse_unknown_fields(table: &toml::Table) -> Result<()> {
    check_fields("", table, &TOP_FIELDS)?;
    for (name, fields) in [
        ("pool", &[&POOL_FIELDS[..], &POOL_ROOM_FIELDS].concat()[..]),
        ("socket", &SOCKET_FIELDS),
        ("floors", &FLOORS_FIELDS),
        ("import", &IMPORT_FIELDS),
        ("backup", &BACKUP_FIELDS),
        ("log", &LOG_FIELDS),
        ("host", &HOST_FIELDS),
        ("default", &PROFILE_FIELDS),
    ] {
        if let Some(inner) = table.get(name).and_then(toml::Value::as_table) {
            check_fields(&format!("{name}."), inner, fields)?;
        }
    }
    let pool = table.get("pool").and_then(toml::Value::as_table);
    for (name, fields) in [("auto_extend", AUTO_EXTEND_FIELDS.as_slice()), ("watermarks", &WATERMARKS_FIELDS)] {
        if let Some(inner) = pool.and_then(|pool| pool.get(name)).and_then(toml::Value::as_table) {
            check_fields(&format!("pool.{name}."), inner, fields)?;
        }
    }
    for (name, value) in table.get("snapshotter").and_then(toml::Value::as_table).into_iter().flatten() {
        if let Some(inner) = value.as_table() {
            check_fields(&format!("snapshotter.{name}."), inner, &PROFILE_FIELDS)?;
        }
    }
    Ok(())
}

mod room;
#[cfg(test)]
mod tests;
