//! The service: from a configuration to open sockets, and back down in good order.
mod backups;
mod health;
mod incoming;
mod log;
mod notify;
mod pool_host;
mod run;
mod socket;

pub use pool_host::{HostWork, pool_host};
pub use run::run;
