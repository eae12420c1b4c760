//! A pool in another process as a stage of the laws, with real block devices.

use std::path::Path;
use std::time::Duration;

use thinsnap_pool::{DeviceId, HostClient, ThinPool};

use crate::host_process::HostDir;
use crate::host_tools::leftovers;
use crate::shown_by::by_ublk;
use crate::support::disk::Disk;
use crate::support::stage::{DATA_SIZE, OpenDisk, Stage};

/// A pool in its directory and the client of its host.
pub(crate) struct HostStage {
    client: Option<HostClient>,
    dir: HostDir,
}

impl HostStage {
    pub(crate) fn new() -> Self {
        let dir = HostDir::new(DATA_SIZE, Duration::from_secs(600));
        Self { client: Some(dir.host()), dir }
    }
}

impl Stage for HostStage {
    fn pool(&self) -> &dyn ThinPool {
        self.client.as_ref().unwrap()
    }

    fn open(&self, _id: DeviceId, path: &Path) -> Box<dyn OpenDisk> {
        Box::new(Disk::open(path))
    }

    fn grows_in_use(&self) -> bool {
        !by_ublk()
    }

    fn reopen(&mut self) {
        HostDir::stop(&self.client.take().unwrap());
        assert_eq!(leftovers(self.dir.path()), Vec::<String>::new());
        self.client = Some(self.dir.host());
    }
}

impl Drop for HostStage {
    fn drop(&mut self) {
        drop(self.client.take());
    }
}
