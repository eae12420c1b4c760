//! The record of truth, in redb.
#[expect(clippy::module_inception, reason = "the room's public noun has the room's name")]
mod store;

pub use store::Store;
