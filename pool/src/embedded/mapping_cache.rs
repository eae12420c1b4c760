//! The mappings of all volumes in one slab of bounded size: read without a lock, and what nobody uses makes room.
//!
//! The slab consists of segments, made as they are needed and kept; each is cut into **records** of one size. A record
//! holds one chunk of one volume: a head, which names owner and shape, and the chunk as runs or as one word a block.
//! Chunks that are all hole or hold one run need no record: their slot says it (a run that is not all of the chunk, if its
//! numbers are small). When all segments are taken, one that nobody has read since the hand last passed it is emptied as
//! a whole, so that no size of record can keep the room of another.
//!
//! Nothing of this is the truth: a slot may be unknown at any time, and whoever finds it so asks the tree.
//!
//! Reading races with all changes, and is right because words are only ever read as words and then judged:
//! - a chunk that changes gets another record, and its slot a stamp with it, before the words of the old one serve another;
//! - a reader believes what it read only if the slot is the same afterwards.
//!
//! So what it believes was the chunk at one moment while it read, and its own block, whose cell it holds, does not
//! change. One word a block is changed in place without that: the words of other blocks are not touched. (A stamp comes
//! again after 2^30 changes; a reader that slept through just so many would have to find its slot at the same place too.)
//!
//! Lock: `state`, taken under the metadata mutex or under nothing; nothing is taken under it.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::embedded::chunk::{CHUNK_LEN, Entry, Run, lay};
use crate::embedded::mapping_index::{CHUNKS_MAX, MappingIndex};
use crate::embedded::shape::{DENSE_WORDS, SHAPE_BITS, SHORT_BITS, Shape, set_dense, short_run, short_word};
use crate::format::Mapping;
use crate::units::ByteCount;

/// Words before a record's content: its head.
const HEAD_WORDS: usize = 1;
/// Sizes of records in words, head included: near enough to each other that a chunk with its slot takes at most 16 bytes a
/// run, of two short runs and more, and of three long ones and more.
const SIZES: [usize; 25] = [
    3,
    4,
    5,
    7,
    9,
    12,
    14,
    17,
    20,
    25,
    31,
    38,
    46,
    57,
    67,
    82,
    100,
    124,
    152,
    186,
    228,
    273,
    341,
    410,
    DENSE_WORDS + HEAD_WORDS,
];
/// Words of a segment: eight of the largest records, and few words are left over with any size.
const SEGMENT_WORDS: usize = 8 * (DENSE_WORDS + HEAD_WORDS);
const SEGMENT_BYTES: u64 = SEGMENT_WORDS as u64 * 8;
/// Words of a segment's map of free records.
const FREE_WORDS: usize = (SEGMENT_WORDS / SIZES[0]).div_ceil(64);

// A slot: nothing known or all hole (which have no more than their tag), one run over all of the chunk (its mapping behind
// the tag), one short run, or a record's place and a stamp.
const TAG: u64 = 3;
const TAG_BITS: u32 = 2;
const UNKNOWN: u64 = 0;
const HOLES: u64 = 1 << TAG_BITS;
const WHOLE: u64 = 1;
const ONE: u64 = 2;
const RECORD: u64 = 3;
const PLACE_BITS: u32 = 32;
const STAMP_BITS: u32 = u64::BITS - PLACE_BITS - TAG_BITS;
const _: () = assert!(SHORT_BITS + TAG_BITS <= u64::BITS, "a short run fits a slot");

// A head: the volume's number, the chunk, the shape of what follows.
const CHUNK_BITS: u32 = CHUNKS_MAX.ilog2();
const _: () = assert!(CHUNKS_MAX.is_power_of_two() && 24 + CHUNK_BITS + SHAPE_BITS <= u64::BITS, "a head is a word");

/// Looks at a chunk that changes under a reader before it asks the tree instead.
const READS_MAX: usize = 8;

/// Which records of a segment are free.
struct Book {
    /// Index of the records' size.
    size: usize,
    free: [u64; FREE_WORDS],
    taken: usize,
}

impl Book {
    fn new(size: usize) -> Self {
        let mut free = [0; FREE_WORDS];
        (0..SEGMENT_WORDS / SIZES[size]).for_each(|record| free[record / 64] |= 1 << (record % 64));
        Self { size, free, taken: 0 }
    }

    fn take(&mut self) -> Option<usize> {
        let at = self.free.iter().position(|&word| word != 0)?;
        let bit = usize::try_from(self.free[at].trailing_zeros()).expect("at most 64");
        self.free[at] &= self.free[at] - 1;
        self.taken += 1;
        Some(at * 64 + bit)
    }

    fn give_back(&mut self, record: usize) {
        self.free[record / 64] |= 1 << (record % 64);
        self.taken -= 1;
    }

    fn is_free(&self, record: usize) -> bool {
        self.free[record / 64] >> (record % 64) & 1 == 1
    }
}

struct State {
    /// One for each segment that was made.
    books: Vec<Book>,
    /// Segments with free records, by size.
    open: [Vec<usize>; SIZES.len()],
    /// Segments without records.
    empty: Vec<usize>,
    hand: usize,
    /// Of the slot that was last given a record.
    stamp: u64,
    /// By number; a chunk's record names its volume so.
    volumes: Vec<Option<Arc<MappingIndex>>>,
    vacant: Vec<u32>,
    /// Working memory of a change, so that none is allocated.
    runs: Vec<Run>,
}

pub(super) struct MappingCache {
    segments: Box<[OnceLock<Box<[AtomicU64]>>]>,
    /// Which segments were read since the hand last passed.
    used: Box<[AtomicBool]>,
    state: Mutex<State>,
}

impl MappingCache {
    /// Room for `most` bytes, at least for one segment and at most for 32 GiB.
    pub(super) fn new(most: ByteCount) -> Self {
        let segments = (most.0 / SEGMENT_BYTES).clamp(1, (1 << PLACE_BITS) / SEGMENT_WORDS as u64);
        let segments = usize::try_from(segments).unwrap_or(usize::MAX);
        Self {
            segments: (0..segments).map(|_| OnceLock::new()).collect(),
            used: (0..segments).map(|_| AtomicBool::new(false)).collect(),
            state: Mutex::new(State {
                books: Vec::new(),
                open: std::array::from_fn(|_| Vec::new()),
                empty: Vec::new(),
                hand: 0,
                stamp: 0,
                volumes: Vec::new(),
                vacant: Vec::new(),
                runs: Vec::with_capacity(DENSE_WORDS),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that the slab has taken so far; it keeps them.
    pub(super) fn held(&self) -> ByteCount {
        ByteCount(self.lock().books.len() as u64 * SEGMENT_BYTES)
    }

    /// A volume comes: the number that its records have for an owner.
    pub(super) fn enroll(&self, index: &Arc<MappingIndex>) -> u32 {
        let mut state = self.lock();
        if let Some(number) = state.vacant.pop() {
            state.volumes[position(number)] = Some(Arc::clone(index));
            return number;
        }
        state.volumes.push(Some(Arc::clone(index)));
        u32::try_from(state.volumes.len() - 1).expect("device ids have 24 bits")
    }

    /// A volume goes, with all its records. Nobody reads it any more.
    pub(super) fn retire(&self, volume: u32) {
        let mut state = self.lock();
        let Some(index) = state.volumes[position(volume)].take() else { return };
        for slot in index.slots() {
            self.release(&mut state, slot.swap(UNKNOWN, Ordering::Release));
        }
        state.vacant.push(volume);
    }

    /// What a slot's chunk says of its block `at`. No lock, no wait.
    pub(super) fn read(&self, slot: &AtomicU64, at: u16) -> Entry {
        for _ in 0..READS_MAX {
            let word = slot.load(Ordering::Acquire);
            match without_record(word) {
                Some(Held::Nothing) => return Entry::Unknown,
                Some(Held::Run(run)) if (run.start..run.end()).contains(&at) => {
                    return Entry::Mapped(run.mapping_of(at));
                }
                Some(_) => return Entry::Hole,
                None => {
                    let found = self.read_record(place_of(word), at);
                    // Who has read a word that serves another record by now sees here that the slot has changed: the
                    // other half is the fence in `put`.
                    fence(Ordering::Acquire);
                    if let Some(entry) = found.filter(|_| slot.load(Ordering::Relaxed) == word) {
                        return entry;
                    }
                }
            }
            std::hint::spin_loop();
        }
        Entry::Unknown
    }

    /// `None`: the record serves another chunk by now.
    fn read_record(&self, place: u64, at: u16) -> Option<Entry> {
        let (segment, offset) = split(place);
        let words = &self.segments.get(segment)?.get()?[offset..];
        if !self.used[segment].load(Ordering::Relaxed) {
            self.used[segment].store(true, Ordering::Relaxed);
        }
        let (head, content) = words.split_first()?;
        Shape::from_bits(head.load(Ordering::Relaxed)).find(content, at)
    }

    /// Takes a chunk as the tree has it. The caller holds the metadata mutex.
    pub(super) fn fill(&self, volume: u32, chunk: u64, runs: &[Run]) {
        let mut state = self.lock();
        self.put(&mut state, volume, chunk, runs);
    }

    /// Says where blocks of a chunk stand, from `mapping` on, or that they are holes; a chunk that is unknown stays so.
    /// The caller holds the metadata mutex.
    pub(super) fn lay(&self, volume: u32, chunk: u64, blocks: Range<u16>, mapping: Option<Mapping>) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let word = state.slot_word(volume, chunk);
        if word == UNKNOWN {
            return;
        }
        let is_whole = blocks == (0..CHUNK_LEN);
        if let Some((Shape::Dense, content)) = self.record_of(state, word).filter(|_| !is_whole) {
            return set_dense(content, blocks, mapping);
        }
        let mut runs = std::mem::take(&mut state.runs);
        self.runs_of(state, word, &mut runs);
        lay(&mut runs, blocks.start, blocks.end, mapping);
        self.put(state, volume, chunk, &runs);
        runs.clear();
        state.runs = runs;
    }

    /// Forgets a chunk. The caller holds the metadata mutex.
    pub(super) fn forget(&self, volume: u32, chunk: u64) {
        let mut state = self.lock();
        let word = state.slot_word(volume, chunk);
        state.set_slot(volume, chunk, UNKNOWN);
        self.release(&mut state, word);
    }

    /// The runs of a chunk whose slot says `word`.
    fn runs_of(&self, state: &State, word: u64, runs: &mut Vec<Run>) {
        match (without_record(word), self.record_of(state, word)) {
            (Some(Held::Run(run)), _) => runs.push(run),
            (_, Some((shape, content))) => shape.read(content, runs),
            _ => {}
        }
    }

    /// Shape and content of the record that a slot's word names.
    fn record_of(&self, state: &State, word: u64) -> Option<(Shape, &[AtomicU64])> {
        let words = self.record(state, record_place(word)?);
        Some((Shape::from_bits(words[0].load(Ordering::Relaxed)), &words[HEAD_WORDS..]))
    }

    fn record(&self, state: &State, place: u64) -> &[AtomicU64] {
        let (segment, offset) = split(place);
        let words = self.segments[segment].get().expect("a record's segment was made");
        &words[offset..offset + SIZES[state.books[segment].size]]
    }

    /// Gives a chunk its content, in the smallest shape.
    fn put(&self, state: &mut State, volume: u32, chunk: u64, runs: &[Run]) {
        let before = state.slot_word(volume, chunk);
        if let Some(word) = word_without_record(runs) {
            state.set_slot(volume, chunk, word);
            return self.release(state, before);
        }
        let shape = Shape::of(runs);
        let size = SIZES.partition_point(|&size| size < HEAD_WORDS + shape.words());
        let place = self.allocate(state, size);
        let words = self.record(state, place);
        // After the change of the slot that named these words before: the other half is the fence in `read`.
        fence(Ordering::Release);
        words[0].store(head(volume, chunk, shape), Ordering::Relaxed);
        shape.write(runs, &words[HEAD_WORDS..]);
        state.stamp = (state.stamp + 1) % (1 << STAMP_BITS);
        // Looked at again: the old record may have made the room.
        let before = state.slot_word(volume, chunk);
        state.set_slot(volume, chunk, (state.stamp << PLACE_BITS | place) << TAG_BITS | RECORD);
        self.release(state, before);
    }

    /// Frees the record that a slot's word named; the slot says something else already.
    fn release(&self, state: &mut State, word: u64) {
        let Some(place) = record_place(word) else { return };
        let (segment, offset) = split(place);
        let book = &mut state.books[segment];
        let was_full = book.taken == SEGMENT_WORDS / SIZES[book.size];
        book.give_back(offset / SIZES[book.size]);
        let (size, is_empty) = (book.size, book.taken == 0);
        if is_empty {
            state.open[size].retain(|&open| open != segment);
            state.empty.push(segment);
        } else if was_full {
            state.open[size].push(segment);
        }
    }

    /// The place of a free record.
    fn allocate(&self, state: &mut State, size: usize) -> u64 {
        loop {
            if let Some(&segment) = state.open[size].last() {
                match state.books[segment].take() {
                    Some(record) => return (segment * SEGMENT_WORDS + record * SIZES[size]) as u64,
                    None => state.open[size].pop(),
                };
                continue;
            }
            let segment = match state.empty.pop() {
                Some(segment) => segment,
                None if state.books.len() < self.segments.len() => self.make_segment(state),
                None => self.make_room(state),
            };
            state.books[segment] = Book::new(size);
            state.open[size].push(segment);
        }
    }

    fn make_segment(&self, state: &mut State) -> usize {
        let segment = state.books.len();
        self.segments[segment].get_or_init(|| (0..SEGMENT_WORDS).map(|_| AtomicU64::new(0)).collect());
        state.books.push(Book::new(0));
        segment
    }

    /// Empties the next segment that nobody has read lately.
    fn make_room(&self, state: &mut State) -> usize {
        // Ends within two rounds, unless readers are faster than the hand; then any segment is as good.
        for _ in 0..2 * state.books.len() {
            state.hand = (state.hand + 1) % state.books.len();
            if !self.used[state.hand].swap(false, Ordering::Relaxed) {
                break;
            }
        }
        let segment = state.hand;
        let (size, book) = (state.books[segment].size, &state.books[segment]);
        for record in (0..SEGMENT_WORDS / SIZES[size]).filter(|&record| !book.is_free(record)) {
            let place = (segment * SEGMENT_WORDS + record * SIZES[size]) as u64;
            let (volume, chunk) = owner_of(self.record(state, place)[0].load(Ordering::Relaxed));
            debug_assert_eq!(record_place(state.slot_word(volume, chunk)), Some(place), "a record is its owner's");
            state.set_slot(volume, chunk, UNKNOWN);
        }
        state.open[size].retain(|&open| open != segment);
        segment
    }
}

impl State {
    fn slot_word(&self, volume: u32, chunk: u64) -> u64 {
        let index = self.volumes[position(volume)].as_deref();
        index.and_then(|index| index.find(chunk)).map_or(UNKNOWN, |slot| slot.load(Ordering::Relaxed))
    }

    fn set_slot(&self, volume: u32, chunk: u64, word: u64) {
        if let Some(index) = &self.volumes[position(volume)] {
            index.slot(chunk).store(word, Ordering::Release);
        }
    }
}

/// What a slot says that names no record.
enum Held {
    Nothing,
    Holes,
    Run(Run),
}

/// `None`: it names one.
fn without_record(word: u64) -> Option<Held> {
    let rest = word >> TAG_BITS;
    match (word & TAG, word) {
        (_, UNKNOWN) => Some(Held::Nothing),
        (WHOLE, _) => Some(Held::Run(Run { start: 0, len: CHUNK_LEN, mapping: Mapping::unpack(rest) })),
        (ONE, _) => Some(Held::Run(short_run(rest))),
        (RECORD, _) => None,
        _ => Some(Held::Holes),
    }
}

/// What a slot says of a chunk that needs no record.
fn word_without_record(runs: &[Run]) -> Option<u64> {
    match runs {
        [] => Some(HOLES),
        // Mappings beyond 2^38 data blocks have no room beside the tag.
        [run] if run.len == CHUNK_LEN && run.mapping.pack() <= u64::MAX >> TAG_BITS => {
            Some(run.mapping.pack() << TAG_BITS | WHOLE)
        }
        [run] => short_word(*run).map(|word| word << TAG_BITS | ONE),
        _ => None,
    }
}

fn record_place(word: u64) -> Option<u64> {
    (word & TAG == RECORD).then_some(place_of(word))
}

fn place_of(word: u64) -> u64 {
    word >> TAG_BITS & ((1 << PLACE_BITS) - 1)
}

/// Segment, and words from its start.
fn split(place: u64) -> (usize, usize) {
    let place = usize::try_from(place).unwrap_or(usize::MAX);
    (place / SEGMENT_WORDS, place % SEGMENT_WORDS)
}

fn head(volume: u32, chunk: u64, shape: Shape) -> u64 {
    (u64::from(volume) << CHUNK_BITS | chunk) << SHAPE_BITS | shape.bits()
}

/// Volume and chunk that a head names.
fn owner_of(head: u64) -> (u32, u64) {
    let owner = head >> SHAPE_BITS;
    (u32::try_from(owner >> CHUNK_BITS).expect("24 bits"), owner & (CHUNKS_MAX - 1))
}

fn position(volume: u32) -> usize {
    usize::try_from(volume).expect("usize has at least 32 bits")
}

#[cfg(test)]
mod tests;
