//! Devices that a killed process left shown: the next one serves them before anybody asks.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use thinsnap_pool::{
    Access, BlockDevice, BlockSize, ByteCount, DeviceId, EmbeddedOptions, EmbeddedPool, ErrorKind, Exporter,
    FormatOptions, MemoryDevice, Metadata, OpenMode, Orphan, Result, ThinPool, Volume,
};

use crate::direct_exporter::DirectExporter;
use crate::ground::BLOCK;

const SIZE: ByteCount = ByteCount(4 * BLOCK);

/// An exporter that took over from a dead one.
struct Heir {
    inner: Arc<DirectExporter>,
    orphans: Vec<Orphan>,
    adopted: Mutex<Vec<DeviceId>>,
    detached: Mutex<Vec<DeviceId>>,
    resumed: AtomicBool,
}

impl Exporter for Heir {
    fn attach(&self, id: DeviceId, volume: Arc<dyn Volume>, size: ByteCount, access: Access) -> Result<PathBuf> {
        self.inner.attach(id, volume, size, access)
    }

    fn orphans(&self) -> Vec<Orphan> {
        self.orphans.clone()
    }

    fn adopt(&self, id: DeviceId, volume: Arc<dyn Volume>) -> Result<()> {
        assert!(!self.resumed.load(Ordering::Relaxed), "no request may come before its device");
        let orphan = self.orphans.iter().find(|orphan| orphan.id == id).unwrap();
        assert_eq!(volume.size(), orphan.size.0);
        self.adopted.lock().unwrap().push(id);
        self.inner.attach(id, volume, orphan.size, orphan.access).map(drop)
    }

    fn resume(&self) -> Result<()> {
        self.resumed.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn resize(&self, id: DeviceId, size: ByteCount) -> Result<()> {
        self.inner.resize(id, size)
    }

    fn detach(&self, id: DeviceId) -> Result<bool> {
        assert!(
            self.resumed.load(Ordering::Relaxed),
            "nobody would answer what the kernel asks when it lets a file go"
        );
        self.detached.lock().unwrap().push(id);
        self.inner.detach(id)
    }

    fn path(&self, id: DeviceId) -> Option<PathBuf> {
        self.inner.path(id)
    }

    fn attached(&self) -> Vec<(DeviceId, bool)> {
        self.inner.attached()
    }

    fn shutdown(&self) -> Result<()> {
        self.inner.shutdown()
    }
}

#[test]
fn the_devices_of_a_dead_process_are_served_again_before_their_requests_come() {
    let id = |number| DeviceId::new(number).unwrap();
    let device: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(512 * 4096));
    let options =
        FormatOptions { block_size: BlockSize::DEFAULT, data_blocks: 40, metadata_blocks: 512, identity: [7; 16] };
    Metadata::format(&*device, &options).unwrap();
    let data: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(40 * BLOCK));
    let open = |exporter: Arc<dyn Exporter>| {
        let metadata = Metadata::open(Arc::clone(&device), OpenMode::ReadWrite).unwrap();
        let options = EmbeddedOptions::default();
        EmbeddedPool::with_options(metadata, Arc::clone(&device), Arc::clone(&data), exporter, &options).unwrap()
    };
    let pool = open(DirectExporter::new());
    for number in 1..=3 {
        pool.create_thin(id(number)).unwrap();
    }
    drop(pool);

    let orphan = |number, access, leaving| Orphan { id: id(number), size: SIZE, access, leaving };
    let exporter = Arc::new(Heir {
        inner: DirectExporter::new(),
        orphans: vec![
            orphan(1, Access::ReadWrite, false),
            orphan(2, Access::ReadOnly, false),
            orphan(3, Access::ReadWrite, true),
            orphan(77, Access::ReadWrite, false),
        ],
        adopted: Mutex::default(),
        detached: Mutex::default(),
        resumed: AtomicBool::new(false),
    });
    let pool = open(Arc::clone(&exporter) as _);
    assert!(exporter.resumed.load(Ordering::Relaxed));
    assert_eq!(*exporter.adopted.lock().unwrap(), [id(1), id(2), id(3)], "there is no device 77");
    assert_eq!(*exporter.detached.lock().unwrap(), [id(77)], "one that was being made when its host was killed");
    pool.create_thin(id(77)).unwrap();
    pool.activate(id(77), SIZE, Access::ReadWrite).unwrap();
    exporter.inner.open(id(1)).write_at(&[1; 512], 0).unwrap();
    let refused = exporter.inner.open(id(2)).write_at(&[1; 512], 0).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnly);
    // Known as active, each as it was.
    pool.activate(id(1), SIZE, Access::ReadWrite).unwrap();
    assert_eq!(pool.activate(id(2), SIZE, Access::ReadWrite).unwrap_err().kind(), ErrorKind::InUse);
    assert_eq!(pool.activate(id(3), SIZE, Access::ReadWrite).unwrap_err().kind(), ErrorKind::InUse, "it is leaving");
    assert!(pool.deactivate(id(1)).unwrap());
    pool.close().unwrap();
}
