//! thinsnap: a block-level thin-provisioning snapshotter for containers; the service and its command line.
pub mod admin;
pub mod bolt;
pub mod cli;
pub mod config;
pub mod container;
pub mod error;
pub mod fs;
pub mod grpc;
pub mod image;
pub mod migrate;
pub mod serve;
pub mod snapshot;
pub mod snapshotter;
pub mod store;
pub mod watch;
