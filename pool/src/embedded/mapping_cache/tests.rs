//! What the slab of mappings knows is the truth or nothing, within its bytes, also in the middle of all changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{HEAD_WORDS, MappingCache, SEGMENT_BYTES, SEGMENT_WORDS, SIZES, State, record_place, split};
use crate::embedded::chunk::{CHUNK_LEN, Entry, Run, lay};
use crate::embedded::mapping_index::MappingIndex;
use crate::embedded::shape::Shape;
use crate::format::Mapping;
use crate::units::{ByteCount, DataBlock};
use proptest::prelude::{prop, proptest};

fn at(block: u64, time: u32) -> Mapping {
    Mapping { block: DataBlock(block), time }
}

fn read(cache: &MappingCache, index: &MappingIndex, chunk: u64, block: u16) -> Entry {
    index.find(chunk).map_or(Entry::Unknown, |slot| cache.read(slot, block))
}

/// Records in use, by what the books say and by what the slots say.
fn records(state: &State) -> (usize, usize) {
    let slots = state.volumes.iter().flatten().flat_map(|index| index.slots());
    let named = slots.filter(|slot| record_place(slot.load(Ordering::Relaxed)).is_some()).count();
    (state.books.iter().map(|book| book.taken).sum(), named)
}

/// `count` runs that do not join.
fn scattered(count: u16) -> Vec<Run> {
    (0..count).map(|n| Run { start: n, len: 1, mapping: at(u64::from(n) * 2, 1) }).collect()
}

#[test]
fn a_run_costs_at_most_16_bytes_with_its_record_and_slot() {
    let taken = |shape: Shape| 8 * (1 + SIZES.into_iter().find(|&size| size >= HEAD_WORDS + shape.words()).unwrap());
    for runs in 2..usize::from(CHUNK_LEN) {
        let dense = Shape::of(&scattered(u16::try_from(runs).unwrap())) == Shape::Dense;
        let shapes = if dense { [Shape::Dense; 2] } else { [Shape::Short(runs), Shape::Long(runs)] };
        for shape in shapes.into_iter().filter(|shape| *shape != Shape::Long(2)) {
            assert!(taken(shape) <= 16 * runs, "{shape:?} takes {} bytes", taken(shape));
        }
    }
    assert_eq!((taken(Shape::Long(1)), taken(Shape::Long(2))), (32, 40), "as the docs say");
    for size in SIZES {
        let unused = SEGMENT_WORDS % size;
        assert!(unused * 100 <= SEGMENT_WORDS * 9, "records of {size} words leave {unused} of a segment");
    }
}

#[test]
fn a_full_slab_stays_within_its_bytes_and_each_chunk_is_known_until_room_is_wanted() {
    let most = ByteCount(40 * SEGMENT_BYTES + 17);
    let cache = MappingCache::new(most);
    let index = Arc::new(MappingIndex::new());
    let volume = cache.enroll(&index);
    // All sizes in turn, nearly twice as many segments as there are sizes.
    for chunk in 0..2000 {
        let runs = scattered(u16::try_from(chunk * 37 % 512 + 1).unwrap());
        cache.fill(volume, chunk, &runs);
        assert_eq!(read(&cache, &index, chunk, 0), Entry::Mapped(at(0, 1)), "what was filled last is there");
        assert!(cache.held() <= most);
        let (taken, named) = records(&cache.lock());
        assert_eq!(taken, named);
    }
    let known = (0..2000).filter(|&chunk| read(&cache, &index, chunk, 0) != Entry::Unknown).count();
    assert!((300..2000).contains(&known), "{known} of 2000 chunks are known");
}

#[test]
fn what_is_read_again_and_again_outlives_what_is_not() {
    let cache = MappingCache::new(ByteCount(16 * SEGMENT_BYTES));
    let index = Arc::new(MappingIndex::new());
    let volume = cache.enroll(&index);
    cache.fill(volume, 0, &scattered(512));
    for chunk in 1..5000 {
        cache.fill(volume, chunk, &scattered(400));
        assert_eq!(read(&cache, &index, 0, 7), Entry::Mapped(at(14, 1)), "after {chunk} others");
    }
}

#[test]
fn one_run_over_a_chunk_and_a_chunk_of_holes_take_no_record() {
    let cache = MappingCache::new(ByteCount(SEGMENT_BYTES));
    let index = Arc::new(MappingIndex::new());
    let volume = cache.enroll(&index);
    // A terabyte of 64 KiB blocks, one behind the other.
    for chunk in 0..32_768 {
        cache.fill(volume, chunk, &[Run { start: 0, len: CHUNK_LEN, mapping: at(chunk * 512, 1) }]);
        cache.fill(volume, 40_000 + chunk, &[]);
    }
    assert_eq!(read(&cache, &index, 32_767, 511), Entry::Mapped(at(32_767 * 512 + 511, 1)));
    assert_eq!(read(&cache, &index, 40_000, 5), Entry::Hole);
    assert_eq!((cache.held(), records(&cache.lock())), (ByteCount(0), (0, 0)));
    // A data block whose number leaves no room beside the tag.
    let far = at(1 << 38, 1);
    cache.fill(volume, 3, &[Run { start: 0, len: CHUNK_LEN, mapping: far }]);
    assert_eq!(read(&cache, &index, 3, 0), Entry::Mapped(far));
    assert_eq!(records(&cache.lock()), (1, 1));
}

#[test]
fn a_volume_that_goes_leaves_its_room_to_the_next() {
    let cache = MappingCache::new(ByteCount(4 * SEGMENT_BYTES));
    for round in 0..50 {
        let index = Arc::new(MappingIndex::new());
        let volume = cache.enroll(&index);
        assert_eq!(volume, 0, "round {round}");
        for chunk in 0..20 {
            cache.fill(volume, chunk, &scattered(u16::try_from(1 + chunk * 20).unwrap()));
        }
        cache.retire(volume);
        assert_eq!(records(&cache.lock()).0, 0);
        assert!(index.slots().all(|slot| slot.load(Ordering::Relaxed) == 0));
    }
}

proptest! {
    #[test]
    fn a_tiny_cache_knows_the_truth_or_nothing(
        ops in prop::collection::vec((0u32..3, 0u64..40, 0u16..512, 1u16..512, 0u64..500, 0u8..12), 1..300),
        segments in 1u64..4,
    ) {
        let cache = MappingCache::new(ByteCount(segments * SEGMENT_BYTES));
        let indexes: Vec<_> = (0..3).map(|_| Arc::new(MappingIndex::new())).collect();
        let volumes: Vec<_> = indexes.iter().map(|index| cache.enroll(index)).collect();
        let mut truth: BTreeMap<(u32, u64), Vec<Run>> = BTreeMap::new();
        for (volume, chunk, start, len, block, kind) in ops {
            let number = volumes[volume as usize];
            let runs = truth.entry((volume, chunk)).or_default();
            let end = (start + len).min(CHUNK_LEN);
            let mapping = (kind > 3).then_some(at(block, u32::from(kind)));
            match kind {
                0 => cache.forget(number, chunk),
                1 => cache.fill(number, chunk, runs),
                2 => {
                    *runs = scattered(len);
                    cache.fill(number, chunk, runs);
                }
                _ => {
                    lay(runs, start, end, mapping);
                    cache.lay(number, chunk, start..end, mapping);
                }
            }
            for (&(volume, chunk), runs) in &truth {
                for block in (0..CHUNK_LEN).step_by(37) {
                    let found = read(&cache, &indexes[volume as usize], chunk, block);
                    let run = runs.iter().find(|run| (run.start..run.end()).contains(&block));
                    let expected = run.map_or(Entry::Hole, |run| Entry::Mapped(run.mapping_of(block)));
                    assert!(found == Entry::Unknown || found == expected, "{found:?}, the truth is {expected:?}");
                }
            }
            let (taken, named) = records(&cache.lock());
            assert_eq!(taken, named);
            assert!(cache.held().0 <= segments * SEGMENT_BYTES);
        }
    }
}

/// Readers of blocks that stay where they are, while everything around them changes its shape, moves and is thrown out.
#[test]
fn a_reader_in_the_middle_of_all_changes_reads_the_truth_or_nothing() {
    let cache = Arc::new(MappingCache::new(ByteCount(2 * SEGMENT_BYTES)));
    let index = Arc::new(MappingIndex::new());
    let volume = cache.enroll(&index);
    let done = Arc::new(AtomicBool::new(false));
    const CHUNKS: u64 = 24;
    // Block 100 of each chunk is never changed.
    let fixed = |chunk: u64| at(chunk * 1_000_003 + 1, 7);
    let readers: Vec<_> = (0..2)
        .map(|reader| {
            let (cache, index, done) = (Arc::clone(&cache), Arc::clone(&index), Arc::clone(&done));
            std::thread::spawn(move || {
                let (mut known, mut chunk) = (0_u64, reader);
                while !done.load(Ordering::Relaxed) {
                    chunk = (chunk + 5) % CHUNKS;
                    match read(&cache, &index, chunk, 100) {
                        Entry::Unknown => {}
                        found => {
                            known += 1;
                            assert_eq!(found, Entry::Mapped(fixed(chunk)), "chunk {chunk}");
                        }
                    }
                }
                known
            })
        })
        .collect();
    let mut seed = 1_u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for _ in 0..60_000 {
        let chunk = random(CHUNKS);
        if read(&cache, &index, chunk, 100) == Entry::Unknown {
            cache.fill(volume, chunk, &[Run { start: 100, len: 1, mapping: fixed(chunk) }]);
            continue;
        }
        let start = u16::try_from(random(512)).unwrap();
        let end = (start + 1 + u16::try_from(random(40)).unwrap()).min(CHUNK_LEN);
        let range = if start > 100 || end <= 100 { start..end } else { 101..CHUNK_LEN };
        let mapping = (random(4) > 0).then(|| at(random(1 << 30), 9));
        cache.lay(volume, chunk, range, mapping);
    }
    done.store(true, Ordering::Relaxed);
    let known: u64 = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
    assert!(known > 1000, "{known} reads found something");
    let held = cache.held().0;
    assert!(split(held / 8).0 <= 2, "{held} bytes are held");
}
