//! Copy-on-write btrees of 64-bit keys: one verb a room.
mod diff;
mod insert;
mod lookup;
mod place;
mod release;
mod remove;
mod walk;

pub(crate) use diff::diff;
pub(crate) use insert::insert;
pub(crate) use lookup::{lookup, span_is_empty};
pub(crate) use place::{ALL_KEYS, Place};
pub(crate) use release::release;
pub(crate) use remove::remove;
pub(crate) use walk::{Flow, walk};
