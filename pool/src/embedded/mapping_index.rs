//! The slots of a volume's chunks, a word each: what a chunk is, or where its record stands.
//!
//! Three levels, made as they are asked for: an idle volume has 1.5 KiB of the first, and each 8 GiB in use (of 64 KiB
//! blocks) 2 KiB of the last.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

const TOP: u64 = 64;
const MIDDLE: u64 = 64;
const LEAF: u64 = 256;
/// Chunks that an index can hold.
pub(super) const CHUNKS_MAX: u64 = TOP * MIDDLE * LEAF;

type Leaf = Box<[AtomicU64]>;
type Middle = Box<[OnceLock<Leaf>]>;

/// Zero is what a slot is before anybody wrote it.
pub(super) struct MappingIndex {
    top: Box<[OnceLock<Middle>]>,
}

impl MappingIndex {
    pub(super) fn new() -> Self {
        Self { top: (0..TOP).map(|_| OnceLock::new()).collect() }
    }

    /// The slot of a chunk, if it was made.
    pub(super) fn find(&self, chunk: u64) -> Option<&AtomicU64> {
        let middle = self.top.get(part(chunk / LEAF / MIDDLE))?.get()?;
        Some(&middle[part(chunk / LEAF % MIDDLE)].get()?[part(chunk % LEAF)])
    }

    /// The slot of a chunk below [`CHUNKS_MAX`].
    pub(super) fn slot(&self, chunk: u64) -> &AtomicU64 {
        let middle =
            self.top[part(chunk / LEAF / MIDDLE)].get_or_init(|| (0..MIDDLE).map(|_| OnceLock::new()).collect());
        let leaf = middle[part(chunk / LEAF % MIDDLE)].get_or_init(|| (0..LEAF).map(|_| AtomicU64::new(0)).collect());
        &leaf[part(chunk % LEAF)]
    }

    /// All slots that were made.
    pub(super) fn slots(&self) -> impl Iterator<Item = &AtomicU64> {
        let leaves = self.top.iter().filter_map(OnceLock::get).flatten().filter_map(OnceLock::get);
        leaves.flatten()
    }
}

fn part(index: u64) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::{CHUNKS_MAX, MappingIndex};

    #[test]
    fn a_slot_is_made_when_it_is_first_asked_for() {
        let index = MappingIndex::new();
        for chunk in [0, 255, 256, 256 * 64, CHUNKS_MAX - 1] {
            assert!(index.find(chunk).is_none_or(|slot| slot.load(Ordering::Relaxed) == 0));
            index.slot(chunk).store(chunk + 1, Ordering::Relaxed);
            assert_eq!(index.find(chunk).unwrap().load(Ordering::Relaxed), chunk + 1);
        }
        assert!(index.find(CHUNKS_MAX).is_none());
        assert_eq!(index.slots().filter(|slot| slot.load(Ordering::Relaxed) != 0).count(), 5);
        assert_eq!(index.slots().count(), 4 * 256);
    }
}
