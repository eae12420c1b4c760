//! The intent log as bytes: what a header says, which records are in force, and whether all of it can be believed.
//! No I/O, no locks.
//!
//! The file is one page and a ring of records. In the page stand two slots for a header, written in turns, and the
//! tail, written twice. The slot in force is the sound one with the higher generation: a kill in the middle of
//! writing one leaves it unsound, and the other, which was in force until then, stands for it. That is right also if
//! the newer slot was damaged later: it differs from the older one by one step, which either opens an epoch or drops
//! one, and the superblock on the disk then fits an epoch that both know, at the same place, or none.

use crate::embedded::intent_record::{IntentChange, RECORD_WORDS, decode, seal};
use crate::error::{Error, ErrorKind, Result};

/// Words before the first record: one page.
pub(super) const PAGE_WORDS: usize = 512;
/// Where the two slots begin: each in a sector of its own.
pub(super) const SLOTS: [usize; 2] = [0, 64];
/// Words of a slot.
pub(super) const SLOT_WORDS: usize = 14;
/// The number of the record that comes next, and its complement, stored in this order.
pub(super) const TAIL: usize = 128;
pub(super) const TAIL_CHECK: usize = 129;
/// The ring holds the changes of the largest request several times over.
pub(super) const CAPACITY_MIN: u32 = 128;
/// 48 MiB.
pub(super) const CAPACITY_MAX: u32 = 1 << 20;

/// "thinslog" as the bytes of a little-endian word.
const MAGIC: u64 = u64::from_le_bytes(*b"thinslog");
const VERSION: u32 = 1;

/// The largest file that may be a log, in bytes.
pub(super) const FILE_MAX: u64 = (PAGE_WORDS as u64 + CAPACITY_MAX as u64 * RECORD_WORDS as u64) * 8;

/// What the records from one place on build on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntentEpoch {
    /// Which superblock; see [`Frozen::fingerprint`](crate::meta::Frozen::fingerprint).
    pub fingerprint: u64,
    /// The number of the first record that the superblock does not contain.
    pub first: u64,
}

/// A header: whose log it is, and on what its records build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntentHeader {
    /// Records in the ring.
    pub capacity: u32,
    /// The pool.
    pub identity: [u8; 16],
    /// The run of the kernel.
    pub boot: [u8; 16],
    /// Raised with every header written.
    pub generation: u64,
    /// The superblock that is durable.
    pub durable: IntentEpoch,
    /// The superblock that is perhaps being written.
    pub coming: Option<IntentEpoch>,
    /// What the file of early writes beside it carries too; 0 once a program served that knows of no such file.
    pub session: u64,
}

/// Whose a log is, and the file of early writes that goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogOwner {
    pub(super) identity: [u8; 16],
    pub(super) boot: [u8; 16],
    pub(super) session: u64,
}

impl IntentHeader {
    /// Whose the file of early writes must be that goes with the log.
    pub(super) fn owner(&self) -> LogOwner {
        LogOwner { identity: self.identity, boot: self.boot, session: self.session }
    }
}

/// A log that can be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntentLogContent {
    /// The header in force.
    pub header: IntentHeader,
    /// The number of the record that comes next.
    pub tail: u64,
    /// The changes from `header.durable.first` to the tail.
    pub changes: Vec<IntentChange>,
}

impl IntentLogContent {
    /// The changes that a superblock does not contain; `None` if the log does not build on it.
    #[must_use]
    pub fn since(&self, fingerprint: u64) -> Option<(IntentEpoch, &[IntentChange])> {
        let epochs = [Some(self.header.durable), self.header.coming];
        let epoch = epochs.into_iter().flatten().find(|epoch| epoch.fingerprint == fingerprint)?;
        let skipped = usize::try_from(epoch.first.checked_sub(self.header.durable.first)?).ok()?;
        Some((epoch, self.changes.get(skipped..)?))
    }
}

fn doubt(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::DoubtfulLog, why)
}

/// Reads all of a log from the bytes of its file. Errors: `DoubtfulLog` (what is wrong).
pub fn parse_intent_log(bytes: &[u8]) -> Result<IntentLogContent> {
    let header = parse_header(bytes)?;
    parse_changes(bytes, header)
}

/// The header in force.
pub(super) fn parse_header(bytes: &[u8]) -> Result<IntentHeader> {
    if bytes.len() < PAGE_WORDS * 8 {
        return Err(doubt(format!("the file has {} bytes: it was cut short", bytes.len())));
    }
    let mut sound = [decode_slot(bytes, 0)?, decode_slot(bytes, 1)?];
    sound.sort_unstable_by_key(|header| header.map(|header| header.generation));
    match sound {
        [_, None] => Err(doubt("no header is sound")),
        [Some(older), Some(newer)] if older.generation.checked_add(1) != Some(newer.generation) => {
            Err(doubt("the headers do not follow each other"))
        }
        [_, Some(newer)] => Ok(newer),
    }
}

/// The header of a slot; `None` if it is not sound. Errors: it is sound and says what this build does not know.
fn decode_slot(bytes: &[u8], slot: usize) -> Result<Option<IntentHeader>> {
    let mut words = [0; SLOT_WORDS];
    for (i, word) in words.iter_mut().enumerate() {
        *word = word_at(bytes, SLOTS[slot] + i).unwrap_or_default();
    }
    let [magic, version_capacity, i0, i1, b0, b1, generation, epochs, f0, p0, f1, p1, session, sum] = words;
    if sum != seal(&words[..SLOT_WORDS - 1]) || magic != MAGIC || generation % 2 != slot as u64 {
        return Ok(None);
    }
    let [low, high] = [version_capacity & u64::from(u32::MAX), version_capacity >> 32];
    if low != u64::from(VERSION) {
        return Err(doubt(format!("it is of version {low}, this build knows {VERSION}")));
    }
    let capacity = u32::try_from(high).unwrap_or(u32::MAX);
    if !(CAPACITY_MIN..=CAPACITY_MAX).contains(&capacity) || !(1..=2).contains(&epochs) || (epochs == 2 && p1 < p0) {
        return Err(doubt("a header is sound and makes no sense"));
    }
    Ok(Some(IntentHeader {
        capacity,
        identity: sixteen(i0, i1),
        boot: sixteen(b0, b1),
        generation,
        durable: IntentEpoch { fingerprint: f0, first: p0 },
        coming: (epochs == 2).then_some(IntentEpoch { fingerprint: f1, first: p1 }),
        session,
    }))
}

/// The words of the slot that a header belongs in.
pub(super) fn encode_slot(header: &IntentHeader) -> [u64; SLOT_WORDS] {
    let ([i0, i1], [b0, b1]) = (halves(header.identity), halves(header.boot));
    let coming = header.coming.unwrap_or(IntentEpoch { fingerprint: 0, first: 0 });
    let epochs = 1 + u64::from(header.coming.is_some());
    let mut words = [
        MAGIC,
        u64::from(VERSION) | u64::from(header.capacity) << 32,
        i0,
        i1,
        b0,
        b1,
        header.generation,
        epochs,
        header.durable.fingerprint,
        header.durable.first,
        coming.fingerprint,
        coming.first,
        header.session,
        0,
    ];
    words[SLOT_WORDS - 1] = seal(&words[..SLOT_WORDS - 1]);
    words
}

/// The records of a log whose header is known.
pub(super) fn parse_changes(bytes: &[u8], header: IntentHeader) -> Result<IntentLogContent> {
    let len = file_words(header.capacity) * 8;
    if bytes.len() != len {
        return Err(doubt(format!("the file has {} bytes, its header asks for {len}", bytes.len())));
    }
    let tail = tail(bytes)?;
    let newest = header.coming.unwrap_or(header.durable).first;
    if newest > tail || tail - header.durable.first > u64::from(header.capacity) {
        return Err(doubt(format!(
            "record {tail} comes next, and the header counts from {} on in a ring of {}",
            header.durable.first, header.capacity
        )));
    }
    let mut changes = Vec::new();
    for sequence in header.durable.first..tail {
        let start = record_place(header.capacity, sequence);
        let mut words = [0; RECORD_WORDS];
        for (i, word) in words.iter_mut().enumerate() {
            *word = word_at(bytes, start + i).unwrap_or_default();
        }
        changes.push(decode(sequence, &words).map_err(|why| doubt(format!("record {sequence}: {why}")))?);
    }
    Ok(IntentLogContent { header, tail, changes })
}

fn tail(bytes: &[u8]) -> Result<u64> {
    let tail = word_at(bytes, TAIL).unwrap_or_default();
    let check = !word_at(bytes, TAIL_CHECK).unwrap_or_default();
    // One ahead: killed between the two stores. The record was whole before the first.
    if tail == check || check.checked_add(1) == Some(tail) {
        return Ok(tail);
    }
    Err(doubt(format!("its tail says {tail}, and {check} when read again")))
}

/// Words of a file for a ring of `capacity` records.
pub(super) fn file_words(capacity: u32) -> usize {
    PAGE_WORDS + capacity as usize * RECORD_WORDS
}

/// The first word of a record.
pub(super) fn record_place(capacity: u32, sequence: u64) -> usize {
    let slot = usize::try_from(sequence % u64::from(capacity)).unwrap_or_default();
    PAGE_WORDS + slot * RECORD_WORDS
}

/// A word of a file; `None` beyond its end.
pub(super) fn word_at(bytes: &[u8], word: usize) -> Option<u64> {
    let bytes = bytes.get(word * 8..word * 8 + 8)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// Sixteen bytes as two words.
pub(super) fn halves(bytes: [u8; 16]) -> [u64; 2] {
    [0, 1].map(|half| word_at(&bytes, half).unwrap_or_default())
}

/// Two words as the sixteen bytes that they were.
pub(super) fn sixteen(low: u64, high: u64) -> [u8; 16] {
    (u128::from(low) | u128::from(high) << 64).to_le_bytes()
}
