//! A pool in memory on devices that fail on command.

use std::sync::Arc;

use thinsnap_pool::{
    Access, BlockDevice, BlockSize, ByteCount, DeviceId, EmbeddedPool, FormatOptions, MemoryDevice, Metadata, OpenMode,
    ThinPool, Volume,
};

use crate::support::direct_exporter::{DirectExporter, Opened};
use crate::support::faulty_device::FaultyDevice;

pub(crate) const BLOCK: u64 = 64 * 1024;

pub(crate) struct Ground {
    pub(crate) metadata: Arc<FaultyDevice>,
    pub(crate) data: Arc<FaultyDevice>,
    pub(crate) exporter: Arc<DirectExporter>,
    pub(crate) pool: Arc<EmbeddedPool>,
}

impl Ground {
    pub(crate) fn new(blocks: u64) -> Self {
        Self::with_block_size(blocks, BLOCK)
    }

    pub(crate) fn with_block_size(blocks: u64, block_size: u64) -> Self {
        let metadata = MemoryDevice::new(2 << 20);
        let options = FormatOptions {
            block_size: BlockSize::from_bytes(block_size).unwrap(),
            data_blocks: blocks,
            metadata_blocks: 512,
            identity: [7; 16],
        };
        Metadata::format(&metadata, &options).unwrap();
        let metadata = Arc::new(FaultyDevice::new(metadata));
        let bytes = vec![0xa5; usize::try_from(blocks * block_size).unwrap()];
        let data = Arc::new(FaultyDevice::new(MemoryDevice::from_bytes(bytes)));
        let exporter = DirectExporter::new();
        let pool = Self::open(&metadata, &data, &exporter);
        Self { metadata, data, exporter, pool }
    }

    pub(crate) fn open(
        metadata_device: &Arc<FaultyDevice>,
        data: &Arc<FaultyDevice>,
        exporter: &Arc<DirectExporter>,
    ) -> Arc<EmbeddedPool> {
        let device: Arc<dyn BlockDevice> = Arc::clone(metadata_device) as _;
        let metadata = Metadata::open(Arc::clone(&device), OpenMode::ReadWrite).unwrap();
        Arc::new(EmbeddedPool::new(metadata, device, Arc::clone(data) as _, Arc::clone(exporter) as _).unwrap())
    }

    pub(crate) fn device(&self, number: u32, size: u64) -> Opened {
        self.pool.create_thin(id(number)).unwrap();
        self.activate(number, size)
    }

    pub(crate) fn activate(&self, number: u32, size: u64) -> Opened {
        self.pool.activate(id(number), ByteCount(size), Access::ReadWrite).unwrap();
        self.exporter.open(id(number))
    }
}

pub(crate) fn id(number: u32) -> DeviceId {
    DeviceId::new(number).unwrap()
}

pub(crate) fn bytes(len: u64, value: u8) -> Vec<u8> {
    vec![value; usize::try_from(len).unwrap()]
}

pub(crate) fn read(volume: &dyn Volume, offset: u64, len: u64) -> Vec<u8> {
    let mut buf = bytes(len, 0xee);
    volume.read_at(&mut buf, offset).unwrap();
    buf
}
