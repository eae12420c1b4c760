//! The images of a pool: import, list, remove.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::Result;
use crate::image::limits::Limits;
use crate::image::platform::Platform;
use crate::image::progress::ProgressFn;
use crate::image::record::ImageRecord;
use crate::snapshotter::Snapshotter;
use crate::store::Store;

/// What to import.
#[derive(Debug, Clone)]
pub struct ImportRequest {
    /// An OCI layout directory, or a tar (packed with gzip or zstd, or not) of an OCI layout, of `docker save`, or
    /// of a root file system.
    pub source: PathBuf,
    /// The name to keep it under; needed if the archive tells none.
    pub name: Option<String>,
    /// Which image, if the archive holds several: a reference or tag as the archive spells it.
    pub reference: Option<String>,
    /// Which platform, if the image is for several; the host's by default.
    pub platform: Option<Platform>,
    /// What is refused as too large.
    pub limits: Limits,
}

/// What an import did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The image's record.
    pub image: ImageRecord,
    /// Layers that were unpacked.
    pub layers_applied: usize,
    /// Layers that were there already.
    pub layers_present: usize,
}

/// What a removal did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// The record that is gone.
    pub image: ImageRecord,
    /// Layers that were removed with it, the top first; the others have other users.
    pub layers_removed: usize,
}

/// The images of a pool. Calls are blocking and may come from many threads.
pub struct Images {
    _snapshotter: Arc<Snapshotter>,
    _work_dir: PathBuf,
}

impl Images {
    /// `store` is the snapshotter's, where the records are kept. `work_dir` is a directory of ours for temporary files and mounts; it is made if it is not there. What an import
    /// left behind that died with its process is removed.
    pub fn open(_snapshotter: Arc<Snapshotter>, _store: Store, _work_dir: &Path) -> Result<Self> {
        todo!()
    }

    /// Reads an archive and lays its layers down as a chain of committed snapshots. An image of that name is
    /// replaced; its layers stay until nothing uses them.
    ///
    /// Errors: `BadArchive` naming the blob or entry, `NotFound` for a reference or platform that is not in it
    /// (with the ones that are), `NoSpace`. After an error nothing is left behind but whole layers, which the next
    /// import of the same image finds.
    pub fn import(&self, _request: &ImportRequest, _progress: ProgressFn<'_>) -> Result<Imported> {
        todo!()
    }

    /// All images, by name.
    pub fn list(&self) -> Result<Vec<ImageRecord>> {
        todo!()
    }

    /// One image. Errors: `NotFound`.
    pub fn get(&self, _name: &str) -> Result<ImageRecord> {
        todo!()
    }

    /// Removes an image and those of its layers, from the top down, that no other image, container or snapshot
    /// uses. Errors: `NotFound`.
    pub fn remove(&self, _name: &str) -> Result<Removed> {
        todo!()
    }
}
