//! `thinsnap pool backup`: the ring of metadata backups.

use clap::Subcommand;
use thinsnap_pool::PoolPaths;

use crate::admin::{Backups, Connection, LockedPool, MetadataReader, Reason, api, pool_paths_of};
use crate::cli::args::{Global, examples};
use crate::cli::output::Output;
use crate::cli::recovery::{confirmed, put_back_text};
use crate::cli::render::{clean, count, size, table, time};
use crate::cli::session::with_service;
use crate::config::{Config, Overrides};
use crate::error::{Error, ErrorKind, Result};
use crate::grpc::error_of;

/// The verbs of the ring.
#[derive(Debug, Subcommand)]
pub enum BackupVerb {
    /// Back the metadata up, while the pool is in use or not
    #[command(after_help = examples!("thinsnap pool backup now", "thinsnap --root /srv/pool pool backup now --json"))]
    Now,
    /// List the backups, the oldest first
    #[command(after_help = examples!("thinsnap pool backup ls", "thinsnap pool backup ls --json"))]
    Ls,
    /// Put the metadata of a backup back; what was written since is lost; the pool must not be in use
    #[command(after_help = examples!(
        "thinsnap pool backup restore metadata-20260131T120000000Z.tsbackup --yes",
        "thinsnap --root /srv/pool pool backup restore metadata-20260131T120000000Z.tsbackup --yes --json",
    ))]
    Restore {
        /// Name of the backup, as `backup ls` prints it
        #[arg(value_name = "NAME")]
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

pub(crate) fn run(verb: &BackupVerb, global: &Global, output: Output) -> Result<()> {
    match verb {
        BackupVerb::Now => {
            let made = now(global)?;
            output.answer(&made, |made| {
                format!(
                    "{}: {}, {} of metadata in {}",
                    clean(&made.name),
                    count(made.devices, "device"),
                    size(made.metadata_blocks_used.saturating_mul(4096)),
                    size(made.bytes)
                )
            })
        }
        BackupVerb::Ls => {
            let list = api::PoolBackupListReply { backups: ring(global)?.0.list()? };
            output.answer(&list, list_text)
        }
        BackupVerb::Restore { name, yes } => {
            let config = config_of(global)?;
            confirmed(
                *yes,
                &format!(
                    "put the metadata of {} back from {name}: what was written since is lost",
                    config.root.display()
                ),
            )?;
            let done = LockedPool::open(&config)?.restore_backup(name)?;
            output.answer(&done, put_back_text)
        }
    }
}

pub(crate) fn config_of(global: &Global) -> Result<Config> {
    let overrides = Overrides { root: global.root.clone(), engine: global.engine, ..Overrides::default() };
    Config::load(global.config.as_deref(), overrides)
}

fn ring(global: &Global) -> Result<(Backups, PoolPaths, Config)> {
    let config = config_of(global)?;
    Ok((Backups::new(&config.root, &config.backup), pool_paths_of(&config.root), config))
}

/// By the service where one runs; else here: a pool that no service can open is backed up all the same.
fn now(global: &Global) -> Result<api::PoolBackup> {
    let target = global.target();
    if target.socket.is_some() || Connection::service_answers(&target)? {
        return with_service(&target, |mut client| async move {
            Ok(client.pool_backup_now(api::PoolBackupNowRequest {}).await.map_err(|s| error_of(&s))?.into_inner())
        });
    }
    let (backups, _, config) = ring(global)?;
    let metadata = MetadataReader::of_pool(&config)?;
    let made = backups.take(&metadata, Reason::Asked)?;
    made.ok_or_else(|| Error::new(ErrorKind::Internal, "back up the metadata: nothing was made"))
}

fn list_text(list: &api::PoolBackupListReply) -> String {
    let rows: Vec<[String; 6]> = list
        .backups
        .iter()
        .map(|backup| {
            [
                clean(&backup.name),
                time(&backup.created_at),
                clean(&backup.reason),
                size(backup.bytes),
                backup.devices.to_string(),
                backup.transaction_id.to_string(),
            ]
        })
        .collect();
    table(["NAME", "MADE", "WHY", "SIZE", "DEVICES", "TRANSACTION"], &rows)
}
