//! The images of a pool: import, list, remove, and the bookkeeping that keeps the two apart.
//!
//! Two callers may come at once, and the process may die at any moment. What holds then:
//! - An import works on an active snapshot that carries [`IMPORT_LABEL`]; one whose import is not alive in this process is
//!   a dead process's (the store admits one process), and is removed when the next import begins.
//! - A layer becomes visible by its commit, whole or not at all; an image by its record, after all its layers.
//! - An import **pins** the chain ids it will need before it looks for them, and a removal passes over pinned ones, so that
//!   no layer goes between being found and being built upon.
//! - Layers whose image was never recorded stay, so that an import that is run again goes on where it stopped;
//!   [`Images::prune`] removes them.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::config::Limits;
use crate::error::{Error, ErrorKind, Result};
use crate::image::archive::remove_spools;
use crate::image::import::Import;
use crate::image::platform::Platform;
use crate::image::progress::ProgressFn;
use crate::image::record::{ImageRecord, LayerRecord, SPACE};
use crate::snapshot::{Kind, Name, Snapshot, Space};
use crate::snapshotter::Snapshotter;
use crate::store::{Rows, Store, Table};

/// Where the records stand, by name.
const IMAGES: Table = Table::new("images");

/// On the active snapshot of a running import; its value is the layer.
pub(super) const IMPORT_LABEL: &str = "thinsnap/import";
/// On a committed layer of an image; its value is the diff id.
pub(super) const LAYER_LABEL: &str = "thinsnap/diff-id";

/// Longest name of an image: that of a reference in a registry.
const NAME_LEN_MAX: usize = 255;

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
    pub(super) snapshotter: Arc<Snapshotter>,
    store: Store,
    pub(super) work_dir: PathBuf,
    pub(super) space: Space,
    live: Mutex<Live>,
}

/// What running imports in this process hold.
#[derive(Debug, Default)]
struct Live {
    /// Keys of their active snapshots.
    keys: HashSet<String>,
    /// Chain ids, and how many imports pin each.
    pins: HashMap<String, usize>,
}

impl Images {
    /// `store` is the snapshotter's, where the records are kept. `work_dir` is a directory of ours for temporary files; it
    /// is made if it is not there. What an import left behind that died with its process is removed.
    pub fn open(snapshotter: Arc<Snapshotter>, store: Store, work_dir: &Path) -> Result<Self> {
        let failed = |error| Error::io(format!("prepare the work directory {}", work_dir.display()), error);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(work_dir).map_err(failed)?;
        remove_spools(work_dir).map_err(failed)?;
        let (work_dir, space) = (work_dir.to_owned(), Space::new(SPACE)?);
        let images = Self { snapshotter, store, work_dir, space, live: Mutex::default() };
        images.remove_dead()?;
        Ok(images)
    }

    /// Reads an archive and lays its layers down as a chain of committed snapshots. An image of that name is
    /// replaced; its layers stay until nothing uses them.
    ///
    /// Errors: `BadArchive` naming the blob or entry, `NotFound` for a reference or platform that is not in it
    /// (with the ones that are), `NoSpace`. After an error nothing is left behind but whole layers, which the next
    /// import of the same image finds.
    pub fn import(&self, request: &ImportRequest, progress: ProgressFn<'_>) -> Result<Imported> {
        self.remove_dead()?;
        Import::new(self, request, progress)?.run()
    }

    /// All images, by name.
    pub fn list(&self) -> Result<Vec<ImageRecord>> {
        let records = self.store.read()?.scan_json(IMAGES, "")?;
        Ok(records.into_iter().map(|(_, record)| record).collect())
    }

    /// One image. Errors: `NotFound`.
    pub fn get(&self, name: &str) -> Result<ImageRecord> {
        image_record(&self.store, name)
    }

    /// Removes an image and those of its layers, from the top down, that no other image, container or snapshot
    /// uses. Errors: `NotFound`.
    pub fn remove(&self, name: &str) -> Result<Removed> {
        let key = name.to_owned();
        let image = self.store.write(move |txn| {
            let image: Option<ImageRecord> = txn.get_json(IMAGES, &key)?;
            let image = image.ok_or_else(|| not_found(&key))?;
            txn.delete_json(IMAGES, &key)?;
            Ok(image)
        })?;
        let layers_removed = self.release(&image.layers)?;
        Ok(Removed { image, layers_removed })
    }

    /// Removes layers that no image, container or snapshot uses: what imports left that were never finished. Returns how
    /// many.
    pub fn prune(&self) -> Result<usize> {
        self.remove_dead()?;
        let mut removed = 0;
        loop {
            let before = removed;
            for snapshot in self.snapshots(Kind::Committed, LAYER_LABEL)? {
                removed += usize::from(self.release_one(snapshot.name.as_str())?);
            }
            // A layer can go when the one above it has gone, so it takes as many rounds as chains are long.
            if removed == before {
                return Ok(removed);
            }
        }
    }

    /// Records an image; the layers of the one it replaces go unless something uses them.
    pub(super) fn record(&self, image: &ImageRecord) -> Result<()> {
        let record = image.clone();
        let replaced: Option<ImageRecord> = self.store.write(move |txn| {
            let replaced = txn.get_json(IMAGES, &record.name)?;
            txn.put_json(IMAGES, &record.name, &record)?;
            Ok(replaced)
        })?;
        if let Some(replaced) = replaced {
            self.release(&replaced.layers)?;
        }
        Ok(())
    }

    /// True if the layer is in the pool.
    pub(super) fn holds(&self, chain_id: &Name) -> Result<bool> {
        match self.snapshotter.stat(&self.space, chain_id) {
            Ok(snapshot) => Ok(snapshot.kind == Kind::Committed),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Announces the key of an active snapshot before it is made.
    pub(super) fn announce(&self, key: &Name) -> Announced<'_> {
        self.live().keys.insert(key.as_str().to_owned());
        Announced { images: self, key: key.clone() }
    }

    /// Keeps a layer from being removed, whether it is there or not.
    pub(super) fn pin(&self, chain_id: &Name) -> Pin<'_> {
        *self.live().pins.entry(chain_id.as_str().to_owned()).or_default() += 1;
        Pin { images: self, chain_id: chain_id.clone() }
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().expect("nothing panics while it holds the live imports")
    }

    /// Removes what dead imports left.
    fn remove_dead(&self) -> Result<()> {
        for snapshot in self.snapshots(Kind::Active, IMPORT_LABEL)? {
            // Announced before it was made: what is not is nobody's.
            if self.live().keys.contains(snapshot.name.as_str()) {
                continue;
            }
            match self.snapshotter.remove(&self.space, &snapshot.name) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error.doing("remove what an interrupted import left"));
                }
                Ok(()) | Err(_) => tracing::info!(snapshot = %snapshot.name, "removed what an interrupted import left"),
            }
        }
        Ok(())
    }

    fn snapshots(&self, kind: Kind, label: &str) -> Result<Vec<Snapshot>> {
        let mut found = self.snapshotter.list(&self.space, &[])?;
        found.retain(|snapshot| snapshot.kind == kind && snapshot.labels.contains_key(label));
        Ok(found)
    }

    /// Removes layers from the top down until one has another user.
    fn release(&self, layers: &[LayerRecord]) -> Result<usize> {
        let mut removed = 0;
        for layer in layers.iter().rev() {
            if !self.release_one(&layer.chain_id)? {
                break;
            }
            removed += 1;
        }
        Ok(removed)
    }

    /// Removes a layer unless an import, an image or a snapshot uses it. True if it is gone.
    fn release_one(&self, chain_id: &str) -> Result<bool> {
        // Held to the end: an import that pins the layer after this finds it gone, not going.
        let live = self.live();
        if live.pins.contains_key(chain_id) {
            return Ok(false);
        }
        let is_layer = |image: &ImageRecord| image.layers.iter().any(|layer| layer.chain_id == chain_id);
        if self.list()?.iter().any(is_layer) {
            return Ok(false);
        }
        match self.snapshotter.remove(&self.space, &Name::new(chain_id)?) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
            Err(error) if error.kind() == ErrorKind::HasChildren => Ok(false),
            Err(error) => Err(error.doing("remove a layer that nothing uses")),
        }
    }
}

/// A key that a running import has announced; taken back on drop.
pub(super) struct Announced<'a> {
    images: &'a Images,
    key: Name,
}

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        self.images.live().keys.remove(self.key.as_str());
    }
}

/// A layer that is not removed while this lives.
pub(super) struct Pin<'a> {
    images: &'a Images,
    chain_id: Name,
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let mut live = self.images.live();
        if let Some(count) = live.pins.get_mut(self.chain_id.as_str()) {
            *count -= 1;
            if *count == 0 {
                live.pins.remove(self.chain_id.as_str());
            }
        }
    }
}

/// The record of an image. Errors: `NotFound`.
pub(crate) fn image_record(store: &Store, name: &str) -> Result<ImageRecord> {
    store.read()?.get_json(IMAGES, name)?.ok_or_else(|| not_found(name))
}

fn not_found(name: &str) -> Error {
    let shown: String = name.chars().take(NAME_LEN_MAX).collect();
    Error::new(ErrorKind::NotFound, format!("no image {shown:?}")).advise("see thinsnap image ls")
}

/// Errors with `InvalidArgument` unless the name can be typed, listed and quoted.
pub(super) fn check_image_name(name: &str) -> Result<()> {
    let good = (1..=NAME_LEN_MAX).contains(&name.len())
        && !name.starts_with('-')
        && name.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '"' | '\'' | '\\' | '`'));
    if good {
        return Ok(());
    }
    let shown: String = name.chars().take(NAME_LEN_MAX).collect();
    Err(Error::new(ErrorKind::InvalidArgument, format!("image name {shown:?} is not a name")).advise(format!(
        "use 1 to {NAME_LEN_MAX} printable characters without blanks and quotes, for instance docker.io/library/debian:12"
    )))
}
