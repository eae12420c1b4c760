//! A thin pool in dm-thin's on-disk format: devices that share blocks, snapshots, copy-on-write, exports.
mod check;
mod claims;
mod device;
mod embedded;
mod error;
mod export;
mod format;
mod host;
mod kernel;
mod meta;
mod mutation;
mod open;
mod repair;
mod status;
mod thin_pool;
mod units;

pub use check::{DumpSource, Finding, Progress, Report, Severity, ViewDevice, audit, dump, holdings};
pub use device::{
    BlockDevice, Cut, DiskImage, FileDevice, MemoryDevice, Piece, PowerCutDevice, PowerSupply, RoomBelow, limit_dirty,
};
pub use embedded::{
    EmbeddedOptions, EmbeddedPool, IntentChange, IntentEpoch, IntentHeader, IntentLogContent, IntentLogState,
    METADATA_CACHE_DEFAULT, MetadataMemory, discard_intent_log, intent_log_state, parse_intent_log,
};
pub use error::{Error, ErrorKind, Result};
pub use export::{
    DirectToken, Direction, EXTENTS_MAX, ExportOptions, Exporter, Extent, Extents, FuseExporter, NoSpace, Orphan,
    Outlook, UblkExporter, Volume, inherited_descriptors,
};
pub use format::Mapping;
pub use host::{
    ConnectOptions, DescriptorStore, HostClient, HostInfo, HostKeeper, HostOptions, NoStore, Replaced, SpawnOptions,
    StopOutcome, connect_or_spawn, run as run_host,
};
pub use kernel::{
    AdoptOptions, Discards, KernelOptions, KernelPool, PoolFeatures, RunningPool, RunningThin, WhenFull,
    find_running_pool, resume_orphan,
};
pub use meta::{
    DataRun, DeviceDetails, FormatOptions, Frozen, MappedRun, Metadata, OpenMode, SpaceCounts, superblock_fingerprint,
};
#[doc(hidden)]
pub use mutation::Mutation;
pub use open::{
    CreateOptions, Drained, Engine, EngineChoice, Export, ExportChoice, PoolPaths, begin_export, choose_engine,
    choose_export, create, drain, intent_log_of, kernel_serves, open_embedded, open_kernel, withdraw_from_kernel,
};
pub use repair::{
    BlockRange, DeviceOutcome, Gap, GapRange, Hints, Inventory, InventoryDevice, Needed, Packed, RepairReport,
    Replacement, Rescued, RestoreOptions, Restored, Sink, block_size_of, clear_needs_check, device_ends,
    finish_replacement, give_identity, holds_snapshot, identity_of, inventory, is_disk, mend, pack, reconcile,
    replace_metadata, rescue, restore, unpack,
};
pub use status::{
    ChangedRange, DeviceUsage, Holding, Holdings, MetadataView, PoolMode, PoolStatus, Room, Space, Steady,
};
pub use thin_pool::{Access, ThinPool};
pub use units::{BlockSize, ByteCount, DataBlock, DeviceId, MetaBlock, VirtualBlock};
