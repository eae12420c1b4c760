//! The record of truth, in redb.
mod codec;
mod committer;
mod devices;
mod redb_error;
mod rows;
mod schema;
mod snapshots;
#[expect(clippy::module_inception, reason = "the room's public noun has the room's name")]
mod store;
mod txn;

pub(crate) use committer::Pending;
pub(crate) use devices::Limbo;
pub use rows::{EachRow, Reader, Rows};
pub use schema::Table;
pub use snapshots::{REF_LABEL, Records};
pub use store::Store;
pub use txn::Txn;
