//! The intent log of a living pool: keeps what was acknowledged and is in no commit yet beyond the process.
//!
//! A write that needs a new block is acknowledged when its mapping stands in memory. If the process is killed then,
//! the host still holds the block device, and its file system goes on as if nothing had happened: the mapping must
//! come back. So each change of a mapping is recorded here, in the page cache of the machine, before it is
//! acknowledged, and the next process replays what the superblock on the disk does not contain. After a power cut
//! the log is void: then the file systems start again too, from what was flushed.
//!
//! The order, each step whole at any kill:
//! 1. A record's words, then the tail. What is below the tail was recorded; what stands above it was not acknowledged.
//! 2. A generation is closed: the epoch of the new superblock is opened at the tail before the superblock is written.
//!    From there on either superblock may be found, and the log knows which records each lacks.
//! 3. The commit is durable: the older epoch is dropped. Only then may its records be overwritten.
//!
//! All of it happens under the metadata mutex, without an allocation and without a system call.

use std::path::{Path, PathBuf};

use crate::device::{SharedFile, SharedWords};
use crate::embedded::intent_format::{
    CAPACITY_MAX, CAPACITY_MIN, IntentEpoch, IntentHeader, LogOwner, SLOT_WORDS, SLOTS, TAIL, TAIL_CHECK, encode_slot,
    file_words, halves, record_place,
};
use crate::embedded::intent_record::{IntentChange, encode};
use crate::error::{Error, ErrorKind, Result};

/// Records in a ring unless somebody says otherwise: 3 MiB, a second of provisioning 4 GiB.
const CAPACITY_DEFAULT: u32 = 64 * 1024;

pub(super) struct IntentLog {
    words: SharedWords,
    header: IntentHeader,
    tail: u64,
}

impl IntentLog {
    /// Makes an empty log at `path`, in the place of what stands there, for a pool whose superblock has
    /// `fingerprint`. Errors: `Invalid` (capacity), `OutOfDataSpace`, `Io`.
    pub(super) fn create(
        path: &Path,
        capacity: Option<u32>,
        identity: [u8; 16],
        boot: [u8; 16],
        fingerprint: u64,
    ) -> Result<Self> {
        let doing = |e: Error| e.doing(format_args!("make the intent log {}", path.display()));
        let capacity = capacity.unwrap_or(CAPACITY_DEFAULT);
        if !(CAPACITY_MIN..=CAPACITY_MAX).contains(&capacity) {
            let range = format!("{capacity} records are not between {CAPACITY_MIN} and {CAPACITY_MAX}");
            return Err(doing(Error::new(ErrorKind::Invalid, range)));
        }
        let words = young(path, file_words(capacity)).map_err(doing)?;
        let header = IntentHeader {
            capacity,
            identity,
            boot,
            generation: 1,
            durable: IntentEpoch { fingerprint, first: 0 },
            coming: None,
            session: new_session()?,
        };
        let mut log = Self { words, header, tail: 0 };
        log.publish_tail();
        log.publish_header();
        grown_up(&mut log.words, path).map_err(doing)?;
        Ok(log)
    }

    /// Goes on with a log that was read and believed: from `epoch`, which the superblock on the disk fits and which
    /// is durable.
    pub(super) fn resume(file: SharedFile, header: IntentHeader, tail: u64, epoch: IntentEpoch) -> Result<Self> {
        let mut log = Self { words: file.map()?, header, tail };
        log.publish_tail();
        let is_foreign = log.header.session == 0;
        if is_foreign {
            log.header.session = new_session()?;
        }
        if log.header.coming.is_some() || is_foreign {
            log.header.durable = epoch;
            log.header.coming = None;
            log.next_header();
        }
        Ok(log)
    }

    /// What the file of early writes must carry that goes with this log.
    pub(super) fn owner(&self) -> LogOwner {
        self.header.owner()
    }

    /// True if `records` more fit before a commit.
    pub(super) fn has_room(&self, records: usize) -> bool {
        let used = self.tail - self.header.durable.first;
        u64::from(self.header.capacity) - used >= records as u64
    }

    /// Records a change. The caller has asked for room.
    pub(super) fn append(&mut self, change: &IntentChange) {
        debug_assert!(self.has_room(1), "a record would overwrite one that is needed");
        let place = record_place(self.header.capacity, self.tail);
        for (i, &word) in encode(self.tail, change).iter().enumerate() {
            self.words.store(place + i, word);
        }
        self.tail += 1;
        self.publish_tail();
    }

    /// A superblock is about to be written that contains all records so far.
    pub(super) fn open_epoch(&mut self, fingerprint: u64) {
        self.open_epoch_at(fingerprint, self.tail);
    }

    /// As [`open_epoch`](Self::open_epoch), for one that contains the records before number `first`.
    pub(super) fn open_epoch_at(&mut self, fingerprint: u64, first: u64) {
        debug_assert!(self.header.coming.is_none(), "one generation is on its way at a time");
        self.header.coming = Some(IntentEpoch { fingerprint, first });
        self.next_header();
    }

    /// The superblock of the epoch opened last is durable.
    pub(super) fn drop_older_epoch(&mut self) {
        if let Some(epoch) = self.header.coming.take() {
            self.header.durable = epoch;
            self.next_header();
        }
    }

    /// Takes the file away: nothing is left that could be replayed.
    pub(super) fn remove(self) -> Result<()> {
        self.words.file().remove()
    }

    fn publish_tail(&mut self) {
        self.words.publish(TAIL, self.tail);
        self.words.publish(TAIL_CHECK, !self.tail);
    }

    fn next_header(&mut self) {
        self.header.generation += 1;
        self.publish_header();
    }

    /// Writes the slot that is not in force; its checksum, the last word, puts it in force.
    fn publish_header(&mut self) {
        let slot = SLOTS[usize::from(self.header.generation % 2 == 1)];
        let words = encode_slot(&self.header);
        for (i, &word) in words[..SLOT_WORDS - 1].iter().enumerate() {
            self.words.store(slot + i, word);
        }
        self.words.publish(slot + SLOT_WORDS - 1, words[SLOT_WORDS - 1]);
    }
}

/// A file of zero words that is to stand at `path` once it is whole: until [`grown_up`] it stands beside it.
pub(super) fn young(path: &Path, words: usize) -> Result<SharedWords> {
    let young = sibling(path, "new");
    match std::fs::remove_file(&young) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io(format!("remove {}", young.display()), e));
        }
        // A rest of one that was killed while it made a file.
        _ => {}
    }
    SharedFile::create(&young, words).and_then(SharedFile::map)
}

/// Gives a [`young`] file that is whole its name.
pub(super) fn grown_up(words: &mut SharedWords, path: &Path) -> Result<()> {
    // Matters where the directory is not on a tmpfs: after a power cut the file must say of which boot it is.
    words.file().sync()?;
    // At its own name it is whole from the first moment.
    words.file_mut().rename(path)
}

/// The path with a dot and a word behind it.
pub(super) fn sibling(path: &Path, word: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(word);
    PathBuf::from(name)
}

/// The run of the kernel that this process lives in. Errors: `Io` if it does not tell: no log could be trusted.
pub(super) fn boot_id() -> Result<[u8; 16]> {
    uuid_of("/proc/sys/kernel/random/boot_id").map(u128::to_be_bytes)
}

/// A number that no log had before; never zero.
fn new_session() -> Result<u64> {
    let [low, high] = halves(uuid_of("/proc/sys/kernel/random/uuid")?.to_le_bytes());
    Ok((low ^ high).max(1))
}

fn uuid_of(path: &str) -> Result<u128> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(format!("read {path}"), e))?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    match u128::from_str_radix(&digits, 16) {
        Ok(id) if digits.len() == 32 => Ok(id),
        _ => Err(Error::new(ErrorKind::Io, format!("read {path}: {text:?} is no UUID"))),
    }
}

#[cfg(test)]
mod tests;
