//! Prints the mappings as XML that thin_restore reads, and thin_dump of the same version prints.
//!
//! Every device stands for itself: nodes shared on disk are printed once for each device, so a restored pool has
//! the same mappings but shares data blocks only, not nodes.

use std::collections::HashMap;
use std::io::Write;

use crate::check::reader::{Reader, read_superblock};
use crate::device::BlockDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{DeviceDetails, Mapping, Superblock, TreeKind};
use crate::units::{METADATA_BLOCK_SIZE, METADATA_BLOCKS_MAX, MetaBlock};

/// DumpSource trees are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DumpSource {
    /// The pool as it is.
    Live,
    /// The held metadata snapshot.
    Held,
}

/// Writes the devices and mappings of the metadata on `device`. Errors: `NotFound` (no pool; nothing is held),
/// `Corrupt`, `Io`.
pub fn dump(device: &dyn BlockDevice, which: DumpSource, out: &mut dyn Write) -> Result<()> {
    read(device, which, out).map_err(|e| e.doing("dump the metadata"))
}

fn read(device: &dyn BlockDevice, which: DumpSource, out: &mut dyn Write) -> Result<()> {
    let (live, _) = read_superblock(device)?;
    let limit = METADATA_BLOCKS_MAX.min(device.size() / METADATA_BLOCK_SIZE as u64);
    let reader = Reader::new(device, live.metadata_map.nr_blocks.min(limit));
    let superblock = match which {
        DumpSource::Live => live,
        DumpSource::Held if live.held_root == 0 => {
            return Err(Error::new(ErrorKind::NotFound, "no metadata snapshot is held"));
        }
        DumpSource::Held => {
            let block = MetaBlock(live.held_root);
            Superblock::decode(block, &*reader.block(block)?)?
        }
    };
    print(&reader, &superblock, out)
}

fn print(reader: &Reader<'_>, superblock: &Superblock, out: &mut dyn Write) -> Result<()> {
    let mut devices: HashMap<u64, DeviceDetails> = HashMap::new();
    reader.leaves(TreeKind::Details, MetaBlock(superblock.details_root), &mut |leaf| {
        devices.extend((0..leaf.len()).map(|at| (leaf.keys()[at], leaf.value(at))));
        Ok(())
    })?;
    let mut roots = Vec::new();
    reader.leaves(TreeKind::Top, MetaBlock(superblock.mapping_root), &mut |leaf| {
        roots.extend((0..leaf.len()).map(|at| (leaf.keys()[at], MetaBlock(leaf.value(at)))));
        Ok(())
    })?;
    let mut printer = Printer { out, run: None };
    // The identity is binary and no other program's business: the attribute stays empty.
    printer.line(format_args!(
        "<superblock uuid=\"\" time=\"{}\" transaction=\"{}\" flags=\"{}\" version=\"{}\" data_block_size=\"{}\" \
         nr_data_blocks=\"{}\">",
        superblock.time,
        superblock.transaction_id,
        superblock.flags,
        superblock.version,
        superblock.data_block_sectors,
        superblock.data_map.nr_blocks
    ))?;
    for (id, root) in roots {
        let Some(details) = devices.get(&id) else {
            return Err(Error::new(ErrorKind::Corrupt, format!("device {id} is not in the device details tree")));
        };
        printer.line(format_args!(
            "  <device dev_id=\"{id}\" mapped_blocks=\"{}\" transaction=\"{}\" creation_time=\"{}\" snap_time=\"{}\">",
            details.mapped_blocks, details.transaction_id, details.creation_time, details.snapshotted_time
        ))?;
        reader
            .leaves(TreeKind::Mapping, root, &mut |leaf| {
                for (&key, value) in leaf.keys().iter().zip(leaf.words()) {
                    printer.mapping(key, Mapping::unpack(value))?;
                }
                Ok(())
            })
            .map_err(|e| e.doing(format_args!("device {id}")))?;
        printer.end_run()?;
        printer.line(format_args!("  </device>"))?;
    }
    printer.line(format_args!("</superblock>"))
}

/// Collects mappings side by side into runs.
struct Printer<'a> {
    out: &'a mut dyn Write,
    run: Option<(u64, Mapping, u64)>,
}

impl Printer<'_> {
    fn line(&mut self, line: std::fmt::Arguments<'_>) -> Result<()> {
        writeln!(self.out, "{line}").map_err(|e| Error::io("write the dump", e))
    }

    fn mapping(&mut self, key: u64, mapping: Mapping) -> Result<()> {
        if let Some((start, first, len)) = &mut self.run
            && *start + *len == key
            && first.block.0 + *len == mapping.block.0
            && first.time == mapping.time
        {
            *len += 1;
            return Ok(());
        }
        self.end_run()?;
        self.run = Some((key, mapping, 1));
        Ok(())
    }

    fn end_run(&mut self) -> Result<()> {
        match self.run.take() {
            None => Ok(()),
            Some((key, Mapping { block, time }, 1)) => self.line(format_args!(
                "    <single_mapping origin_block=\"{key}\" data_block=\"{block}\" time=\"{time}\"/>"
            )),
            Some((key, Mapping { block, time }, len)) => self.line(format_args!(
                "    <range_mapping origin_begin=\"{key}\" data_begin=\"{block}\" length=\"{len}\" time=\"{time}\"/>"
            )),
        }
    }
}
