//! The service: from a configuration to open sockets, and back down in good order.
mod health;
mod log;
mod notify;
mod run;
mod socket;

pub use run::run;
