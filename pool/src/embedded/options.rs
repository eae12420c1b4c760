//! How an embedded pool is opened, beyond where it stands.

use std::path::PathBuf;

/// What the opener of an embedded pool may choose; the default is a pool without an intent log.
#[derive(Debug, Clone, Default)]
pub struct EmbeddedOptions {
    /// File that keeps acknowledged changes which no commit covers yet, so that they survive the death of this
    /// process. It belongs on a tmpfs and to this pool alone; it is made if it is absent.
    pub intent_log: Option<PathBuf>,
    /// Changes that the intent log holds between two commits; `None`: 65,536. A full log costs its writer a commit.
    pub intent_log_records: Option<u32>,
}
