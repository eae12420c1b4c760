//! What a snapshot is to the service: a name, a kind, a parent, labels, and the thin device behind it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thinsnap_pool::{ByteCount, DeviceId};

use crate::error::{Error, ErrorKind, Result};

/// Longest name that is accepted, in bytes; containerd's are below 400.
pub const NAME_LEN_MAX: usize = 4096;
/// Longest label: key and value together, in bytes (source: containerd).
pub const LABEL_LEN_MAX: usize = 4096;

/// The space of names that one containerd plugin, or the command line, works in. Names in different
/// spaces never meet; each space has its own profile (size, file system).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Space(String);

/// The key of an active snapshot or view, or the name of a committed one: any text but the empty one.
/// It never becomes a path, a device name or a file name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Name(String);

macro_rules! name_type {
    ($type:ident, $what:literal) => {
        impl $type {
            /// Errors with `InvalidArgument` if it is empty, too long, or holds a NUL.
            pub fn new(text: impl Into<String>) -> Result<Self> {
                let text = text.into();
                if text.is_empty() || text.len() > NAME_LEN_MAX || text.contains('\0') {
                    return Err(Error::new(
                        ErrorKind::InvalidArgument,
                        format!(
                            concat!($what, " {:?} is empty, longer than {} bytes, or holds a NUL"),
                            text.chars().take(80).collect::<String>(),
                            NAME_LEN_MAX
                        ),
                    ));
                }
                Ok(Self(text))
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(Space, "snapshotter name");
name_type!(Name, "snapshot name");

/// The three kinds of containerd's model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Can be written, can be committed.
    Active,
    /// Can only be read.
    View,
    /// Can be a parent; never changes again.
    Committed,
}

/// Labels of a snapshot. Empty values are never stored.
pub type Labels = BTreeMap<String, String>;

/// The file system on a snapshot's device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FsType {
    /// ext4, the default.
    Ext4,
    /// XFS.
    Xfs,
}

impl FsType {
    /// The name that mount(2) takes.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

/// Resources of one snapshot without its parents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes of pool space.
    pub bytes: u64,
    /// Inodes, where the file system tells them cheaply; else 0.
    pub inodes: u64,
}

/// A snapshot's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its key or name.
    pub name: Name,
    /// The committed snapshot that it was made of.
    pub parent: Option<Name>,
    /// Its kind.
    pub kind: Kind,
    /// Its labels.
    pub labels: Labels,
    /// Nanoseconds since the epoch, UTC.
    pub created_ns: i64,
    /// Nanoseconds since the epoch, UTC.
    pub updated_ns: i64,
    /// The thin device that holds it; a view's is its parent's.
    pub device: DeviceId,
    /// Size of the device.
    pub size: ByteCount,
    /// File system on the device.
    pub fs: FsType,
    /// Frozen at commit; `None` while active.
    pub usage: Option<Usage>,
}

/// What a client mounts to see a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// File system type.
    pub fs: FsType,
    /// The block device.
    pub source: PathBuf,
    /// Mount options.
    pub options: Vec<String>,
}
