//! A snapshot as another program's records have it, before anybody has asked whether it can come along.

use thinsnap_pool::{ByteCount, DeviceId};

use crate::snapshot::{FsType, Kind, Labels, Usage};

/// A file system by another program's name for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WantedFs {
    /// One that can be served.
    Known(FsType),
    /// Another one.
    Other(String),
}

impl WantedFs {
    /// By the name that mount(2) takes.
    #[must_use]
    pub fn of(name: &str) -> Self {
        match [FsType::Ext4, FsType::Xfs].into_iter().find(|fs| fs.as_str() == name) {
            Some(fs) => Self::Known(fs),
            None => Self::Other(name.to_owned()),
        }
    }
}

/// A snapshot that is to come along.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Its key or name.
    pub name: String,
    /// The committed snapshot that it was made of.
    pub parent: Option<String>,
    /// Its kind.
    pub kind: Kind,
    /// Its labels.
    pub labels: Labels,
    /// Nanoseconds since the epoch, UTC.
    pub created_ns: i64,
    /// Nanoseconds since the epoch, UTC.
    pub updated_ns: i64,
    /// The thin device that its program gave it.
    pub device: Option<DeviceId>,
    /// Size of the device.
    pub size: ByteCount,
    /// File system on the device.
    pub fs: WantedFs,
    /// Resources without its parents', as they were when it was committed.
    pub usage: Option<Usage>,
    /// Why its own program could not use it either.
    pub trouble: Option<String>,
    /// What somebody should know about it.
    pub notes: Vec<String>,
}
