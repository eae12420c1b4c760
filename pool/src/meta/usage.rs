//! What a device holds, what it alone holds, and where two devices differ.

use crate::error::Result;
use crate::format::{Mapping, TreeKind};
use crate::meta::btree::{Place, diff};
use crate::meta::metadata::{Device, Metadata};
use crate::status::{ChangedRange, DeviceUsage};
use crate::units::{ByteCount, DeviceId, MetaBlock, VirtualBlock};

/// Blocks of each sort.
#[derive(Debug, Default)]
struct Tally {
    mapped: u64,
    exclusive: u64,
    written: u64,
}

impl Metadata {
    /// Exact usage of a device in blocks, as bytes; walks its tree once. Errors: `NotFound`, `Corrupt`, `Io`.
    ///
    /// A block is exclusive if deleting the device would free it: every node on the way from the superblock to its
    /// leaf has one owner, and so has the block. A count of one alone does not say that, because devices that share
    /// a leaf share its blocks at a count of one.
    pub fn usage(&self, id: DeviceId) -> Result<DeviceUsage> {
        let device = self.get_device(id, "measure usage")?;
        let mut tally = Tally::default();
        self.entry_is_exclusive(id)
            .and_then(|exclusive| {
                let place = Place::root(TreeKind::Mapping, device.root);
                self.tally(&place, exclusive, &device, &mut tally)
            })
            .map_err(|e| e.doing(format_args!("measure usage of device {id}")))?;
        let bytes = |blocks: u64| ByteCount(blocks.saturating_mul(self.block_size.bytes()));
        Ok(DeviceUsage {
            mapped: bytes(tally.mapped),
            exclusive: bytes(tally.exclusive),
            shared: bytes(tally.mapped - tally.exclusive),
            written: bytes(tally.written),
        })
    }

    /// True if every node from the top root down to the device's entry has one owner: no held snapshot shares it.
    fn entry_is_exclusive(&self, id: DeviceId) -> Result<bool> {
        let key = u64::from(id.get());
        self.path_is_exclusive(&Place::root(TreeKind::Top, MetaBlock(self.superblock.mapping_root)), key)
    }

    fn path_is_exclusive(&self, place: &Place<'_>, key: u64) -> Result<bool> {
        if self.transaction.metadata.get(place.block.0)? > 1 {
            return Ok(false);
        }
        let node = place.visit(&self.transaction)?;
        match node.lower_bound(key) {
            Some(index) if node.is_internal() => self.path_is_exclusive(&place.child(&node, index), key),
            Some(_) | None => Ok(true),
        }
    }

    fn tally(&self, place: &Place<'_>, above: bool, device: &Device, tally: &mut Tally) -> Result<()> {
        let exclusive = above && self.transaction.metadata.get(place.block.0)? == 1;
        let node = place.visit(&self.transaction)?;
        if node.is_internal() {
            for index in 0..node.len() {
                self.tally(&place.child(&node, index), exclusive, device, tally)?;
            }
            return Ok(());
        }
        for value in node.words() {
            let mapping = Mapping::unpack(value);
            tally.mapped += 1;
            if mapping.time >= device.details.creation_time {
                tally.written += 1;
            }
            if exclusive && self.transaction.data.get(mapping.block.0)? == 1 {
                tally.exclusive += 1;
            }
        }
        Ok(())
    }

    /// Where two devices differ, ascending; skips what they share. Errors: `NotFound`, `Corrupt`, `Io`.
    pub fn delta(&self, from: DeviceId, to: DeviceId) -> Result<Vec<ChangedRange>> {
        let doing = format!("compare device {from} with {to}");
        let (a, b) = (self.get_device(from, &doing)?, self.get_device(to, &doing)?);
        let differences = diff(&self.transaction, a.root, b.root).map_err(|e| e.doing(doing))?;
        let mut ranges: Vec<ChangedRange> = Vec::new();
        let block_of = |value: Option<u64>| value.map(|value| Mapping::unpack(value).block);
        for difference in differences {
            // The same data block mapped at another time is no difference to a reader.
            if block_of(difference.from) == block_of(difference.to) {
                continue;
            }
            let mapped = difference.to.is_some();
            match ranges.last_mut() {
                Some(range) if range.start.0 + range.len == difference.key && range.mapped == mapped => range.len += 1,
                _ => ranges.push(ChangedRange { start: VirtualBlock(difference.key), len: 1, mapped }),
            }
        }
        Ok(ranges)
    }
}
