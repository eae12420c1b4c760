//! Checks that no device takes a shared block for its own.
//!
//! A write goes in place if its mapping is not older than the device's last snapshot. So a block that another leaf
//! or another device refers to must be mapped at a time before that, or a write would change both. A subtree that
//! is shared as a whole is judged by its newest mapping and not entered.

use crate::check::audit::Audit;
use crate::check::report::Severity;
use crate::format::{Mapping, TreeKind};
use crate::units::MetaBlock;

impl Audit<'_> {
    /// Judges the live tree of one device. Only after a complete search without a held snapshot, which refers to
    /// blocks by no rule of the clock.
    pub(in crate::check) fn ownership(&mut self, id: u64, block: MetaBlock, snapshotted_time: u32) {
        self.place = format!("device {id}: mapping tree");
        self.path.push(block);
        self.judge(block, snapshotted_time);
        self.path.pop();
    }

    fn judge(&mut self, block: MetaBlock, snapshotted_time: u32) {
        let shared = self.metadata.get(block.0) > 1;
        if let Some(summary) = self.seen.get(&block)
            && (shared || summary.newest < snapshotted_time)
        {
            if shared && summary.entries > 0 && summary.newest >= snapshotted_time {
                let what = format!(
                    "a shared node holds a mapping of time {}, not before the device's snapshotted_time \
                     {snapshotted_time}",
                    summary.newest
                );
                self.add(Severity::Damage, block, what);
            }
            return;
        }
        let Ok(node) = self.reader.node(TreeKind::Mapping, block) else {
            return;
        };
        if node.is_internal() {
            for index in 0..node.len() {
                let child = node.child(index);
                self.path.push(child);
                self.judge(child, snapshotted_time);
                self.path.pop();
            }
            return;
        }
        for index in 0..node.len() {
            let mapping = Mapping::unpack(node.value(index));
            if mapping.time >= snapshotted_time && self.data.get(mapping.block.0) > 1 {
                let what = format!(
                    "block {} is mapped to the shared data block {} at time {}, not before the device's \
                     snapshotted_time {snapshotted_time}",
                    node.keys()[index],
                    mapping.block,
                    mapping.time
                );
                self.add(Severity::Damage, block, what);
            }
        }
    }
}
