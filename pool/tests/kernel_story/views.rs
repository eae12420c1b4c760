//! Metadata that is read beside the running pool, and room that free blocks give back.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};

use thinsnap_pool::{Access, ByteCount, DeviceId, ThinPool, ViewDevice, audit, open_kernel};

use crate::kernel_story::disks::Disks;
use crate::support::disk::Disk;
use crate::support::kernel_stage::KernelDir;
use crate::support::stage::{BLOCK, OpenDisk};
use crate::turn;

const SIZE: ByteCount = ByteCount(64 * BLOCK);

/// Has the threads that look at it end when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn id(number: u32) -> DeviceId {
    DeviceId::new(number).unwrap()
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_a_view_is_whole_however_much_is_written_and_committed_beside_it() {
    let Some(_turn) = turn() else { return };
    // On a file, and on disks.
    let (dir, disks) = (KernelDir::new(), Disks::new(256, 1024));
    for (paths, options) in [(dir.paths(), dir.options()), (disks.paths(), disks.kernel_options())] {
        let pool = open_kernel(&paths, &options).unwrap();
        for number in [1, 2] {
            pool.create_thin(id(number)).unwrap();
        }
        let path = pool.activate(id(1), SIZE, Access::ReadWrite).unwrap();
        Disk::open(&path).write(&vec![1; 10 * 65536], 0);
        let busy = pool.activate(id(2), SIZE, Access::ReadWrite).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Also when a claim below fails.
            let _stop = Stop(&stop);
            scope.spawn(|| {
                let disk = Disk::open(&busy);
                for round in 0_u64.. {
                    disk.write(&[3; 4096], round % 60 * BLOCK);
                    disk.flush();
                    if round % 60 == 59 {
                        disk.discard(0, 60 * BLOCK);
                    }
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            for round in 0..8 {
                let view = pool.begin_view().unwrap();
                assert!(pool.status().unwrap().metadata_snapshot, "it is held for the reader");
                let device = ViewDevice::open(&paths.metadata, &view).unwrap();
                // What happens meanwhile is not in it, and other questions are answered.
                pool.create_snap(id(10 + round), id(1)).unwrap();
                assert_eq!(pool.usage(id(1)).unwrap().mapped, ByteCount(10 * BLOCK));
                let report = audit(&device, &|_| ()).unwrap();
                assert!(report.is_sound() && !report.incomplete, "{:?}", report.findings);
                assert_eq!(report.devices, 2 + u64::from(round));
                assert!(pool.end_view(view.number).unwrap(), "it was whole all the time");
                assert!(!pool.end_view(view.number).unwrap(), "it has ended");
            }
        });
        assert!(!pool.status().unwrap().metadata_snapshot);
        // A pool that is closed takes no snapshot along.
        drop(pool.begin_view().unwrap());
        pool.close().unwrap();
        let image = std::fs::read(&paths.metadata).unwrap();
        assert_eq!(image[56..64], [0; 8], "a held metadata snapshot keeps deleted blocks for ever");
    }
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_a_trim_empties_what_is_free_and_nothing_else() {
    let Some(_turn) = turn() else { return };
    let dir = KernelDir::new();
    let pool = dir.open();
    for number in [1, 2, 3] {
        pool.create_thin(id(number)).unwrap();
        let path = pool.activate(id(number), SIZE, Access::ReadWrite).unwrap();
        Disk::open(&path).write(&vec![u8::try_from(number).unwrap(); 40 * 65536], 0);
        assert!(pool.deactivate(id(number)).unwrap());
    }
    pool.create_snap(id(4), id(3)).unwrap();
    pool.delete(id(2)).unwrap();
    pool.delete(id(3)).unwrap();
    let allocated = || std::fs::metadata(dir.paths().data).unwrap().blocks() * 512;
    let before = allocated();
    // Somebody writes all the time, into new blocks too.
    let path = pool.activate(id(1), SIZE, Access::ReadWrite).unwrap();
    let stop = AtomicBool::new(false);
    let emptied = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let disk = Disk::open(&path);
            let mut block = 40;
            while !stop.load(Ordering::Relaxed) && block < 64 {
                disk.write(&[9; 65536], block * BLOCK);
                block += 1;
            }
            block
        });
        let emptied = pool.trim().unwrap();
        stop.store(true, Ordering::Relaxed);
        (emptied, writer.join().unwrap())
    });
    let (emptied, written) = emptied;
    let new = (written - 40) * BLOCK;
    assert!(emptied.0 >= 40 * BLOCK - new && emptied.0 <= 40 * BLOCK, "{emptied} of 40 blocks, {new} taken again");
    assert!(allocated() <= before + new - emptied.0, "{before} then, {} now", allocated());
    assert_eq!(pool.trim().unwrap(), ByteCount(0), "nothing is left to do");
    let mut bytes = vec![0; 65536];
    for (number, blocks, byte) in [(1, 0..40, 1), (1, 40..written, 9), (4, 0..40, 3)] {
        let path = pool.activate(id(number), SIZE, Access::ReadWrite).unwrap();
        let disk = Disk::open(&path);
        for block in blocks {
            disk.read(&mut bytes, block * BLOCK);
            assert!(bytes.iter().all(|&found| found == byte), "device {number}, block {block}");
        }
    }
    pool.close().unwrap();
}
