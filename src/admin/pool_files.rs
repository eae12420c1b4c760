//! Where a root directory keeps its pool: `pool/data` and `pool/metadata`, files or links to devices.
//!
//! A link is the whole memory of `--data-device`: it is written before the pool is made on the device, and
//! the next start needs no option.

use std::path::{Path, PathBuf};

use crate::config::PoolConfig;
use crate::error::{Error, ErrorKind, Result};

/// The two files or devices of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolFiles {
    /// Data blocks.
    pub data: PathBuf,
    /// Metadata.
    pub metadata: PathBuf,
}

impl PoolFiles {
    /// Where they are below `root`, whether they exist or not.
    #[must_use]
    pub fn of(root: &Path) -> Self {
        let dir = root.join("pool");
        Self { data: dir.join("data"), metadata: dir.join("metadata") }
    }

    /// True if both are there.
    pub fn exist(&self) -> Result<bool> {
        let there = |path: &Path| {
            path.try_exists().map_err(|error| Error::io(format!("look for the pool at {}", path.display()), error))
        };
        Ok(there(&self.metadata)? && there(&self.data)?)
    }

    /// Refuses a configuration that names other devices than the ones the pool was made on.
    pub fn agree_with(&self, config: &PoolConfig) -> Result<()> {
        for (what, file, device) in
            [("data", &self.data, &config.data_device), ("metadata", &self.metadata, &config.metadata_device)]
        {
            let Some(device) = device else { continue };
            let real = |path: &Path| {
                path.canonicalize()
                    .map_err(|error| Error::io(format!("find the {what} device {}", path.display()), error))
            };
            if real(file)? != real(device)? {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    format!("the pool's {what} is {}, not {}", real(file)?.display(), device.display()),
                )
                .advise(format!("leave --{what}-device out, or choose another --root for another pool")));
            }
        }
        Ok(())
    }
}
