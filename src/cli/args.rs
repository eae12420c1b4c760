//! The grammar of the command line, and what every `--help` ends with.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use thinsnap_pool::{ByteCount, Engine, Export, METADATA_CACHE_DEFAULT, NoSpace};

use crate::admin::Target;
use crate::cli::bench::BenchArgs;
use crate::cli::container::ContainerVerb;
use crate::cli::doctor::DoctorArgs;
use crate::cli::image::ImageVerb;
use crate::cli::migrate::MigrateArgs;
use crate::cli::pool::PoolVerb;
use crate::cli::recovery::RescueArgs;
use crate::cli::serve::{ServeArgs, engine, export};
use crate::cli::snapshot::SnapshotVerb;
use crate::cli::upgrade::UpgradeArgs;

/// The end of a `--help`: examples, then what the exit status means.
macro_rules! examples {
    ($($example:literal),+ $(,)?) => {
        concat!(
            "EXAMPLES:\n", $("  ", $example, "\n",)+
            "\nEXIT STATUS:\n",
            "  0  done\n  1  failed\n  2  wrong usage\n  3  damage found\n  4  no space\n  5  in use by another"
        )
    };
}
pub(crate) use examples;

/// Thin-provisioned snapshots for containers: images as chains of thin snapshots, containers that copy a block
/// when it is changed, never a file.
#[derive(Debug, Parser)]
#[command(
    name = "thinsnap",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = examples!(
        "thinsnap serve --root /var/lib/thinsnap --size 100G",
        "thinsnap container create web --image debian:12",
    )
)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// The noun.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Directory of the pool and its records [default: /var/lib/thinsnap]
    #[arg(long, global = true, value_name = "DIR", env = "THINSNAP_ROOT", help_heading = "Global options")]
    pub root: Option<PathBuf>,
    /// The service's socket [default: /run/thinsnap/thinsnap.sock, or the socket of whoever serves --root]
    #[arg(long, global = true, value_name = "PATH", env = "THINSNAP_SOCKET", help_heading = "Global options")]
    pub socket: Option<PathBuf>,
    /// Configuration file; options stand over it
    #[arg(long, global = true, value_name = "FILE", env = "THINSNAP_CONFIG", help_heading = "Global options")]
    pub config: Option<PathBuf>,
    /// Who moves the blocks: auto, kernel (dm-thin) or embedded (a process of ours) [default: auto]
    #[arg(
        long,
        global = true,
        value_name = "ENGINE",
        env = "THINSNAP_ENGINE",
        value_parser = engine,
        help_heading = "Global options"
    )]
    pub engine: Option<Engine>,
    /// How the embedded engine shows its devices: auto, ublk or fuse (with loop devices) [default: auto]
    #[arg(
        long,
        global = true,
        value_name = "EXPORT",
        env = "THINSNAP_EXPORT",
        value_parser = export,
        help_heading = "Global options"
    )]
    pub export: Option<Export>,
    /// Print JSON: sizes in bytes, the same fields for ever
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// The space of snapshot names to work in; containerd's are named like its proxy plugins
    #[arg(long, global = true, value_name = "NAME", default_value = "local", help_heading = "Global options")]
    pub space: String,
}

impl Global {
    pub(crate) fn target(&self) -> Target {
        Target {
            socket: self.socket.clone(),
            root: self.root.clone(),
            config: self.config.clone(),
            engine: self.engine,
            export: self.export,
        }
    }
}

/// The nouns.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve snapshots to containerd, and to this command line
    #[command(after_help = examples!(
        "thinsnap serve --root /var/lib/thinsnap --socket /run/thinsnap/thinsnap.sock --size 100G",
        "thinsnap serve --config /etc/thinsnap/thinsnap.toml --log-format json",
    ))]
    Serve(Box<ServeArgs>),
    /// Make, look at, check and grow the pool
    #[command(subcommand, arg_required_else_help = true, after_help = examples!(
        "thinsnap pool create /var/lib/thinsnap --size 100G",
        "thinsnap pool status --json",
    ))]
    Pool(PoolVerb),
    /// Work with single snapshots
    #[command(subcommand, arg_required_else_help = true, after_help = examples!(
        "thinsnap snapshot tree",
        "thinsnap snapshot ls --space thinsnap --json",
    ))]
    Snapshot(SnapshotVerb),
    /// Import, list and remove images
    #[command(subcommand, arg_required_else_help = true, after_help = examples!(
        "thinsnap image import debian.tar --name debian:12",
        "thinsnap image ls",
    ))]
    Image(ImageVerb),
    /// Create, mount and remove containers' file systems
    #[command(subcommand, arg_required_else_help = true, after_help = examples!(
        "thinsnap container create web --image debian:12",
        "thinsnap container mount web /mnt/web",
    ))]
    Container(ContainerVerb),
    /// Replace the pool-host by the service's program while containers run
    #[command(after_help = examples!("systemctl restart thinsnap && thinsnap upgrade", "thinsnap upgrade --force --json"))]
    Upgrade(UpgradeArgs),
    /// Take over another program's thin pool, with its snapshots: containerd's devmapper, or a list of thin devices
    #[command(after_help = examples!(
        "thinsnap migrate --from-devmapper /srv/devmapper --pool-name pool --dry-run",
        "thinsnap migrate --announce /run/containerd/containerd.sock",
    ))]
    Migrate(MigrateArgs),
    /// Read one device out of a pool that is too damaged to open
    #[command(after_help = examples!(
        "thinsnap rescue 17 --to /mnt/disk17.img --map /mnt/disk17.map",
        "thinsnap rescue thinsnap/web --to /mnt/web.img --backup metadata-20260131T120000000Z.tsbackup",
    ))]
    Rescue(RescueArgs),
    /// Say what this machine can do, what is missing, and how to fix it
    #[command(after_help = examples!("thinsnap doctor", "thinsnap doctor --containerd-config"))]
    Doctor(DoctorArgs),
    /// Measure this program next to its rivals on this machine, and write a report
    #[command(after_help = examples!(
        "thinsnap bench --quick --dir /var/tmp",
        "thinsnap bench --only first-write,device-io --out /root/figures",
    ))]
    Bench(BenchArgs),
    /// Call a service as containerd does and tell how long each call took (started by bench)
    #[command(hide = true, after_help = examples!(
        "thinsnap bench-caller --socket /run/thinsnap/thinsnap.sock < calls",
        "thinsnap bench --only snapshots   (starts the caller that it needs)",
    ))]
    BenchCaller,
    /// Serve one pool's devices (started by the service itself)
    #[command(hide = true, after_help = examples!(
        "thinsnap pool-host --data DIR/pool/data --metadata DIR/pool/metadata --run-dir /run/thinsnap/x",
        "thinsnap serve --root DIR   (starts the pool-host that it needs)",
    ))]
    PoolHost(PoolHostArgs),
    /// Resume a pool of the kernel when the thread that stopped it has ended (started by whoever stops one)
    #[command(hide = true, after_help = examples!(
        "thinsnap resume-orphan thinsnap-NAME-pool --process 4711 --thread 4712",
        "thinsnap serve --engine kernel   (starts the watcher that it needs)",
    ))]
    ResumeOrphan(ResumeOrphanArgs),
}

/// What whoever is about to stop a pool tells the process that watches him.
#[derive(Debug, Clone, Args)]
pub struct ResumeOrphanArgs {
    /// The pool's device of device-mapper
    pub device: String,
    /// Process id of who stops it
    #[arg(long, value_name = "PID")]
    pub process: u32,
    /// Thread id of who stops it
    #[arg(long, value_name = "TID")]
    pub thread: u32,
}

/// What the service tells the pool-host that it starts.
#[derive(Debug, Clone, Args)]
pub struct PoolHostArgs {
    /// The pool's data file or device
    #[arg(long, value_name = "PATH")]
    pub data: PathBuf,
    /// The pool's metadata file or device
    #[arg(long, value_name = "PATH")]
    pub metadata: PathBuf,
    /// Directory for the socket, the lock and the exports
    #[arg(long, value_name = "DIR")]
    pub run_dir: PathBuf,
    /// How long a write that finds no room waits for some
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub no_space_wait_ms: u64,
    /// Bytes that such writes may hold in memory
    #[arg(long, value_name = "BYTES", default_value_t = NoSpace::default().memory.0)]
    pub no_space_memory: u64,
    /// Bytes of memory for what is known of the metadata
    #[arg(long, value_name = "BYTES", default_value_t = METADATA_CACHE_DEFAULT.0)]
    pub metadata_cache: u64,
}

impl PoolHostArgs {
    pub(crate) fn no_space(&self) -> NoSpace {
        NoSpace { wait: Duration::from_millis(self.no_space_wait_ms), memory: ByteCount(self.no_space_memory) }
    }
}
