//! What the devices of a pool must hold, and the two engines as players of one story.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use thinsnap_pool::{BlockSize, ByteCount, CreateOptions, DeviceId, PoolPaths, create};

use crate::support::judges::assert_thin_check_accepts;
use crate::support::random::Random;

pub(crate) const BLOCK: u64 = 64 * 1024;
pub(crate) const SECTOR: u64 = 512;
pub(crate) const DEVICE_SIZE: u64 = 32 * BLOCK;
const DEVICES_MAX: usize = 8;
const DATA_SIZE: u64 = 24 << 20;
const METADATA_SIZE: u64 = 4 << 20;

/// What an engine says of a pool; engines must agree on it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) transaction: u64,
    pub(crate) data_used: u64,
    pub(crate) data_total: u64,
    pub(crate) mapped: BTreeMap<DeviceId, u64>,
}

/// An engine that has a pool open and all its devices at hand.
pub(crate) trait Player {
    fn name(&self) -> &'static str;
    fn create(&mut self, id: DeviceId);
    fn snap(&mut self, id: DeviceId, origin: DeviceId);
    fn delete(&mut self, id: DeviceId);
    fn write(&mut self, id: DeviceId, offset: u64, bytes: &[u8]);
    fn discard(&mut self, id: DeviceId, offset: u64, len: u64);
    fn flush(&mut self, id: DeviceId);
    fn read(&mut self, id: DeviceId) -> Vec<u8>;
    fn grow(&mut self, data: u64, metadata: u64);
    fn step_transaction(&mut self, from: u64);
    fn counts(&mut self) -> Counts;
    /// Closes the pool in good order.
    fn close(self: Box<Self>);
}

/// A pool in two files, and what must be in it.
pub(crate) struct Truth {
    dir: tempfile::TempDir,
    pub(crate) devices: BTreeMap<DeviceId, Vec<u8>>,
    pub(crate) transaction: u64,
    data: u64,
    metadata: u64,
    next: u32,
    token: u64,
}

impl Truth {
    pub(crate) fn new() -> Self {
        // Not the default place, which may be a tmpfs without direct I/O.
        let dir = tempfile::tempdir_in(std::env::var_os("TMPDIR").unwrap_or_else(|| "/var/tmp".into())).unwrap();
        create(&CreateOptions {
            paths: PoolPaths::in_dir(dir.path()),
            data_size: Some(ByteCount(DATA_SIZE)),
            metadata_size: Some(ByteCount(METADATA_SIZE)),
            block_size: BlockSize::from_bytes(BLOCK).unwrap(),
        })
        .unwrap();
        Self {
            dir,
            devices: BTreeMap::new(),
            transaction: 0,
            data: DATA_SIZE,
            metadata: METADATA_SIZE,
            next: 0,
            token: 0,
        }
    }

    pub(crate) fn paths(&self) -> PoolPaths {
        PoolPaths::in_dir(self.dir.path())
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn ids(&self) -> Vec<DeviceId> {
        self.devices.keys().copied().collect()
    }

    fn new_id(&mut self) -> DeviceId {
        self.next += 1;
        DeviceId::new(self.next).unwrap()
    }

    pub(crate) fn create(&mut self, player: &mut dyn Player) -> DeviceId {
        let id = self.new_id();
        player.create(id);
        self.devices.insert(id, vec![0; usize::try_from(DEVICE_SIZE).unwrap()]);
        id
    }

    pub(crate) fn snap(&mut self, player: &mut dyn Player, origin: DeviceId) -> DeviceId {
        let id = self.new_id();
        player.snap(id, origin);
        let content = self.devices[&origin].clone();
        self.devices.insert(id, content);
        id
    }

    pub(crate) fn delete(&mut self, player: &mut dyn Player, id: DeviceId) {
        player.delete(id);
        self.devices.remove(&id);
    }

    /// Writes bytes that no other write has.
    pub(crate) fn write(&mut self, player: &mut dyn Player, id: DeviceId, offset: u64, len: u64) -> Vec<u8> {
        self.token += 1;
        let words = (0..len / 8).map(|n| (self.token << 32) | (offset / 8 + n));
        let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        player.write(id, offset, &bytes);
        let start = usize::try_from(offset).unwrap();
        self.devices.get_mut(&id).unwrap()[start..start + bytes.len()].copy_from_slice(&bytes);
        bytes
    }

    /// Whole blocks, which read as zeroes afterwards.
    pub(crate) fn discard(&mut self, player: &mut dyn Player, id: DeviceId, first: u64, blocks: u64) {
        player.discard(id, first * BLOCK, blocks * BLOCK);
        let start = usize::try_from(first * BLOCK).unwrap();
        self.devices.get_mut(&id).unwrap()[start..][..usize::try_from(blocks * BLOCK).unwrap()].fill(0);
    }

    /// More room of both kinds.
    pub(crate) fn grow(&mut self, player: &mut dyn Player) {
        self.data += 16 * BLOCK;
        self.metadata += 64 * 4096;
        player.grow(self.data, self.metadata);
    }

    pub(crate) fn step_transaction(&mut self, player: &mut dyn Player) {
        player.step_transaction(self.transaction);
        self.transaction += 1;
    }

    /// One operation of any kind.
    pub(crate) fn step(&mut self, player: &mut dyn Player, random: &mut Random) {
        let ids = self.ids();
        if ids.is_empty() {
            self.create(player);
            return;
        }
        let id = random.pick(&ids);
        match random.below(100) {
            0..60 => {
                let sectors = 1 + random.below(3 * BLOCK / SECTOR);
                let offset = random.below(DEVICE_SIZE / SECTOR - sectors) * SECTOR;
                self.write(player, id, offset, sectors * SECTOR);
            }
            60..70 => {
                let first = random.below(DEVICE_SIZE / BLOCK - 4);
                self.discard(player, id, first, 1 + random.below(4));
            }
            70..75 => player.flush(id),
            75..79 if ids.len() < DEVICES_MAX => drop(self.create(player)),
            79..89 if ids.len() < DEVICES_MAX => drop(self.snap(player, id)),
            89..97 => self.delete(player, id),
            97 if self.data < 2 * DATA_SIZE => self.grow(player),
            _ => self.step_transaction(player),
        }
    }

    /// Every device byte for byte, none missing, none too many; the counts, for the other engine to confirm.
    pub(crate) fn verify(&self, player: &mut dyn Player, story: &str) -> Counts {
        let name = player.name();
        for (id, expected) in &self.devices {
            let found = player.read(*id);
            let differs = found.iter().zip(expected).position(|(a, b)| a != b);
            assert!(
                found.len() == expected.len() && differs.is_none(),
                "{story}: {name} reads device {id} differently at byte {differs:?} (block {:?})",
                differs.map(|at| at as u64 / BLOCK)
            );
        }
        let counts = player.counts();
        assert_eq!(counts.mapped.keys().copied().collect::<Vec<_>>(), self.ids(), "{story}: devices of {name}");
        assert_eq!(counts.transaction, self.transaction, "{story}: transaction id of {name}");
        assert_eq!(counts.data_total, self.data / BLOCK, "{story}: data blocks of {name}");
        counts
    }

    /// What the judges say of the pool that nobody has open.
    pub(crate) fn judge(&self, story: &str) {
        assert_thin_check_accepts(&std::fs::read(self.paths().metadata).unwrap(), story);
    }

    /// The files as a dead process leaves them, in a directory of their own.
    pub(crate) fn copy(&self, name: &str) -> PoolPaths {
        let to: PathBuf = self.dir().join(name);
        std::fs::create_dir(&to).unwrap();
        let (from, copy) = (self.paths(), PoolPaths::in_dir(&to));
        for (from, copy) in [(from.data, &copy.data), (from.metadata, &copy.metadata)] {
            crate::kernel::run("cp", &["--sparse=always", from.to_str().unwrap(), copy.to_str().unwrap()]);
        }
        copy
    }
}
