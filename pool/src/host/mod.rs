//! A pool served by a process of its own.
mod client;
mod connections;
mod control;
mod death;
mod descriptors;
mod handshake;
mod keeper;
mod peer;
mod protocol;
mod readiness;
mod server;
mod service;
mod supervisor;

pub use client::{ConnectOptions, HostClient};
pub use keeper::{DescriptorStore, HostKeeper, NoStore, Replaced};
pub use protocol::{HostInfo, StopOutcome};
pub use server::{HostOptions, run};
pub use supervisor::{SpawnOptions, connect_or_spawn};
