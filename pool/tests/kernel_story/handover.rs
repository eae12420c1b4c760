//! A pool goes from the embedded engine to the kernel and back, again and again.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use thinsnap_pool::{Access, ByteCount, DeviceId, EmbeddedOptions, ThinPool, open_embedded};

use crate::support::direct_exporter::DirectExporter;
use crate::support::disk::Disk;
use crate::support::judges::{assert_sound, assert_thin_check_accepts};
use crate::support::kernel_stage::KernelDir;
use crate::support::random::Random;
use crate::support::stage::{BLOCK, OpenDisk};
use crate::turn;

/// Size of every device: most of a pool would be full of a few of them.
const SIZE: ByteCount = ByteCount(40 * BLOCK);
const DEVICES_MAX: usize = 8;
/// Data blocks that devices hold together at most: half of the pool, so that nothing fails for want of room.
const MAPPED_MAX: u64 = 120;

/// What the pool must hold: for each device, the byte that fills each 4 KiB page of it.
#[derive(Default)]
struct Model {
    devices: BTreeMap<DeviceId, Vec<u8>>,
    next: u32,
}

const PAGE: u64 = 4096;

impl Model {
    fn pick(&self, random: &mut Random) -> Option<DeviceId> {
        let ids: Vec<DeviceId> = self.devices.keys().copied().collect();
        (!ids.is_empty()).then(|| random.pick(&ids))
    }
}

fn bytes_of(pages: &[u8]) -> Vec<u8> {
    pages.iter().flat_map(|&byte| [byte; 4096]).collect()
}

/// One engine's turn: everything is as the model says, then some random work.
fn work(
    pool: &dyn ThinPool,
    open: &dyn Fn(DeviceId, &Path) -> Box<dyn OpenDisk>,
    model: &mut Model,
    random: &mut Random,
    story: &str,
) {
    let listed = pool.devices().unwrap();
    assert_eq!(listed, model.devices.keys().copied().collect::<Vec<_>>(), "{story}");
    for (&id, pages) in &model.devices {
        let path = pool.activate(id, SIZE, Access::ReadOnly).unwrap();
        let mut bytes = vec![0xee; usize::try_from(SIZE.0).unwrap()];
        open(id, &path).read(&mut bytes, 0);
        assert!(bytes == bytes_of(pages), "{story}: device {id} differs");
        assert!(pool.deactivate(id).unwrap(), "{story}");
    }
    for _ in 0..12 {
        let used = pool.status().unwrap().data.used.0 / BLOCK;
        let chosen = model.pick(random);
        match (random.below(10), chosen) {
            (0, _) | (_, None) if model.devices.len() < DEVICES_MAX => {
                let id = DeviceId::new(model.next).unwrap();
                model.next += 1;
                pool.create_thin(id).unwrap();
                model.devices.insert(id, vec![0; usize::try_from(SIZE.0 / PAGE).unwrap()]);
            }
            (1 | 2, Some(origin)) if model.devices.len() < DEVICES_MAX => {
                let id = DeviceId::new(model.next).unwrap();
                model.next += 1;
                pool.create_snap(id, origin).unwrap();
                model.devices.insert(id, model.devices[&origin].clone());
            }
            (3, Some(id)) => {
                pool.delete(id).unwrap();
                model.devices.remove(&id);
            }
            (4, Some(id)) => {
                let (start, len) = (random.below(30), 1 + random.below(10));
                let path = pool.activate(id, SIZE, Access::ReadWrite).unwrap();
                open(id, &path).discard(start * BLOCK, len * BLOCK);
                assert!(pool.deactivate(id).unwrap(), "{story}");
                let pages = usize::try_from(start * 16).unwrap()..usize::try_from((start + len) * 16).unwrap();
                model.devices.get_mut(&id).unwrap()[pages].fill(0);
            }
            (_, Some(id)) if used < MAPPED_MAX => {
                let path = pool.activate(id, SIZE, Access::ReadWrite).unwrap();
                let disk = open(id, &path);
                for _ in 0..3 {
                    let page = random.below(SIZE.0 / PAGE - 20);
                    let len = 1 + random.below(20);
                    let byte = u8::try_from(1 + random.below(255)).unwrap();
                    disk.write(&vec![byte; usize::try_from(len * PAGE).unwrap()], page * PAGE);
                    let pages = usize::try_from(page).unwrap()..usize::try_from(page + len).unwrap();
                    model.devices.get_mut(&id).unwrap()[pages].fill(byte);
                }
                drop(disk);
                assert!(pool.deactivate(id).unwrap(), "{story}");
            }
            _ => {}
        }
    }
    let now = pool.status().unwrap().transaction_id;
    pool.set_transaction_id(now, now + 1).unwrap();
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_a_pool_goes_from_engine_to_engine_and_loses_nothing() {
    let Some(_turn) = turn() else { return };
    let rounds = std::env::var("THINSNAP_HANDOVERS").map_or(20, |rounds| rounds.parse().unwrap());
    let seed = std::env::var("THINSNAP_SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut random = Random::new(seed);
    let dir = KernelDir::new();
    let mut model = Model::default();
    let identity = {
        let pool = dir.open();
        let identity = pool.status().unwrap().identity;
        pool.close().unwrap();
        identity
    };
    for round in 0..rounds {
        let story = format!("seed {seed}, handover {round}");
        let status = if round % 2 == 0 {
            let exporter = DirectExporter::new();
            let shown = exporter.clone();
            let pool = open_embedded(&dir.paths(), exporter, &EmbeddedOptions::default()).unwrap();
            work(&*pool, &|id, _| Box::new(Direct(shown.open(id))), &mut model, &mut random, &story);
            let status = pool.status().unwrap();
            pool.close().unwrap();
            status
        } else {
            let pool = dir.open();
            work(&*pool, &|_, path| Box::new(Disk::open(path)), &mut model, &mut random, &story);
            let status = pool.status().unwrap();
            pool.close().unwrap();
            status
        };
        assert_eq!((status.identity, status.transaction_id), (identity, round + 1), "{story}");
        let image = fs::read(dir.paths().metadata).unwrap();
        assert_sound(&image, &story);
        assert_thin_check_accepts(&image, &story);
    }
    println!("{rounds} handovers with seed {seed}, {} devices made", model.next);
}

/// A device of the embedded engine in this process.
struct Direct(crate::support::direct_exporter::Opened);

impl OpenDisk for Direct {
    fn read(&self, buf: &mut [u8], offset: u64) {
        self.0.read_at(buf, offset).unwrap();
    }

    fn write(&self, buf: &[u8], offset: u64) {
        self.0.write_at(buf, offset).unwrap();
    }

    fn discard(&self, offset: u64, len: u64) {
        self.0.discard(offset, len).unwrap();
    }

    fn zero(&self, offset: u64, len: u64) {
        self.0.write_zeroes(offset, len).unwrap();
    }

    fn flush(&self) {
        self.0.flush().unwrap();
    }
}
