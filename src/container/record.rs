//! What is kept about a container, and which names are names of containers.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// Longest name of a container: that of a DNS name, because names end up as host names.
const NAME_LEN_MAX: usize = 253;

/// The name of a container: letters, digits, `_`, `.`, `-`; the first a letter or digit. Never becomes a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContainerName(String);

impl ContainerName {
    /// Errors with `InvalidArgument`.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let good = (1..=NAME_LEN_MAX).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        if good {
            Ok(Self(text))
        } else {
            let shown: String = text.chars().take(80).collect();
            Err(Error::new(ErrorKind::InvalidArgument, format!("container name {shown:?} is not a name")).advise(
                format!("use 1 to {NAME_LEN_MAX} letters, digits, '_', '.' and '-', the first a letter or digit"),
            ))
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is kept about a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its name.
    pub name: ContainerName,
    /// The image it was made of, if it was made of one.
    pub image: Option<String>,
    /// The committed snapshot it was made of; `None` for an empty root file system.
    pub parent: Option<String>,
    /// Key of its active snapshot in [`crate::image::SPACE`].
    pub key: String,
    /// Nanoseconds since the epoch, UTC.
    pub created_ns: i64,
}

/// A container as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// What is kept about it.
    pub record: ContainerRecord,
    /// Where it is mounted, read from the kernel's table of mounts. Usually none or one.
    pub mounted_at: Vec<PathBuf>,
}
