//! What a caller may choose about a pool that the kernel serves.

use std::path::PathBuf;

/// What becomes of a discard of a thin device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discards {
    /// Blocks go back to the pool, and the data device is told too. The kernel tells it before the commit that frees
    /// the blocks: after a power cut within that second, a device that had given such a block up without a flush since
    /// finds zeroes in it instead of what it had flushed before.
    PassDown,
    /// Blocks go back to the pool; the data device is not told.
    Keep,
    /// Discards do nothing.
    Ignore,
}

/// What a write does that needs a block when there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// It fails with ENOSPC at once.
    Fail,
    /// It waits for the pool to grow, at most as long as the kernel's `no_space_timeout` (60 s), then fails.
    Wait,
}

/// Features of a pool; a running pool takes other ones with
/// [`KernelPool::set_features`](crate::kernel::KernelPool::set_features).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolFeatures {
    /// A new block is zeroed unless it is written whole. Without it the next owner of a block reads what the last
    /// one wrote there: only for pools with a single owner.
    pub zero_new_blocks: bool,
    /// What becomes of a discard.
    pub discards: Discards,
    /// What a write does when the pool is full.
    pub when_full: WhenFull,
    /// Free data blocks below which the kernel raises an event, once; 0: never.
    /// [`ThinPool::wait_status`](crate::thin_pool::ThinPool::wait_status) sets it.
    pub low_water: u64,
}

impl Default for PoolFeatures {
    fn default() -> Self {
        Self { zero_new_blocks: true, discards: Discards::Keep, when_full: WhenFull::Fail, low_water: 0 }
    }
}

/// How a pool is opened.
#[derive(Debug, Clone)]
pub struct KernelOptions {
    /// Features of the pool. A pool that is running already is given these.
    pub features: PoolFeatures,
    /// For marks, and for device nodes where `/dev` has none; made if it is not there. It must not outlive a reboot.
    pub run_dir: PathBuf,
    /// The intent log of the embedded engine, if this pool may have one: what a killed host had acknowledged is
    /// committed before the kernel, which knows nothing of logs, gets the pool. Without it a pool that carries the mark
    /// of a log is refused.
    pub intent_log: Option<PathBuf>,
    /// Stands for the pool's identity in device names, for pools that have none; at most 32 letters and digits.
    pub name: Option<String>,
    /// A program that, called as `PROGRAM resume-orphan NAME --process PID --thread TID`, does what
    /// [`resume_orphan`](crate::kernel::resume_orphan) says: it stands by while the pool is stopped. Without it, a process
    /// that is killed in just such a moment may leave a pool that stays stopped until somebody resumes it by hand.
    pub watcher: Option<PathBuf>,
}

impl Default for KernelOptions {
    fn default() -> Self {
        Self {
            features: PoolFeatures::default(),
            run_dir: PathBuf::from("/run/thinsnap"),
            intent_log: None,
            name: None,
            watcher: None,
        }
    }
}

/// How somebody else's running pool is taken on.
#[derive(Debug, Clone)]
pub struct AdoptOptions {
    /// For marks and nodes, as in [`KernelOptions`].
    pub run_dir: PathBuf,
    /// Allow changes. Whoever made the pool (LVM, another program) keeps a list of its own of what is in it, and is
    /// not told: decide it only when nobody else uses the pool any more.
    pub changes: bool,
}

impl Default for AdoptOptions {
    fn default() -> Self {
        Self { run_dir: PathBuf::from("/run/thinsnap"), changes: false }
    }
}
