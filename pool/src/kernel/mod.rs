//! The engine that lets the kernel move the blocks: dm-thin, told what to do through device-mapper.
mod backing;
mod control;
mod copies;
mod device_number;
mod events;
mod heal;
mod kernel_pool;
mod live;
mod living;
mod names;
mod news;
mod opening;
mod options;
mod pool_device;
mod status_line;
mod strangers;
mod table;
mod thin_device;
mod trim;
mod verbs;

pub(crate) use backing::loop_of;
pub(crate) use control::probe;
pub use kernel_pool::KernelPool;
pub(crate) use live::superblock_of;
pub(crate) use living::{serves, withdraw};
pub use options::{AdoptOptions, Discards, KernelOptions, PoolFeatures, WhenFull};
pub use strangers::{RunningPool, RunningThin, find_running_pool};
