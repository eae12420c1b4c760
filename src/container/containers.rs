//! The containers of a pool: create, list, mount, unmount, remove.

use std::path::Path;
use std::sync::Arc;

use crate::container::record::{Container, ContainerName};
use crate::error::Result;
use crate::snapshotter::Snapshotter;
use crate::store::Store;

/// What a container is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The top layer of an image, by the image's name.
    Image(String),
    /// A committed snapshot of [`crate::image::SPACE`], by name.
    Snapshot(String),
    /// An empty file system.
    Empty,
}

/// The containers of a pool. Calls are blocking and may come from many threads.
pub struct Containers {
    _snapshotter: Arc<Snapshotter>,
}

impl Containers {
    /// The containers whose records stand in `store`, the snapshotter's.
    #[must_use]
    pub fn new(_snapshotter: Arc<Snapshotter>, _store: Store) -> Self {
        todo!()
    }

    /// Makes an active snapshot of `origin`. Errors: `AlreadyExists`, `NotFound` (image or snapshot), `NotCommitted`,
    /// `NoSpace`.
    pub fn create(&self, _name: &ContainerName, _origin: &Origin) -> Result<Container> {
        todo!()
    }

    /// All containers, by name.
    pub fn list(&self) -> Result<Vec<Container>> {
        todo!()
    }

    /// One container. Errors: `NotFound`.
    pub fn get(&self, _name: &ContainerName) -> Result<Container> {
        todo!()
    }

    /// Mounts it on the directory `at`, an absolute path. Errors: `NotFound` (container or directory), `InUse` if it
    /// is mounted already, saying where.
    pub fn mount(&self, _name: &ContainerName, _at: &Path) -> Result<Container> {
        todo!()
    }

    /// Unmounts it from wherever it is mounted; not mounted is a success. Errors: `NotFound`, `InUse` if a
    /// process works in it.
    pub fn unmount(&self, _name: &ContainerName) -> Result<Container> {
        todo!()
    }

    /// Removes it with what was written in it. Errors: `NotFound`, `InUse` saying where it is mounted.
    pub fn remove(&self, _name: &ContainerName) -> Result<()> {
        todo!()
    }
}
