//! The mappings of all volumes in one slab of bounded size: read without a lock, and what nobody uses makes room.
//!
//! The slab consists of segments, made as they are needed and kept; each is cut into **records** of one size. A record
//! holds one chunk of one volume: a header, its owner, and the chunk as runs or as one word a block. Chunks that are
//! all hole or all one run need no record: their slot says it. When all segments are taken, one that nobody has read
//! since the hand last passed it is emptied as a whole, so that no size of record can keep the room of another.
//!
//! Nothing of this is the truth: a slot may be unknown at any time, and whoever finds it so asks the tree.
//!
//! Reading races with all changes, and is right because words are only ever read as words and then judged:
//! - a change of a record clears its header, then writes, then gives it a header that no record ever had;
//! - a record that moves or goes is taken from its slot before its words serve another;
//! - a reader believes what it read only if header and slot are the same afterwards.
//!
//! So what it believes was the chunk at one moment while it read, and its own block, whose cell it holds, does not
//! change. One word a block is changed in place without that: the words of other blocks are not touched.
//!
//! Lock: `state`, taken under the metadata mutex or under nothing; nothing is taken under it.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::embedded::chunk::{
    CHUNK_LEN, DENSE_WORDS, Entry, Run, dense_entry, dense_word, find_packed, gather, lay, pack, packed_words, spread,
    unpack,
};
use crate::embedded::mapping_index::MappingIndex;
use crate::format::Mapping;
use crate::units::ByteCount;

/// Header and owner of a record.
const HEADER_WORDS: usize = 2;
/// Sizes of records in words, header included: each holds a quarter more runs than the one before, so that from four
/// runs on a run costs at most 16 bytes.
const SIZES: [usize; 23] = [
    4,
    5,
    7,
    8,
    10,
    11,
    14,
    17,
    20,
    26,
    32,
    41,
    50,
    65,
    80,
    101,
    128,
    161,
    203,
    254,
    320,
    400,
    DENSE_WORDS + HEADER_WORDS,
];
/// Words of a segment: eight of the largest records, and few words are left over with any size.
const SEGMENT_WORDS: usize = 8 * (DENSE_WORDS + HEADER_WORDS);
const SEGMENT_BYTES: u64 = SEGMENT_WORDS as u64 * 8;
/// Words of a segment's map of free records.
const FREE_WORDS: usize = (SEGMENT_WORDS / SIZES[0]).div_ceil(64);

// A slot: unknown, all hole, one run over all of the chunk (its mapping behind the tag), or the place of its record.
const TAG: u64 = 3;
const UNKNOWN: u64 = 0;
const HOLES: u64 = 1;
const WHOLE: u64 = 2;
const RECORD: u64 = 3;
const TAG_BITS: u32 = 2;

// A header: a number that was never used before, and how many runs follow. Zero while the record is being written.
const COUNT: u64 = 0xffff;
const COUNT_BITS: u32 = 16;
/// In the place of a count: one word a block.
const DENSE: u64 = COUNT;

/// Looks at a record that is being changed before a reader asks the tree instead: a change takes far less than a
/// microsecond, unless its thread was stopped in the middle.
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
    /// Room for `most` bytes, at least for one segment.
    pub(super) fn new(most: ByteCount) -> Self {
        let segments = usize::try_from((most.0 / SEGMENT_BYTES).max(1)).unwrap_or(usize::MAX);
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
            match word & TAG {
                UNKNOWN => return Entry::Unknown,
                HOLES => return Entry::Hole,
                WHOLE => return Entry::Mapped(whole_run(word).mapping_of(at)),
                _ => {
                    let found = self.read_record(word >> TAG_BITS, at);
                    if let Some(entry) = found.filter(|_| slot.load(Ordering::Relaxed) == word) {
                        return entry;
                    }
                }
            }
            std::hint::spin_loop();
        }
        Entry::Unknown
    }

    /// `None`: the record was changed meanwhile.
    fn read_record(&self, place: u64, at: u16) -> Option<Entry> {
        let (segment, offset) = split(place);
        let words = &self.segments.get(segment)?.get()?[offset..];
        if !self.used[segment].load(Ordering::Relaxed) {
            self.used[segment].store(true, Ordering::Relaxed);
        }
        let header = words[0].load(Ordering::Acquire);
        let content = words.get(HEADER_WORDS..)?;
        let entry = match header & COUNT {
            _ if header == 0 => None,
            DENSE => content.get(usize::from(at)).map(|word| dense_entry(word.load(Ordering::Relaxed))),
            count => find_packed(content, usize::try_from(count).expect("16 bits"), at),
        };
        // With the fence in `write`: who has read a word of another record, or of this one's next content, sees here
        // that header or slot have changed.
        fence(Ordering::Acquire);
        entry.filter(|_| words[0].load(Ordering::Relaxed) == header)
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
        if let Some((DENSE, content)) = self.record_of(state, word).filter(|_| !is_whole) {
            for at in blocks.clone() {
                let mapping = mapping.map(|first| Run { start: blocks.start, len: 1, mapping: first }.mapping_of(at));
                content[usize::from(at)].store(dense_word(mapping), Ordering::Relaxed);
            }
            return;
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
        match (word & TAG, self.record_of(state, word)) {
            (WHOLE, _) => runs.push(whole_run(word)),
            (_, Some((DENSE, content))) => gather(content, runs),
            (_, Some((count, content))) => unpack(content, usize::try_from(count).expect("16 bits"), runs),
            (_, None) => {}
        }
    }

    /// Count and content of the record that a slot's word names.
    fn record_of(&self, state: &State, word: u64) -> Option<(u64, &[AtomicU64])> {
        let place = record_place(word)?;
        let words = self.record(state, place);
        Some((words[0].load(Ordering::Relaxed) & COUNT, &words[HEADER_WORDS..]))
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
        let words = HEADER_WORDS + packed_words(runs.len()).min(DENSE_WORDS);
        let size = SIZES.partition_point(|&size| size < words);
        match record_place(before).filter(|&place| state.books[split(place).0].size == size) {
            Some(place) => self.write(state, place, volume, chunk, runs),
            None => {
                let place = self.allocate(state, size);
                self.write(state, place, volume, chunk, runs);
                // Looked at again: the old record may have made the room.
                let before = state.slot_word(volume, chunk);
                state.set_slot(volume, chunk, place << TAG_BITS | RECORD);
                self.release(state, before);
            }
        }
    }

    fn write(&self, state: &mut State, place: u64, volume: u32, chunk: u64, runs: &[Run]) {
        state.stamp += 1;
        let words = self.record(state, place);
        words[0].store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        words[1].store(owner(volume, chunk), Ordering::Relaxed);
        let content = &words[HEADER_WORDS..];
        let count = if packed_words(runs.len()) < DENSE_WORDS {
            pack(runs, content);
            runs.len() as u64
        } else {
            spread(runs, &content[..DENSE_WORDS]);
            DENSE
        };
        words[0].store(state.stamp << COUNT_BITS | count, Ordering::Release);
    }

    /// Frees the record that a slot's word named; the slot says something else already.
    fn release(&self, state: &mut State, word: u64) {
        let Some(place) = record_place(word) else { return };
        self.record(state, place)[0].store(0, Ordering::Relaxed);
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
            let words = self.record(state, place);
            let (volume, chunk) = owner_of(words[1].load(Ordering::Relaxed));
            debug_assert_eq!(record_place(state.slot_word(volume, chunk)), Some(place), "a record is its owner's");
            state.set_slot(volume, chunk, UNKNOWN);
            words[0].store(0, Ordering::Relaxed);
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

/// What a slot says of a chunk that needs no record.
fn word_without_record(runs: &[Run]) -> Option<u64> {
    match runs {
        [] => Some(HOLES),
        // Mappings beyond 2^38 data blocks have no room beside the tag.
        [run] if run.len == CHUNK_LEN && run.mapping.pack() <= u64::MAX >> TAG_BITS => {
            Some(run.mapping.pack() << TAG_BITS | WHOLE)
        }
        _ => None,
    }
}

fn whole_run(word: u64) -> Run {
    Run { start: 0, len: CHUNK_LEN, mapping: Mapping::unpack(word >> TAG_BITS) }
}

fn record_place(word: u64) -> Option<u64> {
    (word & TAG == RECORD).then_some(word >> TAG_BITS)
}

/// Segment, and words from its start.
fn split(place: u64) -> (usize, usize) {
    let place = usize::try_from(place).unwrap_or(usize::MAX);
    (place / SEGMENT_WORDS, place % SEGMENT_WORDS)
}

fn owner(volume: u32, chunk: u64) -> u64 {
    u64::from(volume) << 32 | chunk
}

fn owner_of(word: u64) -> (u32, u64) {
    (u32::try_from(word >> 32).expect("32 bits"), word & u64::from(u32::MAX))
}

fn position(volume: u32) -> usize {
    usize::try_from(volume).expect("usize has at least 32 bits")
}

#[cfg(test)]
mod tests;
