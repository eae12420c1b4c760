//! The command line: one file per noun; parses, asks the admin service, renders the answer.
mod args;
mod backup;
mod bench;
mod bench_caller;
mod container;
mod doctor;
mod image;
mod intent_log;
mod metadata;
mod migrate;
mod mount_here;
mod output;
mod pool;
mod recovery;
mod render;
mod run;
mod serve;
mod session;
mod snapshot;
mod tree;
mod upgrade;
mod why_full;

pub use args::{Cli, Command};
pub use render::error_text;
pub use run::run;
