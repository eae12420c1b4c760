//! The containers of a pool: create, list, mount, unmount, remove.
//!
//! A container **is** an active snapshot with [`NAME_LABEL`]: there is no second record that could disagree with it. Where it
//! is mounted is asked of the kernel each time.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::container::record::{Container, ContainerName, ContainerRecord};
use crate::error::{Error, ErrorKind, Result};
use crate::fs;
use crate::image::{SPACE, image_record};
use crate::snapshot::{Kind, Labels, Name, Snapshot, Space};
use crate::snapshotter::Snapshotter;
use crate::store::Store;

/// The container's name.
const NAME_LABEL: &str = "thinsnap/container";
/// The image that it was made of.
const IMAGE_LABEL: &str = "thinsnap/image";

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
    snapshotter: Arc<Snapshotter>,
    store: Store,
    space: Space,
    /// Held while it is looked where a container is mounted and acted on that.
    mounting: Mutex<()>,
}

impl Containers {
    /// The containers of a snapshotter; `store` is its own, where images are recorded.
    #[must_use]
    pub fn new(snapshotter: Arc<Snapshotter>, store: Store) -> Self {
        let space = Space::new(SPACE).expect("the constant is a name");
        Self { snapshotter, store, space, mounting: Mutex::default() }
    }

    /// Makes an active snapshot of `origin`. Errors: `AlreadyExists`, `NotFound` (image or snapshot), `NotCommitted`,
    /// `NoSpace`.
    pub fn create(&self, name: &ContainerName, origin: &Origin) -> Result<Container> {
        let mut labels = Labels::from([(NAME_LABEL.to_owned(), name.as_str().to_owned())]);
        let parent = match origin {
            Origin::Image(image) => {
                let record = image_record(&self.store, image)?;
                labels.insert(IMAGE_LABEL.to_owned(), record.name.clone());
                record.top().map(Name::new).transpose()?
            }
            Origin::Snapshot(snapshot) => Some(Name::new(snapshot.as_str())?),
            Origin::Empty => None,
        };
        let doing = |error: Error| error.doing(format!("create container \"{name}\""));
        self.snapshotter.prepare(&self.space, &key(name)?, parent.as_ref(), labels).map_err(doing)?;
        self.get(name)
    }

    /// All containers, by name.
    pub fn list(&self) -> Result<Vec<Container>> {
        let mounts = Mounts::read()?;
        let mut found = Vec::new();
        for snapshot in self.snapshotter.list(&self.space, &[])? {
            if let Some(record) = record_of(&snapshot) {
                found.push(Container { record, mounted_at: self.mounted_at(&snapshot, &mounts)? });
            }
        }
        found.sort_by(|a, b| a.record.name.cmp(&b.record.name));
        Ok(found)
    }

    /// One container. Errors: `NotFound`.
    pub fn get(&self, name: &ContainerName) -> Result<Container> {
        let snapshot = match self.snapshotter.stat(&self.space, &key(name)?) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(not_found(name)),
            snapshot => snapshot?,
        };
        let record = record_of(&snapshot).ok_or_else(|| not_found(name))?;
        Ok(Container { record, mounted_at: self.mounted_at(&snapshot, &Mounts::read()?)? })
    }

    /// Mounts it on the directory `at`, an absolute path. Errors: `NotFound` (container or directory), `InUse` if it
    /// is mounted already, saying where.
    pub fn mount(&self, name: &ContainerName, at: &Path) -> Result<Container> {
        let doing = format!("mount container \"{name}\" on {}", at.display());
        if !at.is_absolute() {
            return Err(Error::new(ErrorKind::InvalidArgument, format!("{doing}: the path is not absolute")));
        }
        match at.metadata() {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(Error::new(ErrorKind::InvalidArgument, format!("{doing}: it is not a directory"))),
            Err(error) => return Err(Error::io(doing, error)),
        }
        let _mounting = self.mounting();
        check_not_mounted(&self.get(name)?, &doing)?;
        let mounts = self.snapshotter.mounts(&self.space, &key(name)?)?;
        let mount = mounts.first().expect("an active snapshot has a mount");
        fs::mount(mount, at)?;
        self.get(name)
    }

    /// Unmounts it from wherever it is mounted; not mounted is a success. Errors: `NotFound`, `InUse` if a
    /// process works in it.
    pub fn unmount(&self, name: &ContainerName) -> Result<Container> {
        let _mounting = self.mounting();
        // The last mounted is on top where one covers another.
        for target in self.get(name)?.mounted_at.iter().rev() {
            fs::unmount(target).map_err(|error| {
                let error = error.doing(format!("unmount container \"{name}\""));
                match error.kind() {
                    ErrorKind::InUse => error.advise(format!("see who works in it: fuser -vm {}", target.display())),
                    _ => error,
                }
            })?;
        }
        self.get(name)
    }

    /// Removes it with what was written in it. Errors: `NotFound`, `InUse` saying where it is mounted.
    pub fn remove(&self, name: &ContainerName) -> Result<()> {
        let _mounting = self.mounting();
        let doing = format!("remove container \"{name}\"");
        check_not_mounted(&self.get(name)?, &doing)?;
        self.snapshotter.remove(&self.space, &key(name)?).map_err(|error| error.doing(doing))
    }

    fn mounting(&self) -> MutexGuard<'_, ()> {
        // A panic of another caller leaves nothing half done that this lock guards.
        self.mounting.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn mounted_at(&self, snapshot: &Snapshot, mounts: &Mounts) -> Result<Vec<PathBuf>> {
        // A device that is not shown to the host is mounted nowhere.
        let Some(device) = self.snapshotter.pool().active_path(snapshot.device)? else { return Ok(Vec::new()) };
        match device.metadata() {
            Ok(metadata) => Ok(mounts.of_device(metadata.rdev())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(Error::io(format!("look at {}", device.display()), error)),
        }
    }
}

/// Mount points by device number, read once.
struct Mounts(HashMap<u64, Vec<PathBuf>>);

impl Mounts {
    fn read() -> Result<Self> {
        let mut by_device: HashMap<u64, Vec<PathBuf>> = HashMap::new();
        for mount in fs::mounts()? {
            by_device.entry(mount.device).or_default().push(mount.target);
        }
        Ok(Self(by_device))
    }

    fn of_device(&self, device: u64) -> Vec<PathBuf> {
        self.0.get(&device).cloned().unwrap_or_default()
    }
}

/// The snapshot's key: an image layer's name holds no `/`, so the two never meet.
fn key(name: &ContainerName) -> Result<Name> {
    Name::new(format!("container/{name}"))
}

fn record_of(snapshot: &Snapshot) -> Option<ContainerRecord> {
    let name = snapshot.labels.get(NAME_LABEL).filter(|_| snapshot.kind == Kind::Active)?;
    Some(ContainerRecord {
        name: ContainerName::new(name.as_str()).ok()?,
        image: snapshot.labels.get(IMAGE_LABEL).cloned(),
        parent: snapshot.parent.as_ref().map(|parent| parent.as_str().to_owned()),
        key: snapshot.name.as_str().to_owned(),
        created_ns: snapshot.created_ns,
    })
}

fn check_not_mounted(container: &Container, doing: &str) -> Result<()> {
    let Some(at) = container.mounted_at.first() else { return Ok(()) };
    let name = &container.record.name;
    Err(Error::new(ErrorKind::InUse, format!("{doing}: it is mounted on {}", at.display()))
        .advise(format!("unmount it first: thinsnap container unmount {name}")))
}

fn not_found(name: &ContainerName) -> Error {
    Error::new(ErrorKind::NotFound, format!("no container \"{name}\"")).advise("see thinsnap container ls")
}
