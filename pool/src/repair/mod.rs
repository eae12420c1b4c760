//! Makes metadata anew: from a dump, from a backup, from what is left of a damaged pool.
mod build;
mod inventory;
mod leaves;
mod load;
mod mend;
mod orphans;
mod pack;
mod reconcile;
mod replace;
mod report;
mod rescue;
mod roots;
mod survey;
mod verdict;

pub use inventory::{Inventory, InventoryDevice, give_identity, inventory};
pub use load::{RestoreOptions, Restored, restore};
pub use mend::{clear_needs_check, mend};
pub use pack::{Packed, pack, unpack};
pub use reconcile::{Needed, block_size_of, device_ends, holds_snapshot, identity_of, reconcile};
pub use replace::{Replacement, finish_replacement, is_disk, replace_metadata};
pub use report::{BlockRange, DeviceOutcome, RepairReport};
pub use rescue::{Gap, GapRange, Rescued, Sink, rescue};
pub use roots::Hints;
