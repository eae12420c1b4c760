//! Repair: every bit flipped, every block lost in every way; what is said to be whole is what it was, byte for byte.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::block_kind::Kind;
use crate::facts::{all, golden};
use crate::judges::{assert_sound, assert_thin_check_accepts};
use crate::restore::dumped;
use crate::surgeon::{kind_of, live_blocks, operate};
use thinsnap_pool::{
    BlockDevice, BlockRange, BlockSize, DataRun, DeviceId, ErrorKind, FormatOptions, Hints, MemoryDevice, Metadata,
    OpenMode, RepairReport, Severity, VirtualBlock, audit, clear_needs_check, mend,
};

const BLOCK: usize = 4096;

/// Device → virtual block → data block and time.
type Content = BTreeMap<u32, BTreeMap<u64, (u64, u32)>>;

fn content(image: &[u8]) -> Content {
    let device = Arc::new(MemoryDevice::from_bytes(image.to_vec()));
    let metadata = Metadata::open(device, OpenMode::ReadOnly).unwrap();
    let devices = metadata.devices().unwrap();
    devices
        .into_iter()
        .map(|(id, _)| {
            let mut blocks = BTreeMap::new();
            for run in metadata.lookup_range(id, VirtualBlock(0)..VirtualBlock(u64::MAX)).unwrap() {
                for step in 0..run.len {
                    blocks.insert(run.start.0 + step, (run.mapping.block.0 + step, run.mapping.time));
                }
            }
            (id.get(), blocks)
        })
        .collect()
}

fn mended(image: &[u8], hints: &Hints<'_>) -> thinsnap_pool::Result<(Vec<u8>, RepairReport)> {
    let target = MemoryDevice::from_bytes(vec![0x5a; image.len()]);
    let report = mend(&MemoryDevice::from_bytes(image.to_vec()), &target, hints)?;
    Ok((target.to_bytes(), report))
}

fn is_in(ranges: &[BlockRange], key: u64) -> bool {
    ranges.iter().any(|range| key >= range.start && range.end.is_none_or(|end| key < end))
}

/// Holds a repair to its word: everything that the report does not name is as it was.
fn assert_honest(before: &Content, after: &Content, report: &RepairReport, story: &str) {
    for (id, blocks) in before {
        let outcome = report.devices.iter().find(|outcome| outcome.id == u64::from(*id));
        let Some(now) = after.get(id) else {
            assert!(is_in(&report.lost_ids, u64::from(*id)), "{story}: device {id} has vanished");
            continue;
        };
        let Some(outcome) = outcome else {
            assert!(blocks == now, "{story}: device {id} is said to be whole");
            continue;
        };
        if outcome.is_whole() && !outcome.record_rebuilt {
            assert!(blocks == now, "{story}: device {id} is said to be whole");
        }
        if outcome.gone {
            continue;
        }
        let named = |key: u64| is_in(&outcome.lost, key) || is_in(&outcome.doubtful, key);
        for (key, mapping) in blocks.iter().filter(|(key, _)| !named(**key)) {
            // A device without a record that lost nothing it knows of may still have lost what only the record told.
            assert_eq!(now.get(key), Some(mapping), "{story}: device {id} block {key}: {outcome:?}");
        }
        for (key, mapping) in now.iter().filter(|(key, _)| !named(**key)) {
            assert_eq!(blocks.get(key), Some(mapping), "{story}: device {id} block {key} from nowhere");
        }
    }
}

/// A pool of some devices with trees of two levels, shared and not, and every content that its blocks ever had.
struct Aged {
    image: Vec<u8>,
    states: Vec<Content>,
    versions: BTreeMap<usize, Vec<Vec<u8>>>,
}

fn aged() -> Aged {
    let device = Arc::new(MemoryDevice::new(700 * BLOCK as u64));
    let options = FormatOptions {
        block_size: BlockSize::DEFAULT,
        data_blocks: 40_000,
        metadata_blocks: 700,
        identity: *b"an aged pool....",
    };
    Metadata::format(&*device, &options).unwrap();
    let mut metadata = Metadata::open(Arc::clone(&device) as Arc<dyn BlockDevice>, OpenMode::ReadWrite).unwrap();
    let mut aged = Aged { image: Vec::new(), states: Vec::new(), versions: BTreeMap::new() };
    let id = |number| DeviceId::new(number).unwrap();
    let insert = |metadata: &mut Metadata, device, start, len| {
        let mut at = start;
        while at < start + len {
            let run = metadata.reserve_data(start + len - at).unwrap();
            metadata.insert(id(device), VirtualBlock(at), DataRun { ..run }).unwrap();
            at += run.len;
        }
    };
    for round in 0..24u64 {
        match round {
            0 => (1..=3).for_each(|number| metadata.create_thin(id(number)).unwrap()),
            3 => metadata.create_snap(id(4), id(1)).unwrap(),
            5 => (5..=8).for_each(|number| metadata.create_snap(id(number), id(4)).unwrap()),
            7 => metadata.create_thin(id(9)).unwrap(),
            _ => {}
        }
        let writer = if round % 5 == 2 && round > 5 { 5 } else { 1 + u32::try_from(round % 2).unwrap() };
        insert(&mut metadata, writer, round * 97 % 700, 60 + round * 17);
        (0..30).for_each(|n| insert(&mut metadata, writer, 2000 + (round * 31 + n * 7) % 900, 1));
        if round % 6 == 5 {
            metadata.remove_range(id(2), VirtualBlock(100)..VirtualBlock(140)).unwrap();
        }
        let frozen = metadata.freeze().unwrap().unwrap();
        frozen.write(&*device).unwrap();
        let freed = metadata.committed(frozen);
        metadata.release_data(&freed);
        aged.image = device.to_bytes();
        aged.states.push(content(&aged.image));
        for (block, bytes) in aged.image.chunks(BLOCK).enumerate() {
            let versions = aged.versions.entry(block).or_default();
            if kind_of(&aged.image, block).is_some() && versions.last().is_none_or(|last| last != bytes) {
                versions.push(bytes.to_vec());
            }
        }
    }
    assert_sound(&aged.image, "an aged pool");
    aged
}

/// Runs `work` for every number below `count` on all processors.
fn in_parallel(count: usize, work: impl Fn(&mut dyn FnMut() -> Option<usize>) + Sync) {
    let next = AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                work(&mut || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|number| *number < count));
            });
        }
    });
}

#[test]
fn every_flipped_bit_of_live_metadata_is_found_and_taken_back() {
    let pool = golden("03");
    // With THINSNAP_EVERY_BIT all bits are flipped and taken back; by default all of the headers and first entries
    // and every seventh of the rest, of which every 31st is also repaired.
    let all_bits = std::env::var_os("THINSNAP_EVERY_BIT").is_some();
    let bits: Vec<usize> = (0..BLOCK * 8).filter(|bit| all_bits || *bit < 64 * 8 || bit % 7 == 0).collect();
    let live = live_blocks(&pool.image);
    let before = dumped(&pool.image);
    let judged = AtomicUsize::new(0);
    in_parallel(live.len() * bits.len(), |next| {
        let source = Arc::new(MemoryDevice::from_bytes(pool.image.clone()));
        let target = MemoryDevice::new(pool.image.len() as u64);
        while let Some(number) = next() {
            let (block, bit) = (live[number / bits.len()], bits[number % bits.len()]);
            let at = block * BLOCK + bit / 8;
            let byte = pool.image[at];
            source.write_at(&[byte ^ 1 << (bit % 8)], at as u64).unwrap();
            let story = format!("bit {bit} of block {block}");
            assert_eq!(audit(&*source, &|_| ()).unwrap().worst(), Some(Severity::Damage), "{story}");
            judged.fetch_add(1, Ordering::Relaxed);
            if !all_bits && bit > 64 * 8 && bit % 31 != 0 {
                source.write_at(&[byte], at as u64).unwrap();
                continue;
            }
            // Opening may succeed where the node is not read; looking at everything may not.
            if let Ok(metadata) = Metadata::open(Arc::clone(&source) as Arc<dyn BlockDevice>, OpenMode::ReadOnly) {
                let ids = metadata.devices().unwrap();
                let found =
                    ids.iter().any(|(id, _)| metadata.lookup_range(*id, VirtualBlock(0)..VirtualBlock(999)).is_err());
                assert!(found, "{story}: opened, and nothing was amiss");
            }
            let report = mend(&*source, &target, &Hints::default()).unwrap_or_else(|e| panic!("{story}: {e}"));
            assert!(
                report.is_whole() && report.corrected.len() <= 1 && report.unreadable.is_empty(),
                "{story}: {report:?}"
            );
            if number % 97 == 0 {
                assert_eq!(dumped(&target.to_bytes()), before, "{story}");
            }
            if number % 5_003 == 0 {
                assert_thin_check_accepts(&target.to_bytes(), &story);
            }
            source.write_at(&[byte], at as u64).unwrap();
        }
    });
    println!("{} flipped bits in {} live blocks", judged.into_inner(), live.len());
}

#[test]
fn every_lost_block_is_made_up_for_or_told() {
    let aged = aged();
    let before = content(&aged.image);
    let live = live_blocks(&aged.image);
    let mut random = 88_172_645_463_325_252u64;
    let noise: Vec<u8> = (0..BLOCK)
        .map(|_| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random.to_le_bytes()[3]
        })
        .collect();
    let (mut whole, mut told, mut older) = (0, 0, 0);
    for &block in &live {
        let at = block * BLOCK;
        let mut losses: Vec<(String, Vec<u8>)> = Vec::new();
        for (name, bytes) in [("zeroed", vec![0; BLOCK]), ("noise", noise.clone())] {
            let mut image = aged.image.clone();
            image[at..at + BLOCK].copy_from_slice(&bytes);
            losses.push((name.to_owned(), image));
        }
        for other in live.iter().filter(|other| **other != block && **other != 0).step_by(5) {
            // As a misdirected write leaves it, and as if it belonged there.
            for sealed in [false, true] {
                let mut image = aged.image.clone();
                image.copy_within(other * BLOCK..(other + 1) * BLOCK, at);
                if sealed {
                    let kind: Kind = kind_of(&aged.image, *other).unwrap();
                    operate(&mut image, kind, block, 8, &(block as u64).to_le_bytes());
                }
                losses.push((format!("replaced by {other}, sealed: {sealed}"), image));
            }
        }
        for (nr, version) in aged.versions[&block].iter().enumerate() {
            if version[..] != aged.image[at..at + BLOCK] {
                let mut image = aged.image.clone();
                image[at..at + BLOCK].copy_from_slice(version);
                losses.push((format!("version {nr} of itself"), image));
            }
        }
        // Empty nodes of two trees may be the same.
        losses.retain(|(_, image)| *image != aged.image);
        for (name, image) in losses {
            let story = format!("block {block} {name}");
            let stale_start = block == 0 && name.contains("version");
            let found = audit(&MemoryDevice::from_bytes(image.clone()), &|_| ());
            // A block 0 of zeroes: no pool at all.
            let sees = found.map_or(true, |found| found.worst() >= Some(Severity::Leak) || found.incomplete);
            // An older superblock whose state is whole is what the disk looked like then.
            if stale_start && !sees {
                assert!(aged.states.contains(&content(&image)), "{story}");
                older += 1;
                continue;
            }
            assert!(sees, "{story}: not found");
            let hints =
                Hints { block_size: Some(BlockSize::DEFAULT), data_size: Some(40_000 << 16), ..Hints::default() };
            let (image, report) = match mended(&image, &hints) {
                Ok(done) => done,
                Err(error) => panic!("{story}: {error}"),
            };
            if stale_start {
                older += 1;
                continue;
            }
            let after = content(&image);
            assert_honest(&before, &after, &report, &story);
            if report.is_whole() {
                whole += 1
            } else {
                told += 1
            }
            if (whole + told) % 40 == 0 {
                assert_thin_check_accepts(&image, &story);
            }
        }
    }
    println!("{} live blocks: {whole} losses made up for, {told} told, {older} older superblocks", live.len());
    assert!(whole > 0 && told > 0);
}

#[test]
fn the_superblock_is_found_again_with_the_newest_state() {
    let aged = aged();
    let before = dumped(&aged.image);
    let mut image = aged.image.clone();
    image[..BLOCK].fill(0xff);
    let error = mended(&image, &Hints::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "without a backup somebody must say the block size: {error}");
    let hints = Hints { block_size: Some(BlockSize::DEFAULT), data_size: Some(40_000 << 16), ..Hints::default() };
    let (image, report) = mended(&image, &hints).unwrap();
    assert_eq!(dumped(&image), before);
    assert!(report.is_whole(), "{report:?}");
    assert!(!report.candidates.is_empty(), "the states before it are on the disk too");
    // A backup tells what the state itself does not: the identity, the size.
    let mut image = aged.image.clone();
    image[..BLOCK].fill(0xff);
    let backup = MemoryDevice::from_bytes(aged.image.clone());
    let (image, _) = mended(&image, &Hints { backup: Some(&backup), ..Hints::default() }).unwrap();
    assert_eq!((dumped(&image), &image[16..32]), (before, &b"an aged pool...."[..]));
}

#[test]
fn pools_of_others_come_out_as_they_went_in() {
    for golden in all() {
        let (image, report) = mended(&golden.image, &Hints::default()).unwrap();
        assert!(report.is_whole() && report.devices.is_empty(), "{}: {report:?}", golden.name);
        let same = |image: &[u8]| dumped(image).replace(" flags=\"1\"", " flags=\"0\"");
        assert_eq!(same(&image), same(&golden.image), "{}", golden.name);
        assert_thin_check_accepts(&image, &golden.name);
        assert_eq!(report.needs_check_cleared, golden.name == "11-needs-check");
        assert_eq!(report.snapshot_released, golden.name == "08-held-metadata-snapshot");
    }
}

#[test]
fn needs_check_is_cleared_only_where_the_audit_is_clean() {
    let pool = MemoryDevice::from_bytes(golden("11").image);
    assert!(clear_needs_check(&pool).unwrap());
    assert!(!clear_needs_check(&pool).unwrap(), "it is gone");
    assert_thin_check_accepts(&pool.to_bytes(), "cleared");
    let mut damaged = golden("11").image;
    let live = live_blocks(&damaged);
    damaged[live[3] * BLOCK + 100] ^= 1;
    let pool = MemoryDevice::from_bytes(damaged.clone());
    assert_eq!(clear_needs_check(&pool).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(pool.to_bytes(), damaged, "nothing was written");
}
