//! Our own gRPC service, which the command line speaks to: over the service's socket or inside its own process.

mod announce;
mod backend;
mod backups;
mod client;
mod container_verbs;
mod engine;
mod image_verbs;
mod metadata;
mod migration;
mod peer;
mod pool_files;
mod pool_verbs;
mod protocol;
mod recovery;
mod run_dir;
mod server;
mod snapshot_verbs;
mod store_check;
mod stream;
mod upgrade;
mod why_full;

pub use announce::{Announced, announce};
pub use backend::{Backend, Keeping, PoolMissing, create_pool, export_of, host_socket_of, intent_log_in};
pub use backups::{Backups, Reason};
pub use client::{Connection, Target, channel_to, socket_link_of};
pub use engine::kernel_options;
pub use metadata::{MetadataReader, verdict};
pub use migration::{Migrated, MigrationRequest, MigrationSource, MigrationStep, ShownThin, migrate};
pub(crate) use peer::require_root;
pub use pool_files::pool_paths_of;
pub use protocol::api;
pub use recovery::{
    AffectedDevice, LockedPool, Mended, PutBack, RescueRequest, RescueResult, repair_file, restore_to_file,
};
pub use server::AdminService;
pub use store_check::judge_store;
