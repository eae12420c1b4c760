//! Devices: made empty, made as snapshots, listed, and deleted in steps.

use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{DeviceDetails, Node, TreeKind};
use crate::meta::btree::{Place, insert, release, remove};
use crate::meta::metadata::{Device, Metadata};
use crate::meta::room::Reserve;
use crate::meta::transaction::Transaction;
use crate::units::{DeviceId, MetaBlock, TIME_MAX};

impl Metadata {
    /// Number of devices.
    pub fn device_count(&self) -> Result<u64> {
        Ok(self.devices.len() as u64)
    }

    /// All devices, ascending.
    pub fn devices(&self) -> Result<Vec<(DeviceId, DeviceDetails)>> {
        Ok(self.devices.iter().map(|(&id, device)| (id, device.details)).collect())
    }

    /// A device's details, or `None`.
    pub fn find_device(&self, id: DeviceId) -> Result<Option<DeviceDetails>> {
        Ok(self.devices.get(&id).map(|device| device.details))
    }

    /// The device, or `NotFound`.
    pub(in crate::meta) fn get_device(&self, id: DeviceId, doing: &str) -> Result<Device> {
        self.devices
            .get(&id)
            .copied()
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("{doing}: there is no device {id}")))
    }

    fn check_absent(&self, id: DeviceId, doing: &str) -> Result<()> {
        if self.devices.contains_key(&id) {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("{doing}: device {id} exists")));
        }
        Ok(())
    }

    /// New, empty device. Errors: `AlreadyExists`, `OutOfMetadataSpace`, `ReadOnly`.
    pub fn create_thin(&mut self, id: DeviceId) -> Result<()> {
        let doing = format!("create device {id}");
        self.check_writable(&doing)?;
        self.check_absent(id, &doing)?;
        let mut demand = self.demand_device();
        demand.blocks += 1;
        self.check_room(&doing, &demand, Reserve::Keep)?;
        self.alter(|this| {
            let root = this.transaction.new_node(Node::empty_leaf(TreeKind::Mapping.value_size()))?;
            let time = this.superblock.time;
            let details = DeviceDetails {
                mapped_blocks: 0,
                transaction_id: this.superblock.transaction_id,
                creation_time: time,
                snapshotted_time: time,
            };
            this.add_device(id, Device { root, details })
        })
        .map_err(|e| e.doing(doing))
    }

    /// New device sharing all of `origin`; the clock goes up by one. The caller has quiesced the origin. Errors:
    /// `AlreadyExists`, `NotFound`, `OutOfMetadataSpace`, `Unsupported` when the clock is at its end, `ReadOnly`.
    pub fn create_snap(&mut self, id: DeviceId, origin: DeviceId) -> Result<()> {
        let doing = format!("create device {id} as a snapshot of {origin}");
        self.check_writable(&doing)?;
        self.check_absent(id, &doing)?;
        let Device { root, details } = self.get_device(origin, &doing)?;
        if self.superblock.time >= TIME_MAX {
            // A mapping has 24 bits for the clock; one more tick would run into the data block's number.
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{doing}: the snapshot clock is at {TIME_MAX}, its end"),
            ));
        }
        let mut demand = self.demand_device();
        demand.devices += 1;
        demand.metadata_counts += 1;
        self.check_room(&doing, &demand, Reserve::Keep)?;
        self.alter(|this| {
            this.transaction.metadata.inc(root.0)?;
            this.superblock.time += 1;
            let time = this.superblock.time;
            this.change_details(origin, |details| details.snapshotted_time = time);
            let details = DeviceDetails {
                mapped_blocks: details.mapped_blocks,
                transaction_id: this.superblock.transaction_id,
                creation_time: time,
                snapshotted_time: time,
            };
            this.add_device(id, Device { root, details })
        })
        .map_err(|e| e.doing(doing))
    }

    fn add_device(&mut self, id: DeviceId, device: Device) -> Result<()> {
        self.set_top_entry(id, device.root)?;
        self.devices.insert(id, device);
        self.details_changed.insert(id);
        Ok(())
    }

    /// Changes the record of a device that exists.
    pub(in crate::meta) fn change_details(&mut self, id: DeviceId, change: impl FnOnce(&mut DeviceDetails)) {
        if let Some(device) = self.devices.get_mut(&id) {
            change(&mut device.details);
            self.details_changed.insert(id);
        }
    }

    /// Makes the top tree point to `root`; the path to the entry is writable afterwards.
    fn set_top_entry(&mut self, id: DeviceId, root: MetaBlock) -> Result<()> {
        let top = MetaBlock(self.superblock.mapping_root);
        let items = [(u64::from(id.get()), root.0)];
        self.superblock.mapping_root = insert(&mut self.transaction, TreeKind::Top, top, &items)?.root.0;
        Ok(())
    }

    /// Changes a device's mapping tree: `change` gets the root and returns the new one.
    ///
    /// The path to the device in the top tree is copied first. While that path is shared with a held snapshot, the
    /// root's count does not tell of the second way to it; copying the path brings the count up to date.
    pub(in crate::meta) fn with_tree<T>(
        &mut self,
        id: DeviceId,
        device: Device,
        change: impl FnOnce(&mut Transaction, MetaBlock) -> Result<(MetaBlock, T)>,
    ) -> Result<T> {
        // A root made in this generation was entered in a top leaf made in this generation.
        if !self.transaction.is_private(device.root)? {
            self.set_top_entry(id, device.root)?;
        }
        let (root, out) = change(&mut self.transaction, device.root)?;
        if root != device.root {
            self.set_top_entry(id, root)?;
            if let Some(device) = self.devices.get_mut(&id) {
                device.root = root;
            }
        }
        Ok(out)
    }

    /// Removes about `leaf_budget` leaves of the device's mappings, the device itself last. True: it is gone
    /// (or was absent). Every state in between can be committed. Errors: `OutOfMetadataSpace`, `ReadOnly`.
    pub fn delete_step(&mut self, id: DeviceId, leaf_budget: usize) -> Result<bool> {
        let Some(&device) = self.devices.get(&id) else {
            return Ok(true);
        };
        let doing = format!("delete device {id}");
        self.check_writable(&doing)?;
        let budget = leaf_budget.max(1);
        let mut leaves = Vec::new();
        exclusive_leaves(&self.transaction, &Place::root(TreeKind::Mapping, device.root), budget + 1, &mut leaves)
            .map_err(|e| e.doing(&doing))?;
        let last_step = leaves.len() <= budget;
        leaves.truncate(budget);
        let ranges = merged(&leaves);
        let entries = device.details.mapped_blocks.min(leaves.len() as u64 * 252);
        let demand = if last_step {
            self.demand_delete(&device, leaves.len() as u64)
        } else {
            self.demand_remove(&device, ranges.len() as u64, entries)
        };
        self.check_room(&doing, &demand, Reserve::Use)?;
        if last_step {
            self.alter(|this| this.delete_device(id, device)).map_err(|e| e.doing(doing))?;
            return Ok(true);
        }
        self.alter(|this| {
            let count = this.with_tree(id, device, |transaction, mut root| {
                let mut count = 0;
                for range in ranges {
                    let removed = remove(transaction, TreeKind::Mapping, root, range)?;
                    root = removed.root;
                    count += removed.count;
                }
                Ok((root, count))
            })?;
            this.take_mapped(id, count)
        })
        .map_err(|e| e.doing(doing))?;
        Ok(false)
    }

    /// Lowers a device's count of mappings. Errors with `Corrupt` if it was too low before.
    pub(in crate::meta) fn take_mapped(&mut self, id: DeviceId, count: u64) -> Result<()> {
        let mapped = self.get_device(id, "count mappings")?.details.mapped_blocks;
        let left = mapped.checked_sub(count).ok_or_else(|| {
            Error::new(
                ErrorKind::Corrupt,
                format!("device details tree: mapped_blocks {mapped} of device {id} are fewer than its tree holds"),
            )
        })?;
        self.change_details(id, |details| details.mapped_blocks = left);
        Ok(())
    }

    fn delete_device(&mut self, id: DeviceId, device: Device) -> Result<()> {
        let key = u64::from(id.get());
        let top = MetaBlock(self.superblock.mapping_root);
        // The entry goes first: if its leaf was shared, copying it has raised the root's count.
        let removed = remove(&mut self.transaction, TreeKind::Top, top, key..key + 1)?;
        self.superblock.mapping_root = removed.root.0;
        release(&mut self.transaction, &Place::root(TreeKind::Mapping, device.root))?;
        self.devices.remove(&id);
        self.details_changed.insert(id);
        Ok(())
    }
}

/// The key ranges of up to `limit` leaves that nothing else refers to, ascending.
fn exclusive_leaves(
    transaction: &Transaction,
    place: &Place<'_>,
    limit: usize,
    found: &mut Vec<Range<u64>>,
) -> Result<()> {
    if found.len() >= limit || transaction.metadata.get(place.block.0)? > 1 {
        return Ok(());
    }
    let node = place.visit(transaction)?;
    if !node.is_internal() {
        found.push(place.bounds.clone());
        return Ok(());
    }
    for index in 0..node.len() {
        exclusive_leaves(transaction, &place.child(&node, index), limit, found)?;
    }
    Ok(())
}

/// Adjacent ranges become one.
fn merged(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut out: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match out.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => out.push(range.clone()),
        }
    }
    out
}
