//! Reads thin_dump's XML and lays out metadata that holds what it says.
//!
//! Both forms are read: the flat one of 0.9 and of ours, and that of 1.x, in which parts that devices share stand
//! once as `def` and are named by `ref`. What the file says is held to the limits of the format; a file that breaks
//! off or contradicts itself is refused before anything becomes a pool.

use std::collections::HashMap;
use std::io::BufRead;

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use crate::device::BlockDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{DeviceDetails, Mapping};
use crate::repair::build::{Builder, Frame};
use crate::repair::leaves::Leaves;
use crate::units::{BlockSize, DEVICE_ID_MAX, DataBlock, METADATA_BLOCK_SIZE, METADATA_BLOCKS_MAX, SECTOR_SIZE};

/// What a dump does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoreOptions {
    /// The pool's 16 random bytes; thin_dump leaves them out.
    pub identity: [u8; 16],
}

/// What was laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Restored {
    /// Thin devices.
    pub devices: u64,
    /// Mappings, summed over the devices.
    pub mappings: u64,
    /// Metadata blocks in use.
    pub metadata_blocks: u64,
}

/// A run as the file has it.
#[derive(Debug, Clone, Copy)]
struct Run {
    key: u64,
    mapping: Mapping,
    len: u64,
}

/// A device whose end has not come yet.
struct Open {
    id: u64,
    details: DeviceDetails,
    leaves: Leaves,
}

/// Lays out on `device` the metadata that the XML of `input` tells, in all of the device's room. The content of the
/// device does not matter. Errors: `Invalid` names the place in the file; `OutOfMetadataSpace`; after an error the
/// device holds no pool.
pub fn restore(input: &mut dyn BufRead, device: &dyn BlockDevice, options: &RestoreOptions) -> Result<Restored> {
    device.write_at(&[0; METADATA_BLOCK_SIZE], 0)?;
    let mut reader = Reader::from_reader(input);
    let mut load = Load { device, options, builder: None, defs: HashMap::new(), def: None, open: None, ended: false };
    let mut restored = Restored::default();
    let mut buffer = Vec::new();
    loop {
        buffer.clear();
        let event = reader.read_event_into(&mut buffer);
        let at = reader.buffer_position();
        let place = |e: Error| e.doing(format_args!("restore the dump: byte {at}"));
        match event {
            Err(e) => return Err(place(Error::with_source(ErrorKind::Invalid, "it is no XML", e))),
            Ok(Event::Start(tag)) => load.start(&tag, false, &mut restored).map_err(place)?,
            Ok(Event::Empty(tag)) => load.start(&tag, true, &mut restored).map_err(place)?,
            Ok(Event::End(tag)) => load.end(tag.name().as_ref(), &mut restored).map_err(place)?,
            Ok(Event::Eof) => break,
            // Text between the tags, comments, a declaration: thin_dump has none that means anything.
            Ok(_) => {}
        }
    }
    match load.builder {
        Some(builder) if load.ended => {
            restored.metadata_blocks = builder.finish().map_err(|e| e.doing("restore the dump"))?;
            Ok(restored)
        }
        _ => Err(Error::new(ErrorKind::Invalid, "restore the dump: it breaks off, or is no dump")),
    }
}

struct Load<'a> {
    device: &'a dyn BlockDevice,
    options: &'a RestoreOptions,
    builder: Option<Builder<'a>>,
    /// Shared parts by name.
    defs: HashMap<String, Vec<Run>>,
    /// The part that is being told.
    def: Option<(String, Vec<Run>)>,
    open: Option<Open>,
    ended: bool,
}

fn invalid<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::Invalid, what))
}

/// The attributes of a tag, by name.
fn attributes(tag: &BytesStart<'_>) -> Result<HashMap<String, String>> {
    tag.attributes()
        .map(|attribute| {
            let attribute = attribute.map_err(|e| Error::with_source(ErrorKind::Invalid, "an attribute", e))?;
            Ok((attribute.key.as_ref().to_owned(), attribute.value.into_owned()))
        })
        .collect()
}

struct Tag {
    name: String,
    attributes: HashMap<String, String>,
}

impl Tag {
    fn text(&self, attribute: &str) -> Result<&str> {
        match self.attributes.get(attribute) {
            Some(text) => Ok(text),
            None => invalid(format!("<{}> has no {attribute}", self.name)),
        }
    }

    fn number<T: std::str::FromStr>(&self, attribute: &str) -> Result<T> {
        let text = self.text(attribute)?;
        match text.parse() {
            Ok(number) => Ok(number),
            Err(_) => {
                invalid(format!("{attribute}=\"{}\" of <{}>", text.chars().take(40).collect::<String>(), self.name))
            }
        }
    }
}

impl Load<'_> {
    fn start(&mut self, tag: &BytesStart<'_>, empty: bool, restored: &mut Restored) -> Result<()> {
        let name = tag.name().as_ref().to_owned();
        let tag = Tag { attributes: attributes(tag)?, name: name.clone() };
        if self.ended {
            return invalid(format!("<{name}> comes after the end of the dump"));
        }
        match name.as_str() {
            "superblock" => self.superblock(&tag)?,
            "def" => match self.def {
                None if self.open.is_none() => self.def = Some((tag.text("name")?.to_owned(), Vec::new())),
                _ => return invalid("<def> inside of something else"),
            },
            "device" => self.device(&tag)?,
            "ref" => self.reference(&tag)?,
            "single_mapping" => self.run(Run {
                key: tag.number("origin_block")?,
                mapping: mapping(tag.number("data_block")?, tag.number("time")?),
                len: 1,
            })?,
            "range_mapping" => self.run(Run {
                key: tag.number("origin_begin")?,
                mapping: mapping(tag.number("data_begin")?, tag.number("time")?),
                len: tag.number("length")?,
            })?,
            _ => return invalid(format!("<{}> is unknown", name.chars().take(40).collect::<String>())),
        }
        if empty { self.end(&name, restored) } else { Ok(()) }
    }

    fn end(&mut self, name: &str, restored: &mut Restored) -> Result<()> {
        match name {
            "superblock" => self.ended = true,
            "def" => {
                if let Some((name, runs)) = self.def.take()
                    && self.defs.insert(name.clone(), runs).is_some()
                {
                    return invalid(format!("<def name=\"{name}\"> comes twice"));
                }
            }
            "device" => {
                if let Some(open) = self.open.take() {
                    restored.devices += 1;
                    restored.mappings += open.leaves.count();
                    let id = open.id;
                    return self.close(open).map_err(|e| e.doing(format_args!("device {id}")));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn superblock(&mut self, tag: &Tag) -> Result<()> {
        if self.builder.is_some() {
            return invalid("<superblock> comes twice");
        }
        let data_block_sectors: u32 = tag.number("data_block_size")?;
        BlockSize::from_bytes(u64::from(data_block_sectors) * SECTOR_SIZE)?;
        let optional = |attribute: &str, default: u32| match tag.attributes.contains_key(attribute) {
            true => tag.number(attribute),
            false => Ok(default),
        };
        let frame = Frame {
            identity: self.options.identity,
            flags: optional("flags", 0)?,
            version: optional("version", 2)?,
            time: tag.number("time")?,
            transaction_id: tag.number("transaction")?,
            data_block_sectors,
            data_blocks: tag.number("nr_data_blocks")?,
            metadata_blocks: (self.device.size() / METADATA_BLOCK_SIZE as u64).min(METADATA_BLOCKS_MAX),
            sequence: 1,
        };
        self.builder = Some(Builder::new(self.device, frame)?);
        Ok(())
    }

    fn device(&mut self, tag: &Tag) -> Result<()> {
        let Some(builder) = &self.builder else { return invalid("<device> comes before <superblock>") };
        if self.open.is_some() || self.def.is_some() {
            return invalid("<device> inside of something else");
        }
        let id: u64 = tag.number("dev_id")?;
        if id > u64::from(DEVICE_ID_MAX) || builder.last_device().is_some_and(|last| last >= id) {
            return invalid(format!("device {id} is out of order, or above {DEVICE_ID_MAX}"));
        }
        let details = DeviceDetails {
            mapped_blocks: tag.number("mapped_blocks")?,
            transaction_id: tag.number("transaction")?,
            creation_time: tag.number("creation_time")?,
            snapshotted_time: tag.number("snap_time")?,
        };
        self.open = Some(Open { id, details, leaves: builder.leaves() });
        Ok(())
    }

    fn close(&mut self, open: Open) -> Result<()> {
        let Some(builder) = &mut self.builder else { return Ok(()) };
        let (told, held) = (open.details.mapped_blocks, open.leaves.count());
        if told != held {
            return invalid(format!("mapped_blocks is {told}, the file holds {held}: it was changed or cut"));
        }
        let root = open.leaves.finish(builder)?;
        builder.device(open.id, root, open.details);
        Ok(())
    }

    fn run(&mut self, run: Run) -> Result<()> {
        if let Some((_, runs)) = &mut self.def {
            runs.push(run);
            return Ok(());
        }
        match (&mut self.builder, &mut self.open) {
            (Some(builder), Some(open)) => push(builder, open, run),
            _ => invalid("a mapping outside of a device"),
        }
    }

    fn reference(&mut self, tag: &Tag) -> Result<()> {
        let name = tag.text("name")?;
        let Some(runs) = self.defs.get(name) else {
            return invalid(format!("<ref name=\"{name}\"> names nothing that came before"));
        };
        if let Some((_, into)) = &mut self.def {
            into.extend_from_slice(runs);
            return Ok(());
        }
        match (&mut self.builder, &mut self.open) {
            (Some(builder), Some(open)) => runs.iter().try_for_each(|&run| push(builder, open, run)),
            _ => invalid("<ref> outside of a device"),
        }
    }
}

fn mapping(block: u64, time: u32) -> Mapping {
    Mapping { block: DataBlock(block), time }
}

fn push(builder: &mut Builder<'_>, open: &mut Open, run: Run) -> Result<()> {
    let Run { key, mapping: Mapping { block, time }, len } = run;
    let ends =
        key.checked_add(len).is_some() && block.0.checked_add(len).is_some_and(|end| end <= builder.data_blocks());
    if !ends {
        return invalid(format!("device {}: {len} blocks from {key} on at data block {block} leave the pool", open.id));
    }
    for step in 0..len {
        let mapping = Mapping { block: block.plus(step), time };
        open.leaves.push(builder, key + step, mapping).map_err(|e| e.doing(format_args!("device {}", open.id)))?;
    }
    Ok(())
}
