//! Mappings: looked up, inserted on reserved data blocks, removed.

use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{Mapping, TreeKind};
use crate::meta::btree::{ALL_KEYS, Flow, insert, lookup, remove, span_is_empty, walk};
use crate::meta::metadata::{DataRun, MappedRun, Metadata};
use crate::meta::room::Reserve;
use crate::units::{DataBlock, DeviceId, VirtualBlock};

impl Metadata {
    /// The mapping of one block. Errors: `NotFound` (device), `Corrupt`, `Io`.
    pub fn lookup(&self, id: DeviceId, block: VirtualBlock) -> Result<Option<Mapping>> {
        let device = self.get_device(id, "look up a block")?;
        let found = lookup::<u64>(&self.transaction, TreeKind::Mapping, device.root, block.0)
            .map_err(|e| e.doing(format_args!("look up block {block} of device {id}")))?;
        found.map(|value| self.sound(id, block.0, Mapping::unpack(value))).transpose()
    }

    /// Errors with `Corrupt` if the mapping points beyond the data device.
    pub(in crate::meta) fn sound(&self, id: DeviceId, block: u64, mapping: Mapping) -> Result<Mapping> {
        if mapping.block.0 < self.transaction.data.total() {
            return Ok(mapping);
        }
        Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "mapping tree of device {id}: block {block} is mapped to data block {}, the pool has {}",
                mapping.block,
                self.transaction.data.total()
            ),
        ))
    }

    /// The mappings of a range, as runs, ascending, clipped to the range; gaps are holes.
    pub fn lookup_range(&self, id: DeviceId, range: Range<VirtualBlock>) -> Result<Vec<MappedRun>> {
        let device = self.get_device(id, "look up a range")?;
        let mut runs: Vec<MappedRun> = Vec::new();
        walk(&self.transaction, TreeKind::Mapping, device.root, &(range.start.0..range.end.0), &mut |node, entries| {
            for index in entries {
                let key = node.keys()[index];
                let mapping = self.sound(id, key, Mapping::unpack(node.value(index)))?;
                match runs.last_mut() {
                    Some(run)
                        if run.start.0 + run.len == key
                            && run.mapping.block.0 + run.len == mapping.block.0
                            && run.mapping.time == mapping.time =>
                    {
                        run.len += 1;
                    }
                    _ => runs.push(MappedRun { start: VirtualBlock(key), len: 1, mapping }),
                }
            }
            Ok(Flow::Continue)
        })
        .map_err(|e| e.doing(format_args!("look up a range of device {id}")))?;
        Ok(runs)
    }

    /// The first mapped block of a range. Errors: `NotFound`, `Corrupt`, `Io`.
    pub fn first_mapped(&self, id: DeviceId, range: Range<VirtualBlock>) -> Result<Option<VirtualBlock>> {
        let device = self.get_device(id, "look for a mapped block")?;
        let mut first = None;
        walk(
            &self.transaction,
            TreeKind::Mapping,
            device.root,
            &(range.start.0..range.end.0),
            &mut |node, mut entries| {
                first = entries.next().map(|index| VirtualBlock(node.keys()[index]));
                Ok(Flow::Stop)
            },
        )
        .map_err(|e| e.doing(format_args!("look for a mapped block of device {id}")))?;
        Ok(first)
    }

    /// Reserves up to `want` consecutive data blocks (at least one). A reservation lives in memory only: it
    /// ends with `insert` or `release_data`, or with the process. Errors: `OutOfDataSpace` when nothing is
    /// available; `data_space().pending` tells whether a commit would help.
    pub fn reserve_data(&mut self, want: u64) -> Result<DataRun> {
        self.check_writable("reserve data blocks")?;
        let (start, len) = self.transaction.data.reserve(want).ok_or_else(|| {
            Error::new(
                ErrorKind::OutOfDataSpace,
                format!("reserve data blocks: none of {} is available", self.transaction.data.total()),
            )
        })?;
        Ok(DataRun { start: DataBlock(start), len })
    }

    /// Reserves the first available blocks from `from` on, at most `most`; unlike [`reserve_data`](Self::reserve_data)
    /// it leaves the allocator where it stands. `None`: there are none.
    pub fn reserve_next(&mut self, from: DataBlock, most: u64) -> Option<DataRun> {
        self.check_writable("reserve data blocks").ok()?;
        let (start, len) = self.transaction.data.claim_next(from.0, most)?;
        Some(DataRun { start: DataBlock(start), len })
    }

    /// The first free blocks from `from` on, at most `most`, reserved by nobody and for nobody. `None`: there are none.
    #[must_use]
    pub fn free_data(&self, from: DataBlock, most: u64) -> Option<DataRun> {
        let data = &self.transaction.data;
        let is_free = |block: &u64| data.get(*block).is_ok_and(|count| count == 0) && !data.is_reserved(*block);
        let start = (from.0..data.total()).find(is_free)?;
        let end = (start..data.total().min(start.saturating_add(most))).take_while(is_free).last()?;
        Some(DataRun { start: DataBlock(start), len: end + 1 - start })
    }

    /// Reserves exactly these blocks: for an owner that remembers a reservation of its predecessor. Errors:
    /// `Invalid`, with nothing changed, unless all of them are available.
    pub fn reserve_exactly(&mut self, run: DataRun) -> Result<()> {
        self.check_writable("reserve data blocks")?;
        if self.transaction.data.claim(run.start.0, run.len) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Invalid,
            format!("reserve {} data blocks from {}: not all of them are available", run.len, run.start),
        ))
    }

    /// Gives reserved or committed-free blocks back to the allocator.
    pub fn release_data(&mut self, runs: &[DataRun]) {
        for run in runs {
            for block in run.start.0..run.start.0.saturating_add(run.len) {
                self.transaction.data.release(block);
            }
        }
    }

    /// Maps `run.len` virtual blocks from `start` on to the reserved `run`, at the current time. Mappings
    /// replaced lose their reference. Errors: `NotFound`, `OutOfMetadataSpace`, `ReadOnly`, `Invalid` (a block is
    /// not reserved); nothing changed.
    pub fn insert(&mut self, id: DeviceId, start: VirtualBlock, run: DataRun) -> Result<()> {
        let doing = format!("map {} blocks from {start} on of device {id}", run.len);
        self.check_writable(&doing)?;
        let device = self.get_device(id, &doing)?;
        let sound = start.0.checked_add(run.len).is_some_and(|end| end < ALL_KEYS.end)
            && run.start.0.checked_add(run.len).is_some_and(|end| end <= self.transaction.data.total());
        let blocks = run.start.0..run.start.0.saturating_add(run.len);
        if !sound || !blocks.clone().all(|block| self.transaction.data.is_reserved(block)) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{doing}: the data blocks from {} on are not all reserved", run.start),
            ));
        }
        if run.len == 0 {
            return Ok(());
        }
        self.check_room(&doing, &self.demand_insert(&device, run.len), Reserve::Keep)?;
        let time = self.superblock.time;
        let items: Vec<(u64, u64)> = (start.0..)
            .zip(blocks)
            .map(|(key, block)| (key, Mapping { block: DataBlock(block), time }.pack()))
            .collect();
        self.alter(|this| {
            let added = this.with_tree(id, device, |transaction, root| {
                let inserted = insert(transaction, TreeKind::Mapping, root, &items)?;
                for &(_, value) in &items {
                    transaction.data.adopt(Mapping::unpack(value).block.0);
                }
                for value in inserted.replaced {
                    transaction.data.dec(Mapping::unpack(value).block.0)?;
                }
                Ok((inserted.root, inserted.added))
            })?;
            this.change_details(id, |details| details.mapped_blocks += added);
            Ok(())
        })
        .map_err(|e| e.doing(doing))
    }

    /// Removes the mappings of a range; returns how many there were. Errors: `NotFound`, `OutOfMetadataSpace`
    /// (nothing changed), `ReadOnly`.
    pub fn remove_range(&mut self, id: DeviceId, range: Range<VirtualBlock>) -> Result<u64> {
        let doing = format!("remove the mappings {}..{} of device {id}", range.start, range.end);
        self.check_writable(&doing)?;
        let device = self.get_device(id, &doing)?;
        let keys = range.start.0..range.end.0;
        if keys.is_empty()
            || span_is_empty(&self.transaction, TreeKind::Mapping, device.root, &keys).map_err(|e| e.doing(&doing))?
        {
            return Ok(0);
        }
        let count = (keys.end - keys.start).min(device.details.mapped_blocks);
        self.check_room(&doing, &self.demand_remove(&device, 1, count), Reserve::Half)?;
        self.alter(|this| {
            let count = this.with_tree(id, device, |transaction, root| {
                let removed = remove(transaction, TreeKind::Mapping, root, keys)?;
                Ok((removed.root, removed.count))
            })?;
            this.take_mapped(id, count)?;
            Ok(count)
        })
        .map_err(|e| e.doing(doing))
    }
}
