//! Damaged and hostile metadata: the audit finds it, and nothing panics, hangs or goes on writing.

use std::sync::Arc;

use crate::block_kind::Kind;
use crate::facts::golden;
use crate::surgeon::{kind_of, live_blocks, operate, u64_at};
use proptest::prelude::{ProptestConfig, any, prop, proptest};
use thinsnap_pool::{
    BlockDevice, DataRun, DeviceId, DumpSource, MemoryDevice, Metadata, OpenMode, Severity, VirtualBlock, audit, dump,
};

const WHOLE: std::ops::Range<VirtualBlock> = VirtualBlock(0)..VirtualBlock(u64::MAX);

/// Everything that can be asked of metadata and done to it; errors are fine.
fn exercise(image: &[u8]) {
    let device = Arc::new(MemoryDevice::from_bytes(image.to_vec()));
    let below = Arc::clone(&device) as Arc<dyn BlockDevice>;
    let _ = dump(&*device, DumpSource::Live, &mut std::io::sink());
    let _ = dump(&*device, DumpSource::Held, &mut std::io::sink());
    let _ = Metadata::open(Arc::clone(&below), OpenMode::ReadOnly);
    let Ok(mut metadata) = Metadata::open(below, OpenMode::ReadWrite) else { return };
    let ids: Vec<DeviceId> = metadata.devices().unwrap().into_iter().map(|device| device.0).collect();
    for (nr, &id) in ids.iter().enumerate().take(6) {
        let _ = metadata.lookup(id, VirtualBlock(3));
        let _ = metadata.lookup_range(id, WHOLE);
        let _ = metadata.usage(id);
        let _ = metadata.delta(id, ids[(nr + 1) % ids.len()]);
        let _ = metadata.create_snap(DeviceId::new(1000 + u32::try_from(nr).unwrap()).unwrap(), id);
        if let Ok(run) = metadata.reserve_data(3) {
            let _ = metadata.insert(id, VirtualBlock(2), DataRun { ..run });
        }
        let _ = metadata.remove_range(id, VirtualBlock(1)..VirtualBlock(90));
        let _ = metadata.delete_step(id, 1);
    }
    if let Ok(Some(frozen)) = metadata.freeze() {
        frozen.write(&*device).unwrap();
        let freed = metadata.committed(frozen);
        metadata.release_data(&freed);
    }
}

fn worst(image: &[u8]) -> Option<Severity> {
    audit(&MemoryDevice::from_bytes(image.to_vec()), &|_| ()).unwrap().worst()
}

#[test]
fn a_flipped_bit_in_live_metadata_is_found() {
    let pool = golden("03");
    assert_eq!(live_blocks(&pool.image), [0, 2, 5, 35, 36, 37, 38, 39, 40, 41, 42]);
    let device = Arc::new(MemoryDevice::from_bytes(pool.image.clone()));
    let found = || audit(&*device, &|_| ()).unwrap().worst();
    // Every bit of header and first fields, and every 61st of the rest; a CRC finds each of the others alike.
    let bits: Vec<usize> = (0..48 * 8).chain((48 * 8..4096 * 8).step_by(61)).collect();
    for block in live_blocks(&pool.image) {
        for &bit in &bits {
            let at = block * 4096 + bit / 8;
            let byte = pool.image[at];
            device.write_at(&[byte ^ 1 << (bit % 8)], at as u64).unwrap();
            assert_eq!(found(), Some(Severity::Damage), "bit {bit} of block {block}");
            if bit % 16 == 0 {
                exercise(&device.to_bytes());
            }
            device.write_at(&[byte], at as u64).unwrap();
        }
    }
    assert_eq!(found(), None);
}

/// Field, block, offset, new value, what the audit must say at least.
type Mutation = (&'static str, Kind, usize, usize, &'static [u8], Severity);

const NONE: [u8; 8] = [0; 8];

/// Blocks are those of the format document's worked example: 37 top leaf, 38 and 39 mapping leaves, 40 details,
/// 41 data index, 35 data bitmap, 42 metadata index, 36 metadata bitmap, 2 and 5 overflow leaves.
#[rustfmt::skip]
const MUTATIONS: &[Mutation] = &[
    ("needs_check", Kind::Superblock, 0, 4, &[1], Severity::Note),
    ("unknown flag", Kind::Superblock, 0, 4, &[4], Severity::Note),
    ("blocknr of the superblock", Kind::Superblock, 0, 8, &[1], Severity::Damage),
    ("magic", Kind::Superblock, 0, 32, &[0xbb], Severity::Damage),
    ("version", Kind::Superblock, 0, 40, &[99], Severity::Note),
    ("clock behind mappings", Kind::Superblock, 0, 44, &[0], Severity::Damage),
    ("clock beyond 24 bits", Kind::Superblock, 0, 44, &[0, 0, 0, 1], Severity::Damage),
    ("held_root at a node", Kind::Superblock, 0, 56, &[38], Severity::Damage),
    ("held_root at a free block", Kind::Superblock, 0, 56, &[99], Severity::Damage),
    ("held_root beyond the device", Kind::Superblock, 0, 56, &[0, 0, 1], Severity::Damage),
    ("data nr_blocks huge", Kind::Superblock, 0, 64, &[0, 0, 0, 0, 1], Severity::Damage),
    ("data nr_blocks beyond its bitmap", Kind::Superblock, 0, 64, &[0, 0x80], Severity::Damage),
    ("data nr_blocks too small", Kind::Superblock, 0, 64, &[5, 0], Severity::Damage),
    ("data nr_blocks zero", Kind::Superblock, 0, 64, &NONE, Severity::Damage),
    ("data nr_allocated", Kind::Superblock, 0, 72, &[14], Severity::Note),
    ("data bitmap_root at a mapping leaf", Kind::Superblock, 0, 80, &[38], Severity::Damage),
    ("data bitmap_root at the index block", Kind::Superblock, 0, 80, &[42], Severity::Damage),
    ("data ref_count_root at the other map's", Kind::Superblock, 0, 88, &[2], Severity::Damage),
    ("bytes behind a map root", Kind::Superblock, 0, 100, &[1], Severity::Note),
    ("metadata nr_blocks beyond the device", Kind::Superblock, 0, 192, &[1, 4], Severity::Damage),
    ("metadata nr_blocks too small", Kind::Superblock, 0, 192, &[40, 0], Severity::Damage),
    ("metadata nr_blocks zero", Kind::Superblock, 0, 192, &NONE, Severity::Damage),
    ("metadata nr_allocated", Kind::Superblock, 0, 200, &[10], Severity::Note),
    ("metadata bitmap_root at a bitmap", Kind::Superblock, 0, 208, &[36], Severity::Damage),
    ("metadata ref_count_root zero", Kind::Superblock, 0, 216, &[0], Severity::Damage),
    ("data_mapping_root at a mapping leaf", Kind::Superblock, 0, 320, &[38], Severity::Damage),
    ("device_details_root at the top leaf", Kind::Superblock, 0, 328, &[37], Severity::Damage),
    ("data_block_size", Kind::Superblock, 0, 336, &[100], Severity::Damage),
    ("metadata_block_size", Kind::Superblock, 0, 340, &[4], Severity::Note),
    ("metadata_nr_blocks", Kind::Superblock, 0, 344, &[0, 0, 1], Severity::Note),
    ("compat_flags", Kind::Superblock, 0, 352, &[1], Severity::Note),
    ("compat_ro_flags", Kind::Superblock, 0, 356, &[1], Severity::Damage),
    ("incompat_flags", Kind::Superblock, 0, 360, &[1], Severity::Damage),
    ("bytes behind the superblock", Kind::Superblock, 0, 4000, &[1], Severity::Note),
    ("flags of a node", Kind::Node, 37, 4, &[6], Severity::Damage),
    ("a leaf called internal", Kind::Node, 37, 4, &[1], Severity::Damage),
    ("blocknr of a node", Kind::Node, 37, 8, &[38], Severity::Damage),
    ("nr_entries one less", Kind::Node, 37, 16, &[1], Severity::Damage),
    ("nr_entries one more", Kind::Node, 38, 16, &[10], Severity::Damage),
    ("nr_entries above max_entries", Kind::Node, 38, 16, &[0xfd], Severity::Damage),
    ("max_entries 250", Kind::Node, 38, 20, &[250], Severity::Damage),
    ("max_entries 249", Kind::Node, 2, 20, &[0xf9, 0], Severity::Note),
    ("value_size", Kind::Node, 38, 24, &[4], Severity::Damage),
    ("a device with 25 bits", Kind::Node, 37, 40, &[0, 0, 0, 1], Severity::Damage),
    ("a device without details", Kind::Node, 37, 40, &[5], Severity::Damage),
    ("two devices with one root", Kind::Node, 37, 2048, &[39], Severity::Damage),
    ("a device's root at its details", Kind::Node, 37, 2048, &[40], Severity::Damage),
    ("a device's root at the top leaf", Kind::Node, 37, 2048, &[37], Severity::Damage),
    ("keys out of order", Kind::Node, 38, 32, &[1], Severity::Damage),
    ("a data block beyond the pool", Kind::Node, 38, 2048 + 3, &[0, 8], Severity::Damage),
    ("two blocks on one data block", Kind::Node, 38, 2048 + 8 + 3, &[10], Severity::Damage),
    ("a mapping of the future", Kind::Node, 38, 2048, &[2], Severity::Damage),
    ("a shared block taken for one's own", Kind::Node, 38, 2048, &[1], Severity::Damage),
    ("mapped_blocks", Kind::Node, 40, 1040, &[8], Severity::Damage),
    ("creation_time after snapshotted_time", Kind::Node, 40, 1040 + 16, &[2], Severity::Damage),
    ("snapshotted_time in the future", Kind::Node, 40, 1040 + 20, &[2], Severity::Damage),
    ("snapshotted_time too early", Kind::Node, 40, 1040 + 20, &[0], Severity::Damage),
    ("key of a details entry", Kind::Node, 40, 40, &[7], Severity::Damage),
    ("key of a data index entry", Kind::Node, 41, 32, &[1], Severity::Damage),
    ("a data bitmap elsewhere", Kind::Node, 41, 1376, &[36], Severity::Damage),
    ("nr_free zero", Kind::Node, 41, 1376 + 8, &NONE, Severity::Damage),
    ("nr_free wrong", Kind::Node, 41, 1376 + 8, &[1], Severity::Note),
    ("nr_free beyond a bitmap", Kind::Node, 41, 1376 + 8, &[0xff, 0xff], Severity::Damage),
    ("none_free_before too low", Kind::Node, 41, 1376 + 12, &[0], Severity::Note),
    ("none_free_before behind everything", Kind::Node, 41, 1376 + 12, &[0xc0, 0x3f], Severity::Damage),
    ("a data count too low", Kind::Bitmap, 35, 16, &[0xaa], Severity::Damage),
    ("a data count of a block in use zero", Kind::Bitmap, 35, 16, &[0xa8], Severity::Damage),
    ("a data count too high", Kind::Bitmap, 35, 17, &[0x95], Severity::Leak),
    ("overflow without an entry", Kind::Bitmap, 35, 16, &[0xab], Severity::Damage),
    ("a leaked data block", Kind::Bitmap, 35, 22, &[2], Severity::Leak),
    ("a count beyond the last data block", Kind::Bitmap, 35, 16 + 512, &[2], Severity::Leak),
    ("blocknr of a bitmap", Kind::Bitmap, 35, 8, &[36], Severity::Damage),
    ("a metadata bitmap elsewhere", Kind::Index, 42, 16, &[35], Severity::Damage),
    ("a second index entry", Kind::Index, 42, 32, &[1], Severity::Note),
    ("blocknr of the index", Kind::Index, 42, 8, &[41], Severity::Damage),
    ("a metadata block in use with count zero", Kind::Bitmap, 36, 16 + 9, &[0xa2], Severity::Damage),
    ("a leaked metadata block", Kind::Bitmap, 36, 16 + 30, &[2], Severity::Leak),
    ("a stale overflow entry", Kind::Node, 5, 16, &[1], Severity::Damage),
];

#[test]
fn a_single_wrong_field_is_found() {
    let pool = golden("03");
    for &(name, kind, block, at, bytes, least) in MUTATIONS {
        let mut image = pool.image.clone();
        assert_eq!(kind_of(&image, block), Some(kind), "{name}");
        operate(&mut image, kind, block, at, bytes);
        assert_ne!(image, pool.image, "{name}");
        let worst = worst(&image);
        assert!(worst >= Some(least), "{name}: {worst:?}");
        exercise(&image);
    }
}

#[test]
fn a_wrong_overflow_entry_is_found() {
    let pool = golden("06");
    let block = |at: usize| usize::try_from(u64_at(&pool.image, 0, at)).unwrap();
    for (root, name) in [(64 + 24, "data"), (192 + 24, "metadata")] {
        for (at, value) in [(16, 0u8), (2720, 2), (2720, 77), (32, 250)] {
            let mut image = pool.image.clone();
            operate(&mut image, Kind::Node, block(root), at, &[value]);
            let worst = worst(&image);
            assert!(worst >= Some(Severity::Leak), "{name}: {value} at {at} gives {worst:?}");
            exercise(&image);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn hostile_metadata_never_brings_anything_down(
        pool in prop::sample::select(vec!["03", "04", "06", "08"]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0usize..300, any::<u8>(), any::<bool>()), 1..4),
    ) {
        let mut image = golden(pool).image;
        let live = live_blocks(&image);
        for (block, at, value, in_values) in changes {
            let block = *block.get(&live);
            // Headers and keys stand in front, values of most nodes at 2048.
            let at = if in_values { 2048 + at } else { at.max(4) };
            if let Some(kind) = kind_of(&image, block) {
                operate(&mut image, kind, block, at, &[value]);
            }
        }
        worst(&image);
        exercise(&image);
    }
}
