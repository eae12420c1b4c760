//! Compares both space maps with the references that were counted, and judges their hints.

use std::collections::HashMap;

use crate::check::audit::Audit;
use crate::check::report::Severity;
use crate::check::tally::Tally;
use crate::format::{Bitmap, ENTRIES_PER_BITMAP, INDEX_ENTRIES_MAX, IndexEntry, OVERFLOW, TreeKind, decode_index};
use crate::units::MetaBlock;

/// What a space map says, read as far as it can be read.
struct StoredMap {
    name: &'static str,
    bitmaps: Vec<(IndexEntry, Bitmap)>,
    overflow: HashMap<u64, u32>,
}

impl Audit<'_> {
    /// Reads and compares the data space map.
    pub(in crate::check) fn data_map(&mut self) {
        let map = self.superblock.data_map;
        let overflow = self.overflow(TreeKind::DataOverflow, map.ref_count_root);
        self.tree(TreeKind::DataIndex, map.bitmap_root, TreeKind::DataIndex.name());
        let mut entries = Vec::new();
        let read = self.reader.leaves(TreeKind::DataIndex, MetaBlock(map.bitmap_root), &mut |leaf| {
            entries.extend((0..leaf.len()).map(|at| (leaf.keys()[at], leaf.value::<IndexEntry>(at))));
            Ok(())
        });
        if read.is_err() {
            return;
        }
        self.place = TreeKind::DataIndex.name().to_owned();
        let in_order = entries.iter().enumerate().all(|(at, entry)| entry.0 == at as u64);
        if !in_order || entries.len() as u64 != map.bitmaps() {
            let what = format!(
                "{} entries, which should be 0..{} for {} data blocks",
                entries.len(),
                map.bitmaps(),
                map.nr_blocks
            );
            self.report.incomplete = true;
            self.add(Severity::Damage, None, what);
            return;
        }
        let entries: Vec<IndexEntry> = entries.into_iter().map(|entry| entry.1).collect();
        if let Some(stored) = self.bitmaps("data", &entries, overflow) {
            let counted = std::mem::replace(&mut self.data, Tally::new(0));
            self.compare(&stored, &counted);
            self.data = counted;
        }
    }

    /// Reads and compares the metadata space map; last, because it counts everything read before it.
    pub(in crate::check) fn metadata_map(&mut self) {
        let map = self.superblock.metadata_map;
        let overflow = self.overflow(TreeKind::MetadataOverflow, map.ref_count_root);
        self.place = "metadata index".to_owned();
        let block = MetaBlock(map.bitmap_root);
        self.metadata.add(block.0);
        self.step();
        let index = self.reader.block(block).and_then(|bytes| decode_index(block, &bytes, INDEX_ENTRIES_MAX));
        let index = match index {
            Ok(index) => index,
            Err(error) => return self.unreadable(block, &error),
        };
        let bitmaps = usize::try_from(map.bitmaps()).expect("at most 255, by the size of the metadata");
        if index[bitmaps..].iter().any(|entry| *entry != IndexEntry::default()) {
            self.add(Severity::Note, block, format!("entries behind the {bitmaps} in use are not zero"));
        }
        if let Some(stored) = self.bitmaps("metadata", &index[..bitmaps], overflow) {
            let counted = std::mem::replace(&mut self.metadata, Tally::new(0));
            self.compare(&stored, &counted);
            self.metadata = counted;
        }
    }

    fn overflow(&mut self, kind: TreeKind, root: u64) -> HashMap<u64, u32> {
        let mut overflow = HashMap::new();
        if self.tree(kind, root, kind.name()).is_some() {
            let read = self.reader.leaves(kind, MetaBlock(root), &mut |leaf| {
                overflow.extend((0..leaf.len()).map(|at| (leaf.keys()[at], leaf.value::<u32>(at))));
                Ok(())
            });
            self.report.incomplete |= read.is_err();
        }
        overflow
    }

    /// Reads the bitmaps of a map; `None` if one of them cannot be read.
    fn bitmaps(
        &mut self,
        name: &'static str,
        entries: &[IndexEntry],
        overflow: HashMap<u64, u32>,
    ) -> Option<StoredMap> {
        let mut bitmaps = Vec::with_capacity(entries.len());
        for (number, &entry) in entries.iter().enumerate() {
            self.place = format!("{name} bitmap {number}");
            let block = MetaBlock(entry.block);
            self.metadata.add(block.0);
            self.step();
            match self.reader.block(block).and_then(|bytes| Bitmap::decode(block, &bytes)) {
                Ok(bitmap) => bitmaps.push((entry, bitmap)),
                Err(error) => self.unreadable(block, &error),
            }
        }
        (bitmaps.len() == entries.len()).then_some(StoredMap { name, bitmaps, overflow })
    }

    fn compare(&mut self, stored: &StoredMap, counted: &Tally) {
        for (number, (entry, bitmap)) in stored.bitmaps.iter().enumerate() {
            self.place = format!("{} bitmap {number}", stored.name);
            let start = number as u64 * ENTRIES_PER_BITMAP;
            let len = usize::try_from((counted.len() - start).min(ENTRIES_PER_BITMAP)).expect("at most 16,320");
            let (counts, beyond) = bitmap.entries.split_at(len);
            if beyond.iter().any(|&count| count != 0) {
                let what = format!("entries beyond the {} blocks of the map are not zero", counted.len());
                self.add(Severity::Leak, MetaBlock(entry.block), what);
            }
            self.judge_hints(entry, counts);
            if !self.report.incomplete {
                self.compare_counts(stored, MetaBlock(entry.block), start, counts, counted);
            }
        }
        self.judge_overflow(stored, counted.len());
        self.place.clear();
    }

    fn compare_counts(&mut self, stored: &StoredMap, bitmap: MetaBlock, start: u64, counts: &[u8], counted: &Tally) {
        for (block, &entry) in (start..).zip(counts) {
            let actual = counted.get(block);
            let count = match entry {
                OVERFLOW => stored.overflow.get(&block).copied().unwrap_or(u32::from(OVERFLOW)),
                small => u32::from(small),
            };
            if count != actual {
                let severity = if count > actual { Severity::Leak } else { Severity::Damage };
                let what = format!("{} block {block} has count {count}, it is referred to {actual} times", stored.name);
                self.add(severity, bitmap, what);
            }
        }
    }

    /// The overflow tree must hold exactly the blocks whose bitmap entry says three or more.
    fn judge_overflow(&mut self, stored: &StoredMap, len: u64) {
        self.place = format!("{} overflow tree", stored.name);
        let entry_of = |block: u64| {
            let bitmap = usize::try_from(block / ENTRIES_PER_BITMAP).ok()?;
            let at = usize::try_from(block % ENTRIES_PER_BITMAP).ok()?;
            (block < len).then(|| stored.bitmaps.get(bitmap).map(|(_, bitmap)| bitmap.entries[at])).flatten()
        };
        for (&block, &count) in &stored.overflow {
            if entry_of(block) != Some(OVERFLOW) || count < u32::from(OVERFLOW) {
                let what = format!("{} block {block} has count {count}, its bitmap says less than three", stored.name);
                self.add(Severity::Damage, None, what);
            }
        }
        let bitmaps = stored.bitmaps.iter().flat_map(|(_, bitmap)| &bitmap.entries);
        for block in (0..len).zip(bitmaps).filter(|(_, entry)| **entry == OVERFLOW).map(|(block, _)| block) {
            if !stored.overflow.contains_key(&block) {
                let what = format!("{} block {block} says three or more and is not in the tree", stored.name);
                self.add(Severity::Damage, None, what);
            }
        }
    }

    /// Hints behind which nothing free is found although there is something are damage. Others are notes: a hint too
    /// low costs a search, and thin_restore 0.9 writes one a little too high, which hides a few entries.
    fn judge_hints(&mut self, entry: &IndexEntry, counts: &[u8]) {
        let block = MetaBlock(entry.block);
        let used = counts.iter().filter(|&&count| count != 0).count() as u64;
        let first_free = counts.iter().position(|&count| count == 0).map(|at| at as u64);
        let (nr_free, hint) = (u64::from(entry.nr_free), u64::from(entry.none_free_before));
        let expected = ENTRIES_PER_BITMAP - used;
        if nr_free != expected {
            let hides = nr_free == 0 && first_free.is_some();
            let severity = if hides || nr_free > ENTRIES_PER_BITMAP { Severity::Damage } else { Severity::Note };
            self.add(severity, block, format!("nr_free of its index entry is {nr_free}, the bitmap has {expected}"));
        }
        let Some(first) = first_free else {
            if hint > ENTRIES_PER_BITMAP {
                self.add(Severity::Note, block, format!("none_free_before of its index entry is {hint}"));
            }
            return;
        };
        if hint != first {
            let last = counts.iter().rposition(|&count| count == 0).map_or(first, |at| at as u64);
            let severity = if hint > last { Severity::Damage } else { Severity::Note };
            let what = format!("none_free_before of its index entry is {hint}, the first free entry is {first}");
            self.add(severity, block, what);
        }
    }
}
