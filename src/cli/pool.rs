//! `thinsnap pool`: make, look at, and grow the pool.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Serialize;
use thinsnap_pool::ByteCount;

use crate::admin::{api, create_pool, pool_paths_of};
use crate::cli::args::{Global, examples};
use crate::cli::backup::{self, BackupVerb};
use crate::cli::intent_log;
use crate::cli::output::Output;
use crate::cli::recovery::{self, RepairArgs, RestoreArgs};
use crate::cli::render::{clean, percent, size};
use crate::cli::serve::{PoolLayout, size as parse_size};
use crate::cli::session::with_service;
use crate::cli::{metadata, why_full};
use crate::config::{Config, Overrides};
use crate::error::{Error, Result};
use crate::grpc::error_of;

/// The verbs of the pool.
#[derive(Debug, Subcommand)]
pub enum PoolVerb {
    /// Make a pool: two sparse files in a directory, or two block devices
    #[command(after_help = examples!(
        "thinsnap pool create /var/lib/thinsnap --size 100G",
        "thinsnap pool create /srv/p --data-device /dev/vg0/data --metadata-device /dev/vg0/meta",
    ))]
    Create {
        /// The root directory of the pool and its records [default: --root]
        #[arg(value_name = "DIR")]
        dir: Option<PathBuf>,
        #[command(flatten)]
        layout: PoolLayout,
    },
    /// Show the pool's state: space, devices, sharing, and what is wrong
    #[command(after_help = examples!("thinsnap pool status", "thinsnap --root /srv/pool pool status --json"))]
    Status {
        /// Leave out what the devices share: it costs a walk over every device's mappings
        #[arg(long)]
        no_sharing: bool,
    },
    /// Say who holds the space and what deleting each gives back
    #[command(after_help = examples!("thinsnap pool why-full", "thinsnap pool why-full --json"))]
    WhyFull,
    /// Give back the room that free blocks still hold below the pool
    #[command(after_help = examples!("thinsnap pool trim", "thinsnap --root /srv/pool pool trim --json"))]
    Trim,
    /// Audit the metadata: every tree, every count; status 3 if it is damaged
    #[command(after_help = examples!(
        "thinsnap pool check",
        "thinsnap pool check --metadata /dev/vg0/meta --json",
    ))]
    Check {
        /// A bare metadata file or device, ours or anyone's, instead of the pool's
        #[arg(long, value_name = "FILE")]
        metadata: Option<PathBuf>,
    },
    /// Write the metadata as XML, as thin_dump does
    #[command(after_help = examples!(
        "thinsnap pool dump > pool.xml",
        "thinsnap pool dump --metadata /dev/vg0/meta --output pool.xml",
    ))]
    Dump {
        /// A bare metadata file or device, ours or anyone's, instead of the pool's
        #[arg(long, value_name = "FILE")]
        metadata: Option<PathBuf>,
        /// The held metadata snapshot instead of the pool as it is
        #[arg(long)]
        held: bool,
        /// A file to make, instead of standard output
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Set aside the log of acknowledged writes that keeps the service from starting; they are lost
    #[command(after_help = examples!(
        "thinsnap pool discard-intent-log",
        "thinsnap pool discard-intent-log --yes --json",
    ))]
    DiscardIntentLog {
        /// Do it; without this it is only told what would be lost
        #[arg(long)]
        yes: bool,
    },
    /// Back the metadata up, list the backups, put one back
    #[command(subcommand, arg_required_else_help = true, after_help = examples!(
        "thinsnap pool backup ls",
        "thinsnap pool backup now --json",
    ))]
    Backup(BackupVerb),
    /// Put metadata back from thin_dump's XML; the pool must not be in use
    #[command(after_help = examples!(
        "thinsnap pool restore pool.xml --yes",
        "thinsnap pool restore pool.xml --to /tmp/metadata --metadata-size 256M",
    ))]
    Restore(RestoreArgs),
    /// Save what can be saved of damaged metadata; the pool must not be in use
    #[command(after_help = examples!("thinsnap pool repair --dry-run", "thinsnap pool repair --apply"))]
    Repair(RepairArgs),
    /// Grow the pool while it is in use; sizes are totals, not additions
    #[command(after_help = examples!("thinsnap pool grow --data 200G", "thinsnap pool grow --metadata 2G --json"))]
    Grow {
        /// Data space in all
        #[arg(long, value_name = "SIZE", value_parser = parse_size, required_unless_present = "metadata")]
        data: Option<ByteCount>,
        /// Metadata space in all
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        metadata: Option<ByteCount>,
    },
}

pub(crate) fn run(verb: &PoolVerb, global: &Global, output: Output) -> Result<()> {
    match verb {
        PoolVerb::Create { dir, layout } => {
            let root = dir.clone().or_else(|| global.root.clone());
            let config = Config::load(global.config.as_deref(), Overrides { root, ..layout.overrides() })?;
            create_pool(&config)?;
            output.answer(&created(&config)?, |made| {
                format!(
                    "made a pool in {}: data {}, metadata {}, {} blocks",
                    clean(&made.root),
                    size(made.data_bytes),
                    size(made.metadata_bytes),
                    size(made.block_size_bytes)
                )
            })
        }
        PoolVerb::Status { no_sharing } => {
            let request = api::PoolStatusRequest { sharing: !no_sharing };
            let status = with_service(&global.target(), |mut client| async move {
                Ok(client.pool_status(request).await.map_err(|s| error_of(&s))?.into_inner())
            })?;
            output.answer(&status, status_text)
        }
        PoolVerb::WhyFull => why_full::why_full(global, output),
        PoolVerb::Trim => why_full::trim(global, output),
        PoolVerb::Check { metadata } => metadata::check(metadata.as_deref(), global, output),
        PoolVerb::Dump { metadata, held, output: file } => {
            metadata::write_dump(metadata.as_deref(), *held, file.as_deref(), global, output)
        }
        PoolVerb::DiscardIntentLog { yes } => intent_log::discard(*yes, global, output),
        PoolVerb::Backup(verb) => backup::run(verb, global, output),
        PoolVerb::Restore(args) => recovery::restore(args, global, output),
        PoolVerb::Repair(args) => recovery::repair(args, global, output),
        PoolVerb::Grow { data, metadata } => {
            let request = api::PoolGrowRequest {
                data_bytes: data.map(|size| size.0),
                metadata_bytes: metadata.map(|size| size.0),
            };
            let status = with_service(&global.target(), |mut client| async move {
                Ok(client.pool_grow(request).await.map_err(|s| error_of(&s))?.into_inner())
            })?;
            output.answer(&status, |status| {
                let total = |space: &Option<api::PoolSpace>| size(space.map_or(0, |space| space.total_bytes));
                format!("grown: data {}, metadata {}", total(&status.data), total(&status.metadata))
            })
        }
    }
}

/// What `pool create` made.
#[derive(Debug, Serialize)]
struct Created {
    root: String,
    data_bytes: u64,
    metadata_bytes: u64,
    block_size_bytes: u64,
}

fn created(config: &Config) -> Result<Created> {
    let paths = pool_paths_of(&config.root);
    // The end of a file or of a device.
    let len = |path: &Path| {
        let end = File::open(path).and_then(|mut file| file.seek(SeekFrom::End(0)));
        end.map_err(|error| Error::io(format!("read the size of {}", path.display()), error))
    };
    Ok(Created {
        root: config.root.to_string_lossy().into_owned(),
        data_bytes: len(&paths.data)?,
        metadata_bytes: len(&paths.metadata)?,
        block_size_bytes: config.pool.block_size.bytes(),
    })
}

/// The first line tells if something is wrong, the last one what to do about it.
fn status_text(status: &api::PoolStatusReply) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| text.push_str(&format!("{name:<12}{value}\n"));
    let mode = match status.mode.as_str() {
        "write" => "read-write",
        "out_of_data_space" => "OUT OF DATA SPACE",
        "read_only" => "READ ONLY",
        _ => "FAILED",
    };
    let health = match status.warnings.as_slice() {
        [] => "healthy".to_owned(),
        warnings => warnings.iter().map(|warning| clean(warning)).collect::<Vec<_>>().join("; "),
    };
    line("pool", format!("{}, {}, {mode}, {health}", clean(&status.root), status.engine));
    line("engine", format!("{}: {}", clean(&status.engine), clean(&status.engine_why)));
    let space = |space: Option<api::PoolSpace>| {
        let space = space.unwrap_or_default();
        let (used, total) = (space.used_bytes, space.total_bytes);
        format!("{:>9} of {:>9}  {:>5}", size(used), size(total), percent(used, total))
    };
    line("data", format!("{}   {} blocks", space(status.data), size(status.block_size_bytes)));
    line("metadata", space(status.metadata));
    // Where the file system below ends before the pool does.
    let free = |space: Option<api::PoolSpace>| space.map_or(u64::MAX, |space| space.free_bytes);
    if free(status.below) < free(status.data) {
        line("below", format!("{}   the file system that holds the data", space(status.below)));
    }
    if status.waiting_writes > 0 {
        line("waiting", format!("{} writes with {} wait for room", status.waiting_writes, size(status.waiting_bytes)));
    }
    line(
        "devices",
        format!(
            "{}   {} active, {} views, {} committed; {} attached",
            status.devices,
            status.snapshots_active,
            status.snapshots_view,
            status.snapshots_committed,
            status.active_devices
        ),
    );
    if status.devices_ahead > 0 {
        line("ahead", format!("{}   made for the next containers of images that are used often", status.devices_ahead));
    }
    if status.limbo > 0 {
        line("limbo", format!("{}   being reclaimed", status.limbo));
    }
    if let Some(sharing) = status.sharing {
        let used = status.data.map_or(0, |space| space.used_bytes);
        let (saved, held) = (size(sharing.saved_bytes), size(sharing.held_bytes));
        line("sharing", format!("{saved} saved: devices hold {held} in {}", size(used)));
    }
    line("transaction", status.transaction_id.to_string());
    if let Some(advice) = &status.advice {
        line("try", clean(advice));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::status_text;
    use crate::admin::api;

    fn status() -> api::PoolStatusReply {
        api::PoolStatusReply {
            root: "/srv/pool".into(),
            engine: "embedded".into(),
            mode: "write".into(),
            block_size_bytes: 65536,
            data: Some(api::PoolSpace { used_bytes: 12 << 30, total_bytes: 100 << 30, free_bytes: 88 << 30 }),
            metadata: Some(api::PoolSpace { used_bytes: 1 << 20, total_bytes: 1 << 30, free_bytes: 0 }),
            sharing: Some(api::PoolSharing { held_bytes: 42 << 30, saved_bytes: 30 << 30 }),
            ..api::PoolStatusReply::default()
        }
    }

    #[test]
    fn a_healthy_pool_says_so_in_the_first_line() {
        let text = status_text(&status());
        assert_eq!(text.lines().next(), Some("pool        /srv/pool, embedded, read-write, healthy"));
        assert!(text.contains("12 %") && text.contains("30.0 GiB saved: devices hold 42.0 GiB in 12.0 GiB"), "{text}");
        assert!(!text.contains("limbo"));
    }

    #[test]
    fn trouble_stands_first_and_the_cure_last() {
        let text = status_text(&api::PoolStatusReply {
            mode: "read_only".into(),
            warnings: vec!["the pool accepts no changes: a write failed".into()],
            advice: Some("thinsnap pool check".into()),
            ..status()
        });
        assert!(
            text.lines().next().is_some_and(|line| line.contains("READ ONLY, the pool accepts no changes")),
            "{text}"
        );
        assert_eq!(text.lines().last(), Some("try         thinsnap pool check"));
    }
}
