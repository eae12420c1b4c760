//! containerd's Snapshots service over the snapshotter, and how errors cross a gRPC connection.
mod batch;
mod code;
mod containerd_api;
mod convert;
mod service;

pub use batch::batches;
pub use code::{MESSAGE_SIZE_MAX, error_of, status_of};
pub use containerd_api::{mount_api, snapshots_api};
pub use convert::{filters_of, labels_of, space_of};
pub use service::{BlockingCalls, SnapshotsService};
