//! The engine without room: discards and deletions get through at full metadata, a trim empties what was left.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thinsnap_pool::{
    Access, BlockDevice, BlockSize, ByteCount, CreateOptions, EmbeddedOptions, EmbeddedPool, ErrorKind, FormatOptions,
    MemoryDevice, Metadata, OpenMode, PoolPaths, ThinPool, create, open_embedded,
};

use crate::disk::{BLOCK, device};
use crate::host_tools::{eventually, when_free};
use crate::support::direct_exporter::DirectExporter;

/// Four writers map block after block until no metadata is left above the reserve.
fn exhaust(exporter: &DirectExporter) {
    let run = vec![1; usize::try_from(50 * BLOCK).unwrap()];
    std::thread::scope(|scope| {
        for writer in 0..4_u64 {
            let run = &run;
            scope.spawn(move || {
                let volume = exporter.open(device(1));
                let failed = (0..2000).map(|part| volume.write_at(run, (writer * 100_000 + part * 50) * BLOCK));
                let failed = failed.into_iter().find_map(Result::err).expect("the metadata has an end");
                assert_eq!(failed.kind(), ErrorKind::OutOfMetadataSpace, "{failed}");
            });
        }
    });
}

/// Snapshots of a device whose every leaf is then changed, until there is no metadata for the next; returns them.
fn exhaust_by_sharing(pool: &EmbeddedPool, exporter: &DirectExporter) -> Vec<u32> {
    let volume = exporter.open(device(1));
    let mut made = Vec::new();
    for number in 1000.. {
        match pool.create_snap(device(number), device(1)) {
            Ok(()) => made.push(number),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::OutOfMetadataSpace);
                break;
            }
        }
        for part in 0..200_u64 {
            if let Err(error) = volume.write_at(&[1; 512], part * 100 * BLOCK) {
                assert_eq!(error.kind(), ErrorKind::OutOfMetadataSpace, "{error}");
                break;
            }
        }
    }
    made
}

#[test]
fn a_pool_whose_metadata_is_all_copies_for_snapshots_still_deletes_them() {
    let memory = Arc::new(MemoryDevice::new(16 << 20));
    let options = FormatOptions {
        block_size: BlockSize::from_bytes(BLOCK).unwrap(),
        data_blocks: 400_000,
        metadata_blocks: 4096,
        identity: [7; 16],
    };
    Metadata::format(&*memory, &options).unwrap();
    let metadata = Metadata::open(Arc::clone(&memory) as Arc<dyn BlockDevice>, OpenMode::ReadWrite).unwrap();
    let exporter = DirectExporter::new();
    let data = Arc::new(Thin(400_000 * BLOCK));
    let pool = EmbeddedPool::new(metadata, Arc::clone(&memory) as _, data, Arc::clone(&exporter) as _).unwrap();
    pool.create_thin(device(1)).unwrap();
    pool.activate(device(1), ByteCount(20_000 * BLOCK), Access::ReadWrite).unwrap();
    let volume = exporter.open(device(1));
    let run = vec![1; usize::try_from(50 * BLOCK).unwrap()];
    (0..400).for_each(|part| volume.write_at(&run, part * 50 * BLOCK).unwrap());
    drop(volume);
    let snapshots = exhaust_by_sharing(&pool, &exporter);
    println!("{} snapshots until the metadata was exhausted", snapshots.len());
    snapshots.into_iter().for_each(|number| pool.delete(device(number)).unwrap());
    assert!(pool.deactivate(device(1)).unwrap());
    pool.delete(device(1)).unwrap();
    pool.close().unwrap();
    let report = thinsnap_pool::audit(&MemoryDevice::from_bytes(memory.to_bytes()), &|_| ()).unwrap();
    assert!(report.is_sound(), "{report:#?}");
}

#[test]
fn discards_and_deletions_get_through_when_no_metadata_is_left_for_anybody_else() {
    let memory = Arc::new(MemoryDevice::new(8 << 20));
    let options = FormatOptions {
        block_size: BlockSize::from_bytes(BLOCK).unwrap(),
        data_blocks: 400_000,
        metadata_blocks: 1500,
        identity: [7; 16],
    };
    Metadata::format(&*memory, &options).unwrap();
    let metadata = Metadata::open(Arc::clone(&memory) as Arc<dyn BlockDevice>, OpenMode::ReadWrite).unwrap();
    let data = Arc::new(Thin(400_000 * BLOCK));
    let exporter = DirectExporter::new();
    let pool = EmbeddedPool::new(metadata, Arc::clone(&memory) as _, data, Arc::clone(&exporter) as _).unwrap();
    let size = 400_000 * BLOCK;
    for number in [1, 2] {
        pool.create_thin(device(number)).unwrap();
        pool.activate(device(number), ByteCount(size), Access::ReadWrite).unwrap();
    }
    // The second is as large as the first and shares nothing with it; a snapshot shares all of it.
    let second = exporter.open(device(2));
    (0..700_u64).for_each(|number| second.write_at(&[2; 512], number * 300 * BLOCK).unwrap());
    pool.create_snap(device(3), device(2)).unwrap();
    exhaust(&exporter);

    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Writers who take at once whatever is above the reserve.
        for writer in 0..3_u64 {
            let (stop, exporter) = (&stop, &exporter);
            scope.spawn(move || {
                let volume = exporter.open(device(1));
                let mut number = writer;
                while !stop.load(Ordering::SeqCst) {
                    number = (number * 7 + 3) % 399_000;
                    if let Err(error) = volume.write_at(&[3; 512], number * BLOCK) {
                        assert_eq!(error.kind(), ErrorKind::OutOfMetadataSpace, "{error}");
                    }
                }
            });
        }
        // Discards of a device that shares every leaf with its snapshot: each copies a leaf first.
        let mut discarded = 0;
        for number in 0..700_u64 {
            match second.discard(number * 300 * BLOCK, BLOCK) {
                Ok(()) => discarded += 1,
                Err(error) => {
                    println!("refused: {error}");
                    break;
                }
            }
        }
        println!("{discarded} discards of shared blocks before the half of the reserve was used");
        // However far they came: deleting still works, also of the largest.
        drop(second);
        let gone = pool.deactivate(device(2));
        let deleted = pool.delete(device(2)).and_then(|()| pool.delete(device(3)));
        // Before anything can fail: the writers must end.
        stop.store(true, Ordering::SeqCst);
        assert!(discarded > 0, "a discard is refused with the reserve untouched");
        assert!(gone.unwrap());
        deleted.unwrap();
    });
    assert!(pool.deactivate(device(1)).unwrap());
    pool.delete(device(1)).unwrap();
    pool.close().unwrap();
    let report = thinsnap_pool::audit(&MemoryDevice::from_bytes(memory.to_bytes()), &|_| ()).unwrap();
    assert!(report.is_sound(), "{report:#?}");
    assert_eq!(report.data_used, 0);
}

/// Data that nobody looks at.
struct Thin(u64);

impl BlockDevice for Thin {
    fn size(&self) -> u64 {
        self.0
    }
    fn read_at(&self, buf: &mut [u8], _offset: u64) -> thinsnap_pool::Result<()> {
        buf.fill(0);
        Ok(())
    }
    fn write_at(&self, _buf: &[u8], _offset: u64) -> thinsnap_pool::Result<()> {
        Ok(())
    }
    fn discard(&self, _offset: u64, _len: u64) -> thinsnap_pool::Result<()> {
        Ok(())
    }
    fn write_zeroes(&self, _offset: u64, _len: u64) -> thinsnap_pool::Result<()> {
        Ok(())
    }
    fn flush(&self) -> thinsnap_pool::Result<()> {
        Ok(())
    }
    fn known_zero(&self, _offset: u64, _len: u64) -> bool {
        true
    }
}

#[test]
fn free_blocks_that_a_dead_process_left_full_are_emptied_and_others_are_left_alone() {
    let dir = tempfile::tempdir_in(std::env::var_os("TMPDIR").unwrap_or_else(|| "/var/tmp".into())).unwrap();
    let paths = PoolPaths::in_dir(dir.path());
    let options = CreateOptions {
        paths: paths.clone(),
        data_size: Some(ByteCount(256 << 20)),
        metadata_size: Some(ByteCount(4 << 20)),
        block_size: BlockSize::from_bytes(BLOCK).unwrap(),
    };
    create(&options).unwrap();
    let exporter = DirectExporter::new();
    let open = || when_free(|| open_embedded(&paths, Arc::clone(&exporter) as _, &EmbeddedOptions::default()));
    let pool = open();
    pool.create_thin(device(1)).unwrap();
    pool.activate(device(1), ByteCount(64 << 20), Access::ReadWrite).unwrap();
    let volume = exporter.open(device(1));
    volume.write_at(&vec![5; 8 << 20], 0).unwrap();
    drop(volume);
    pool.close().unwrap();
    drop(pool);
    // As a process that died between freeing blocks and emptying them leaves the file.
    let allocated = || std::fs::metadata(&paths.data).unwrap().blocks() * 512;
    let file = std::fs::OpenOptions::new().write(true).open(&paths.data).unwrap();
    (64..128_u64).for_each(|mib| file.write_all_at(&vec![9; 1 << 20], mib << 20).unwrap());
    file.sync_all().unwrap();
    drop(file);
    assert!(allocated() >= 72 << 20);
    let pool = open();
    eventually("the pool trims itself after an unclean end", || allocated() <= 9 << 20);
    let file = std::fs::OpenOptions::new().write(true).open(&paths.data).unwrap();
    file.write_all_at(&vec![9; 8 << 20], 100 << 20).unwrap();
    drop(file);
    assert!(pool.status().unwrap().room.unpunched.0 >= 8 << 20);
    assert!(pool.trim().unwrap().0 >= 8 << 20);
    assert!(allocated() <= 9 << 20);
    assert_eq!(pool.trim().unwrap(), ByteCount(0));
    pool.activate(device(1), ByteCount(64 << 20), Access::ReadWrite).unwrap();
    let volume = exporter.open(device(1));
    let mut bytes = vec![0; 8 << 20];
    volume.read_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 5));
    drop(volume);
    pool.close().unwrap();
}
