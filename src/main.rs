//! The command line's contents page: parse, run, exit status.

use std::process::ExitCode;

use clap::Parser;
use thinsnap::cli::{Cli, error_text, run};

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("{}", error_text(&error));
            ExitCode::from(error.kind().exit_status())
        }
    }
}
