//! Takes the snapshots of another program's thin pool over: what they are, which of them can come along, how they are entered.

mod devmapper;
mod enter;
mod filesystem;
mod plan;
mod thin_ids;
mod wanted;

pub use devmapper::{DevmapperFiles, read_devmapper};
pub(crate) use enter::{check_free, enter, finish, refuse_unfinished, state_of};
pub use plan::{LeftOut, MigrationPlan, PlannedSnapshot, plan};
pub use thin_ids::parse_thin_ids;
pub use wanted::{Wanted, WantedFs};
