//! A pool of its own for a test, with the service's layers above it, and proof at the end that nothing is left.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use thinsnap::config::{Profile, SnapshotterConfig};
use thinsnap::container::{ContainerName, Containers, Origin};
use thinsnap::image::{Images, ImportRequest, Imported, Limits, SPACE};
use thinsnap::snapshot::{FsType, Snapshot, Space};
use thinsnap::snapshotter::Snapshotter;
use thinsnap::store::Store;
use thinsnap_pool::{
    BlockSize, ByteCount, CreateOptions, EmbeddedOptions, EmbeddedPool, ExportOptions, FuseExporter, PoolPaths, create,
    open_embedded,
};

/// Everything below the sockets, in this process.
pub(crate) struct Below {
    pub(crate) images: Images,
    pub(crate) containers: Containers,
    pub(crate) snapshotter: Arc<Snapshotter>,
    pool: Arc<EmbeddedPool>,
}

/// A pool in a temporary directory.
pub(crate) struct Bench {
    below: Option<Below>,
    dir: PathBuf,
    /// Removed last.
    temporary: Option<TempDir>,
}

impl Bench {
    /// A pool of 16 GiB, sparse, in a directory that goes with this value.
    pub(crate) fn new() -> Self {
        Self::with_pool_of(16 << 30)
    }

    /// A pool of this many bytes.
    pub(crate) fn with_pool_of(bytes: u64) -> Self {
        let dir = TempDir::new().unwrap();
        make_pool(dir.path(), bytes);
        let mut bench = Self::in_dir(dir.path());
        bench.temporary = Some(dir);
        bench
    }

    /// Opens everything over the pool in a directory; makes one if there is none.
    pub(crate) fn in_dir(dir: &Path) -> Self {
        if !PoolPaths::in_dir(dir).metadata.exists() {
            make_pool(dir, 16 << 30);
        }
        Self { below: Some(Self::open(dir)), dir: dir.to_owned(), temporary: None }
    }

    fn open(dir: &Path) -> Below {
        let exporter = FuseExporter::start(ExportOptions::new(dir.join("export"))).unwrap();
        let pool = open_embedded(&PoolPaths::in_dir(dir), Arc::new(exporter), &EmbeddedOptions::default()).unwrap();
        let store = Store::open(&dir.join("store.redb")).unwrap();
        let profile = Profile { fs: FsType::Ext4, size: ByteCount(8 << 30) };
        let config = SnapshotterConfig {
            profiles: BTreeMap::new(),
            default_profile: profile,
            data_floor: thinsnap::config::Share::Bytes(ByteCount(0)),
            metadata_floor: thinsnap::config::Share::Bytes(ByteCount(0)),
            work_dir: dir.join("work"),
        };
        let snapshotter = Snapshotter::open(Arc::clone(&pool) as _, store.clone(), config).unwrap();
        let images = Images::open(Arc::clone(&snapshotter), store.clone(), &dir.join("work")).unwrap();
        let containers = Containers::new(Arc::clone(&snapshotter), store);
        Below { images, containers, snapshotter, pool }
    }

    pub(crate) fn below(&self) -> &Below {
        self.below.as_ref().unwrap()
    }

    pub(crate) fn images(&self) -> &Images {
        &self.below().images
    }

    pub(crate) fn containers(&self) -> &Containers {
        &self.below().containers
    }

    /// A directory of the test's own.
    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// Closes everything and opens it again, as a new process would.
    pub(crate) fn reopen(&mut self) {
        self.close();
        self.below = Some(Self::open(&self.dir));
    }

    fn close(&mut self) {
        if let Some(Below { images, containers, snapshotter, pool }) = self.below.take() {
            drop((images, containers, snapshotter));
            let closed = pool.close();
            if !std::thread::panicking() {
                closed.unwrap();
            }
        }
    }

    /// Imports under a name.
    pub(crate) fn import(&self, source: &Path, name: &str) -> thinsnap::error::Result<Imported> {
        self.images().import(&request(source, name), &|_| std::ops::ControlFlow::Continue(()))
    }

    /// All snapshots of the space of images.
    pub(crate) fn snapshots(&self) -> Vec<Snapshot> {
        self.below().snapshotter.list(&Space::new(SPACE).unwrap(), &[]).unwrap()
    }

    /// Mounts a container of the image, shows its root directory to `look`, and removes it.
    pub(crate) fn look_into<T>(&self, image: &str, look: impl FnOnce(&Path) -> T) -> T {
        let name = ContainerName::new("look").unwrap();
        self.containers().create(&name, &Origin::Image(image.to_owned())).unwrap();
        let at = self.mount_point();
        self.containers().mount(&name, &at).unwrap();
        let guard = Unmount(at);
        let seen = look(&guard.0);
        drop(guard);
        self.containers().unmount(&name).unwrap();
        self.containers().remove(&name).unwrap();
        seen
    }

    /// The directory that tests mount on.
    pub(crate) fn mount_point(&self) -> PathBuf {
        self.dir.join("mnt")
    }
}

fn make_pool(dir: &Path, bytes: u64) {
    let (paths, data_size) = (PoolPaths::in_dir(dir), Some(ByteCount(bytes)));
    let block_size = BlockSize::from_bytes(64 << 10).unwrap();
    create(&CreateOptions { paths, data_size, metadata_size: None, block_size }).unwrap();
    std::fs::create_dir(dir.join("mnt")).unwrap();
}

/// Detaches a mount when a test fails under it.
pub(crate) struct Unmount(pub(crate) PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

/// A request for the only image of an archive.
pub(crate) fn request(source: &Path, name: &str) -> ImportRequest {
    ImportRequest {
        source: source.to_owned(),
        name: Some(name.to_owned()),
        reference: None,
        platform: None,
        limits: Limits::default(),
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.close();
        if std::thread::panicking() {
            return;
        }
        let dir = self.dir.to_str().unwrap().to_owned();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&dir), "a mount is left below {dir}");
        for entry in std::fs::read_dir("/sys/block").unwrap() {
            let backing = entry.unwrap().path().join("loop/backing_file");
            let backing = std::fs::read_to_string(backing).unwrap_or_default();
            assert!(!backing.contains(&dir), "a loop device is left on {backing}");
        }
        let work = std::fs::read_dir(self.dir.join("work")).map_or(0, Iterator::count);
        assert_eq!(work, 0, "something is left in the work directory");
    }
}
