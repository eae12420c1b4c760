//! Log lines on stderr, for people or as JSON.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;
use crate::error::{Error, ErrorKind, Result};

/// Starts logging. Errors: `InvalidArgument` for a filter that cannot be read.
pub(super) fn start(level: &str, format: LogFormat) -> Result<()> {
    let filter = EnvFilter::try_new(level).map_err(|error| {
        Error::with_source(ErrorKind::InvalidArgument, format!("read the log filter {level:?}"), error)
            .advise("use error, warn, info, debug or trace, or a filter such as thinsnap=debug")
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| Error::new(ErrorKind::Internal, format!("start logging: {error}")))
}
