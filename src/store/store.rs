//! The record of truth: snapshots, limbo, the pool's identity; one redb file.

use std::path::Path;

use crate::error::Result;

/// The store; one process at a time.
pub struct Store {
    _private: (),
}

impl Store {
    /// Opens or creates the file. Errors: `InUse` if another process has it, `Corrupt`.
    pub fn open(_path: &Path) -> Result<Self> {
        todo!()
    }
}
