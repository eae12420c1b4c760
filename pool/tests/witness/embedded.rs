//! The embedded engine as a player.

use std::collections::BTreeMap;
use std::sync::Arc;

use thinsnap_pool::{
    Access, BlockDevice, ByteCount, DeviceId, EmbeddedOptions, EmbeddedPool, PoolPaths, ThinPool, open_embedded,
};

use crate::support::direct_exporter::{DirectExporter, Opened};
use crate::truth::{BLOCK, Counts, DEVICE_SIZE, Player};

/// A pool that our engine serves in this process.
pub(crate) struct Embedded {
    exporter: Arc<DirectExporter>,
    pool: Arc<EmbeddedPool>,
    opened: BTreeMap<DeviceId, Opened>,
}

impl Embedded {
    pub(crate) fn open(paths: &PoolPaths) -> Self {
        let exporter = DirectExporter::new();
        let shown: Arc<dyn thinsnap_pool::Exporter> = Arc::clone(&exporter) as _;
        let pool = open_embedded(paths, shown, &EmbeddedOptions::default()).unwrap();
        let mut player = Self { exporter, pool, opened: BTreeMap::new() };
        for id in player.pool.devices().unwrap() {
            player.activate(id);
        }
        player
    }

    fn activate(&mut self, id: DeviceId) {
        self.pool.activate(id, ByteCount(DEVICE_SIZE), Access::ReadWrite).unwrap();
        self.opened.insert(id, self.exporter.open(id));
    }
}

impl Player for Embedded {
    fn name(&self) -> &'static str {
        "the embedded engine"
    }

    fn create(&mut self, id: DeviceId) {
        self.pool.create_thin(id).unwrap();
        self.activate(id);
    }

    fn snap(&mut self, id: DeviceId, origin: DeviceId) {
        self.pool.create_snap(id, origin).unwrap();
        self.activate(id);
    }

    fn delete(&mut self, id: DeviceId) {
        self.opened.remove(&id);
        assert!(self.pool.deactivate(id).unwrap());
        self.pool.delete(id).unwrap();
    }

    fn write(&mut self, id: DeviceId, offset: u64, bytes: &[u8]) {
        self.opened[&id].write_at(bytes, offset).unwrap();
    }

    fn discard(&mut self, id: DeviceId, offset: u64, len: u64) {
        BlockDevice::discard(&*self.opened[&id], offset, len).unwrap();
    }

    fn flush(&mut self, id: DeviceId) {
        BlockDevice::flush(&*self.opened[&id]).unwrap();
    }

    fn read(&mut self, id: DeviceId) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(DEVICE_SIZE).unwrap()];
        self.opened[&id].read_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn grow(&mut self, data: u64, metadata: u64) {
        self.pool.grow(Some(ByteCount(data)), Some(ByteCount(metadata))).unwrap();
    }

    fn step_transaction(&mut self, from: u64) {
        self.pool.set_transaction_id(from, from + 1).unwrap();
    }

    fn counts(&mut self) -> Counts {
        let status = self.pool.status().unwrap();
        let mapped = |id: &DeviceId| self.pool.usage(*id).unwrap().mapped.0 / BLOCK;
        Counts {
            transaction: status.transaction_id,
            data_used: status.data.used.0 / BLOCK,
            data_total: status.data.total.0 / BLOCK,
            mapped: self.pool.devices().unwrap().iter().map(|id| (*id, mapped(id))).collect(),
        }
    }

    fn close(self: Box<Self>) {
        let Self { opened, pool, .. } = *self;
        drop(opened);
        pool.close().unwrap();
    }
}
