//! A pool served by a process of its own.
mod client;
mod protocol;
mod readiness;
mod server;
mod service;
mod supervisor;

pub use client::{ConnectOptions, HostClient};
pub use protocol::{HostInfo, StopOutcome};
pub use server::{HostOptions, run};
pub use supervisor::{SpawnOptions, connect_or_spawn};
