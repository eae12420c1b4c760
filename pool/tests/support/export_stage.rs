//! An exporter for a test: in a directory of its own, with files as volumes, gone afterwards.

use std::path::PathBuf;
use std::sync::Arc;

use thinsnap_pool::{Access, ByteCount, DeviceId, ExportOptions, Exporter, Result, Volume, begin_export};

use crate::file_volume::{Behaviour, FileVolume};
use crate::host_tools::leftovers;
use crate::shown_by::{by_ublk, ublk_devices, wanted_export};

/// An exporter in a directory of its own; both go, whatever the test does.
pub(crate) struct Stage {
    // Dropped first: its mount stands in the directory.
    pub(crate) exporter: Arc<dyn Exporter>,
    pub(crate) dir: tempfile::TempDir,
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self::with_threads(1)
    }

    pub(crate) fn with_threads(event_threads: usize) -> Self {
        // Not the default place, which may be a tmpfs without direct I/O.
        let dir = tempfile::tempdir_in(std::env::var_os("TMPDIR").unwrap_or_else(|| "/var/tmp".into())).unwrap();
        let mut options = ExportOptions::new(dir.path().join("export"));
        options.event_threads = event_threads;
        Self { exporter: begin(options).unwrap(), dir }
    }

    /// With a device of `size` bytes, for writing: its volume and its node.
    pub(crate) fn with_device(size: u64) -> (Self, Arc<FileVolume>, PathBuf) {
        let stage = Self::new();
        let volume = stage.volume(1, size, Behaviour::default());
        let path = stage.attach(1, &volume, size, Access::ReadWrite);
        (stage, volume, path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn volume(&self, id: u32, size: u64, behaviour: Behaviour) -> Arc<FileVolume> {
        Arc::new(FileVolume::create(&self.path(&format!("volume-{id}")), size, behaviour).unwrap())
    }

    pub(crate) fn attach(&self, id: u32, volume: &Arc<FileVolume>, size: u64, access: Access) -> PathBuf {
        self.exporter.attach(device(id), Arc::clone(volume) as Arc<dyn Volume>, ByteCount(size), access).unwrap()
    }

    /// Ends the exporter and looks for what it left.
    pub(crate) fn finish(self) {
        self.exporter.shutdown().unwrap();
        assert_eq!(leftovers(self.dir.path()), Vec::<String>::new());
        assert!(!by_ublk() || ublk_devices().is_empty(), "left behind: {:?}", ublk_devices());
    }
}

/// Begins an exporter of the kind that this run is about.
pub(crate) fn begin(options: ExportOptions) -> Result<Arc<dyn Exporter>> {
    begin_export(wanted_export(), options, Vec::new())
}

pub(crate) fn device(id: u32) -> DeviceId {
    DeviceId::new(id).unwrap()
}
