//! What was judged, counted honestly.

use std::fmt;
use std::ops::AddAssign;

/// Counts of one story or of all.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) stories: u64,
    /// Events of their recordings, each followed by a cut.
    pub(crate) cuts: u64,
    /// Disks put together.
    pub(crate) built: u64,
    /// Those that differ, in their bytes or in what was promised: each was judged.
    pub(crate) judged: u64,
    /// Different metadata and different stores among them.
    pub(crate) metadata_opened: u64,
    pub(crate) stores_opened: u64,
    /// Started as a service would: engine, store, snapshotter, recovery; read through the engine; used again.
    pub(crate) recovered: u64,
    /// Disks that a second cut, inside such a recovery, left.
    pub(crate) second_cuts: u64,
    pub(crate) thin_checked: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.stories += other.stories;
        self.cuts += other.cuts;
        self.built += other.built;
        self.judged += other.judged;
        self.metadata_opened += other.metadata_opened;
        self.stores_opened += other.stores_opened;
        self.recovered += other.recovered;
        self.second_cuts += other.second_cuts;
        self.thin_checked += other.thin_checked;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} stories, {} cuts, {} disks built, {} of them different and judged ({} metadata audited and opened, {} stores opened), \
             {} recovered with the full stack, {} more after a second cut in a recovery, {} seen by thin_check",
            self.stories,
            self.cuts,
            self.built,
            self.judged,
            self.metadata_opened,
            self.stores_opened,
            self.recovered,
            self.second_cuts,
            self.thin_checked
        )
    }
}
