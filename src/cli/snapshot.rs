//! `thinsnap snapshot`: single snapshots, as containerd's verbs see them, and what is mounted of them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use thinsnap_pool::ByteCount;

use crate::admin::Target;
use crate::admin::api;
use crate::cli::args::{Global, examples};
use crate::cli::output::Output;
use crate::cli::render::{clean, size, table, time};
use crate::cli::serve::size as parse_size;
use crate::cli::session::with_service;
use crate::cli::{mount_here, tree};
use crate::error::{Error, ErrorKind, Result};
use crate::grpc::error_of;

/// The label that makes a single snapshot larger than its profile says.
const MAX_SIZE_LABEL: &str = "containerd.io/snapshot/max-size";

/// The verbs of snapshots.
#[derive(Debug, Subcommand)]
pub enum SnapshotVerb {
    /// List the snapshots of a space
    #[command(after_help = examples!(
        "thinsnap snapshot ls",
        "thinsnap snapshot ls --space thinsnap --filter 'kind==committed' --json",
    ))]
    Ls(ListArgs),
    /// Show which snapshot was made of which
    #[command(after_help = examples!("thinsnap snapshot tree", "thinsnap snapshot tree --space thinsnap"))]
    Tree(ListArgs),
    /// Make an active snapshot: empty, or on a committed parent
    #[command(after_help = examples!(
        "thinsnap snapshot prepare work --parent base",
        "thinsnap snapshot prepare big --size 200G --label team=db",
    ))]
    Prepare(MakeArgs),
    /// Make a read-only view of a committed snapshot
    #[command(after_help = examples!(
        "thinsnap snapshot view look --parent base",
        "thinsnap snapshot view look --parent base --json",
    ))]
    View(MakeArgs),
    /// Turn an active snapshot into a committed one, which can be a parent and never changes again
    #[command(after_help = examples!(
        "thinsnap snapshot commit work base-2",
        "thinsnap snapshot commit work base-2 --label release=12 --json",
    ))]
    Commit {
        /// The active snapshot
        #[arg(value_name = "KEY")]
        key: String,
        /// The name that it gets
        #[arg(value_name = "NAME")]
        name: String,
        /// A label of the committed snapshot; may be given again
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
        labels: Vec<(String, String)>,
    },
    /// Remove a snapshot without children; its space comes back in the background
    ///
    /// Nothing is asked: the one name on the command line is what goes, and nothing that others use goes with it.
    #[command(after_help = examples!("thinsnap snapshot rm work", "thinsnap snapshot rm work --json"))]
    Rm(NameArg),
    /// Mount an active snapshot or a view on a directory
    #[command(after_help = examples!(
        "thinsnap snapshot mount work /mnt/work",
        "mkdir -p /mnt/work && thinsnap snapshot mount work /mnt/work --json",
    ))]
    Mount {
        /// The snapshot
        #[arg(value_name = "KEY")]
        name: String,
        /// An existing directory
        #[arg(value_name = "DIR")]
        at: PathBuf,
    },
    /// Unmount a snapshot from wherever this command sees it mounted
    #[command(after_help = examples!("thinsnap snapshot unmount work", "thinsnap snapshot unmount work --json"))]
    Unmount(NameArg),
    /// Show one snapshot's record
    #[command(after_help = examples!("thinsnap snapshot stat base", "thinsnap snapshot stat base --json"))]
    Stat(NameArg),
    /// Show how much of the pool a snapshot holds without its parents
    #[command(after_help = examples!("thinsnap snapshot usage work", "thinsnap snapshot usage work --json"))]
    Usage(NameArg),
}

/// Which snapshots.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Every space, not only --space
    #[arg(long)]
    all: bool,
    /// containerd's filter grammar, for instance kind==active; may be given again, one must match
    #[arg(long = "filter", value_name = "FILTER")]
    filters: Vec<String>,
}

/// What to make.
#[derive(Debug, Args)]
pub struct MakeArgs {
    /// The key that it gets
    #[arg(value_name = "KEY")]
    name: String,
    /// A committed snapshot; without it the new one is empty
    #[arg(long, value_name = "NAME")]
    parent: Option<String>,
    /// A label; may be given again
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Size of the file system, at least the parent's
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<ByteCount>,
}

/// One snapshot.
#[derive(Debug, Args)]
pub struct NameArg {
    /// Its key or name
    #[arg(value_name = "NAME")]
    name: String,
}

impl MakeArgs {
    fn request(self, space: String) -> api::SnapshotPrepareRequest {
        let mut labels: BTreeMap<_, _> = self.labels.into_iter().collect();
        if let Some(size) = self.size {
            labels.insert(MAX_SIZE_LABEL.to_owned(), size.0.to_string());
        }
        api::SnapshotPrepareRequest { space, name: self.name, parent: self.parent, labels }
    }
}

fn label(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE".to_owned()),
    }
}

pub(crate) fn run(verb: SnapshotVerb, global: &Global, output: Output) -> Result<()> {
    let target = global.target();
    let space = global.space.clone();
    match verb {
        SnapshotVerb::Ls(args) => {
            let list = list(&target, space, args)?;
            output.answer(&list, |list| {
                let rows: Vec<_> = list.snapshots.iter().map(row).collect();
                table(["NAME", "KIND", "SIZE", "HOLDS", "CREATED", "PARENT"], &rows)
            })
        }
        SnapshotVerb::Tree(args) => {
            let list = list(&target, space, args)?;
            output.answer(&tree::grow(list.snapshots), tree::text)
        }
        SnapshotVerb::Prepare(args) => {
            let request = args.request(space);
            let mounts = with_service(&target, |mut client| async move {
                Ok(client.snapshot_prepare(request).await.map_err(|s| error_of(&s))?.into_inner())
            })?;
            output.answer(&mounts, mount_commands)
        }
        SnapshotVerb::View(args) => {
            let request = args.request(space);
            let mounts = with_service(&target, |mut client| async move {
                Ok(client.snapshot_view(request).await.map_err(|s| error_of(&s))?.into_inner())
            })?;
            output.answer(&mounts, mount_commands)
        }
        SnapshotVerb::Commit { key, name, labels } => {
            let request = api::SnapshotCommitRequest { space, name, key, labels: labels.into_iter().collect() };
            let record = with_service(&target, |mut client| async move {
                Ok(client.snapshot_commit(request).await.map_err(|s| error_of(&s))?.into_inner())
            })?;
            output.answer(&record, |record| format!("committed {}", clean(&record.name)))
        }
        SnapshotVerb::Rm(NameArg { name }) => {
            let request = api::SnapshotRequest { space, name };
            let removed = with_service(&target, |mut client| async move {
                Ok(client.snapshot_remove(request).await.map_err(|s| error_of(&s))?.into_inner())
            })?;
            output.answer(&removed, |removed| format!("removed {}", clean(&removed.removed)))
        }
        SnapshotVerb::Mount { name, at } => {
            let at =
                at.canonicalize().map_err(|error| Error::io(format!("find the directory {}", at.display()), error))?;
            // Mounted while the connection lives: the device's pool-host sees an opener before the command ends.
            let mounted = with_mounts(&target, space, name, |mounts| mount_here::mount(mounts, &at))?;
            output.answer(&mounted, |mounted| {
                format!("mounted {} on {}", clean(&mounted.source), clean(&mounted.at.join(", ")))
            })
        }
        SnapshotVerb::Unmount(NameArg { name }) => {
            let unmounted = with_mounts(&target, space, name, mount_here::unmount)?;
            output.answer(&unmounted, |unmounted| match unmounted.at.as_slice() {
                [] => "was not mounted".to_owned(),
                places => format!("unmounted {}", clean(&places.join(", "))),
            })
        }
        SnapshotVerb::Stat(NameArg { name }) => {
            let request = api::SnapshotRequest { space, name };
            let record = with_service(&target, |mut client| async move {
                Ok(client.snapshot_stat(request).await.map_err(|s| error_of(&s))?.into_inner())
            })?;
            output.answer(&record, details)
        }
        SnapshotVerb::Usage(NameArg { name }) => {
            let request = api::SnapshotRequest { space, name };
            let usage = with_service(&target, |mut client| async move {
                Ok(client.snapshot_usage(request).await.map_err(|s| error_of(&s))?.into_inner())
            })?;
            output.answer(&usage, |usage| size(usage.bytes))
        }
    }
}

fn with_mounts<T>(
    target: &Target,
    space: String,
    name: String,
    work: impl FnOnce(&[api::Mount]) -> Result<T>,
) -> Result<T> {
    with_service(target, |mut client| async move {
        let request = api::SnapshotRequest { space, name };
        let reply = client.snapshot_mounts(request).await.map_err(|s| error_of(&s))?.into_inner();
        work(&reply.mounts)
    })
}

/// A whole list, gathered from its batches.
#[derive(Debug, serde::Serialize)]
struct List {
    snapshots: Vec<api::Snapshot>,
}

fn list(target: &Target, space: String, args: ListArgs) -> Result<List> {
    if space.is_empty() {
        return Err(Error::new(ErrorKind::InvalidArgument, "the space has no name").advise("use --all for every space"));
    }
    let request =
        api::SnapshotListRequest { space: if args.all { String::new() } else { space }, filters: args.filters };
    with_service(target, |mut client| async move {
        let mut batches = client.snapshot_list(request).await.map_err(|s| error_of(&s))?.into_inner();
        let mut snapshots = Vec::new();
        while let Some(batch) = batches.message().await.map_err(|s| error_of(&s))? {
            snapshots.extend(batch.snapshots);
        }
        Ok(List { snapshots })
    })
}

fn row(snapshot: &api::Snapshot) -> [String; 6] {
    [
        clean(&snapshot.name),
        snapshot.kind.clone(),
        size(snapshot.size_bytes),
        snapshot.usage_bytes.map_or_else(|| "-".to_owned(), size),
        time(&snapshot.created_at),
        snapshot.parent.as_deref().map_or_else(|| "-".to_owned(), clean),
    ]
}

fn mount_commands(reply: &api::SnapshotMountsReply) -> String {
    let line = |mount: &api::Mount| {
        let options = if mount.options.is_empty() { String::new() } else { format!("-o {} ", mount.options.join(",")) };
        format!("mount -t {} {options}{} DIR\n", mount.fs, mount.source)
    };
    reply.mounts.iter().map(line).collect()
}

fn details(snapshot: &api::Snapshot) -> String {
    let mut text = format!(
        "name     {}\nspace    {}\nkind     {}\nparent   {}\nsize     {}, {}\ndevice   {}\ncreated  {}\nupdated  {}\n",
        clean(&snapshot.name),
        clean(&snapshot.space),
        snapshot.kind,
        snapshot.parent.as_deref().map_or_else(|| "-".to_owned(), clean),
        size(snapshot.size_bytes),
        snapshot.fs,
        snapshot.device,
        time(&snapshot.created_at),
        time(&snapshot.updated_at),
    );
    if let Some(bytes) = snapshot.usage_bytes {
        text.push_str(&format!("holds    {}\n", size(bytes)));
    }
    for (key, value) in &snapshot.labels {
        text.push_str(&format!("label    {}={}\n", clean(key), clean(value)));
    }
    text
}
