//! `thinsnap migrate`: another program's pool and snapshots become ours.

use std::path::PathBuf;

use clap::Args;
use thinsnap_pool::PoolPaths;

use crate::admin::{Migrated, MigrationRequest, MigrationSource, MigrationStep, announce, api, migrate};
use crate::cli::args::Global;
use crate::cli::backup::config_of;
use crate::cli::output::Output;
use crate::cli::render::{clean, count, size, table};
use crate::cli::session::with_service;
use crate::error::{Error, ErrorKind, Result};
use crate::grpc::error_of;
use crate::snapshot::{Kind, Space};

/// Options of `migrate`.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub struct MigrateArgs {
    /// Root directory of containerd's devmapper snapshotter (its root_path); containerd must be stopped
    #[arg(long, value_name = "DIR", group = "from", required_unless_present_any = ["thin_ids", "announce"], requires = "pool_name")]
    from_devmapper: Option<PathBuf>,
    /// A list of thin devices, one a line: ID SIZE FS KIND NAME [PARENT]
    #[arg(long, value_name = "FILE", group = "from", conflicts_with = "from_devmapper")]
    thin_ids: Option<PathBuf>,
    /// Name of the pool in device-mapper (containerd's pool_name)
    #[arg(long, value_name = "NAME")]
    pool_name: Option<String>,
    /// The pool's metadata, if device-mapper does not have the pool
    #[arg(long, value_name = "PATH", requires = "data_device")]
    metadata_device: Option<PathBuf>,
    /// The pool's data, if device-mapper does not have the pool
    #[arg(long, value_name = "PATH", requires = "metadata_device")]
    data_device: Option<PathBuf>,
    /// The space of the snapshots: the name of thinsnap's plugin in containerd's configuration
    #[arg(long, value_name = "NAME", default_value = "thinsnap")]
    snapshotter: String,
    /// Go on without the snapshots that cannot come along
    #[arg(long)]
    leave_out: bool,
    /// Say what would be done; write nothing
    #[arg(long, group = "how", required_unless_present_any = ["apply", "take_over", "announce"])]
    dry_run: bool,
    /// Enter the snapshots' records in --root; the pool is only read, and its own program can go on with it
    #[arg(long, group = "how", conflicts_with = "dry_run")]
    apply: bool,
    /// Do that, and take the pool over: from here on it is thinsnap's, and its own program must not use it any more
    #[arg(long, group = "how", conflicts_with_all = ["dry_run", "apply"])]
    take_over: bool,
    /// Make the containerd at this socket, which runs with thinsnap as a plugin, know the snapshots; without this it deletes
    /// them when it next collects garbage
    #[arg(long, value_name = "SOCKET", group = "how", conflicts_with_all = ["dry_run", "apply", "take_over", "from"])]
    announce: Option<PathBuf>,
}

pub(crate) fn run(args: &MigrateArgs, global: &Global, output: Output) -> Result<()> {
    if let Some(socket) = &args.announce {
        return tell_containerd(args, socket.clone(), global, output);
    }
    let source = match (&args.from_devmapper, &args.thin_ids) {
        (Some(root), None) => MigrationSource::Devmapper(root.clone()),
        (None, Some(file)) => MigrationSource::ThinIds(file.clone()),
        _ => return Err(Error::new(ErrorKind::InvalidArgument, "say one of --from-devmapper and --thin-ids")),
    };
    let devices = match (&args.metadata_device, &args.data_device) {
        (Some(metadata), Some(data)) => Some(PoolPaths { metadata: metadata.clone(), data: data.clone() }),
        _ => None,
    };
    let step = match (args.apply, args.take_over) {
        (_, true) => MigrationStep::TakeOver,
        (true, false) => MigrationStep::Apply,
        (false, false) => MigrationStep::DryRun,
    };
    let request = MigrationRequest {
        source,
        pool_name: args.pool_name.clone(),
        devices,
        space: Space::new(args.snapshotter.clone())?,
        leave_out: args.leave_out,
        step,
    };
    let done = migrate(&config_of(global)?, &request)?;
    output.answer(&done, migrated_text)
}

fn tell_containerd(args: &MigrateArgs, socket: PathBuf, global: &Global, output: Output) -> Result<()> {
    let space = args.snapshotter.clone();
    let done = with_service(&global.target(), |mut client| async move {
        let request = api::SnapshotListRequest { space, filters: Vec::new() };
        let mut batches = client.snapshot_list(request).await.map_err(|status| error_of(&status))?.into_inner();
        let mut listed = Vec::new();
        while let Some(batch) = batches.message().await.map_err(|status| error_of(&status))? {
            listed.extend(batch.snapshots);
        }
        announce(socket, &listed).await
    })?;
    output.answer(&done, |done| {
        let mut text =
            format!("containerd knows {} now, and {} before\n", count(done.told.len() as u64, "snapshot"), done.known);
        for unknown in &done.unknown {
            text.push_str(&format!("NOT KNOWN: {}\n", clean(unknown)));
        }
        text
    })?;
    if done.unknown.is_empty() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Unavailable, "containerd does not know all snapshots, and will delete those")
        .advise("see to the cause and run the same command again, before anything is removed in containerd"))
}

fn migrated_text(done: &Migrated) -> String {
    let plan = &done.plan;
    let mut text = format!(
        "pool: metadata {}, data {} ({} in use)\n",
        clean(&done.metadata.display().to_string()),
        clean(&done.data.display().to_string()),
        size(done.data_used)
    );
    let rows: Vec<[String; 6]> = plan
        .snapshots
        .iter()
        .map(|planned| {
            let record = &planned.record;
            [
                kind_name(record.kind).to_owned(),
                record.device.to_string(),
                record.fs.as_str().to_owned(),
                size(record.size.0),
                size(planned.mapped.0),
                clean(record.name.as_str()),
            ]
        })
        .collect();
    text.push_str(&table(["KIND", "DEVICE", "FS", "SIZE", "MAPPED", "NAME"], &rows));
    for planned in &plan.snapshots {
        for note in &planned.notes {
            text.push_str(&format!("note: {}: {}\n", clean(planned.record.name.as_str()), clean(note)));
        }
    }
    for left in &plan.left_out {
        text.push_str(&format!("CANNOT COME ALONG: {}: {}\n", clean(&left.name), clean(&left.why)));
    }
    let ids = |ids: &[thinsnap_pool::DeviceId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if !plan.deleted.is_empty() {
        text.push_str(&format!("deleted once thinsnap serves the pool: devices {}\n", ids(&plan.deleted)));
    }
    if !plan.unknown.is_empty() {
        text.push_str(&format!("in no record, left alone: devices {}\n", ids(&plan.unknown)));
    }
    for open in done.shown.iter().filter(|thin| thin.openers > 0) {
        text.push_str(&format!("mounted or open, to be ended before --take-over: {}\n", clean(&open.name)));
    }
    let snapshots = count(plan.snapshots.len() as u64, "snapshot");
    text.push_str(&match done.step {
        MigrationStep::DryRun => format!("{snapshots} would be entered in {}; nothing was written\n", done.space),
        MigrationStep::Apply => format!(
            "{snapshots} entered in {}; the pool was only read, and its program can still use it: --take-over is next\n",
            done.space
        ),
        MigrationStep::TakeOver => format!("{snapshots} entered in {}; the pool is thinsnap's\n", done.space),
    });
    text
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Active => "active",
        Kind::View => "view",
        Kind::Committed => "committed",
    }
}
