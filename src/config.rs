//! The configuration: a TOML file, every field documented, every value checked at the start.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thinsnap_pool::ByteCount;

use crate::snapshot::FsType;

/// How snapshots of one space are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// File system of the base device.
    pub fs: FsType,
    /// Size of a snapshot without a label; a label can make it larger than its parent, never smaller.
    pub size: ByteCount,
}

/// What the snapshotter needs to know.
#[derive(Debug, Clone)]
pub struct SnapshotterConfig {
    /// Profiles by snapshotter name.
    pub profiles: BTreeMap<String, Profile>,
    /// The profile of names that are not in the map.
    pub default_profile: Profile,
    /// Prepare answers `NoSpace` when fewer bytes of data space are free.
    pub data_floor: ByteCount,
    /// Prepare answers `NoSpace` when fewer bytes of metadata space are free.
    pub metadata_floor: ByteCount,
    /// A directory of ours for temporary mounts.
    pub work_dir: PathBuf,
}
