//! Laying a layer down on a directory, and never outside it.
mod attributes;
mod content;
mod failure;
mod prune;
mod root;
mod unpack;

pub(super) use unpack::{Applied, unpack};
