//! thinsnap: a block-level thin-provisioning snapshotter for containers; the service and its command line.
pub mod config;
pub mod error;
pub mod snapshot;
pub mod snapshotter;
pub mod store;
