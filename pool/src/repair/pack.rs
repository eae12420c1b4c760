//! Packs the metadata that is in use into a stream, and lays it out again as it was.
//!
//! A dump forgets which nodes devices share: written out flat, a pool of a thousand containers does not fit into its
//! own metadata any more. So a backup holds the blocks themselves: those that the audit reaches, in order, each
//! with its number and the checksum it has anyway. The stream is not compressed; that is the caller's.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `tspack01` |
//! | 8 | metadata blocks of the pool |
//! | 8 | blocks that follow |
//! | each 8 + 4096 | number, block; block 0 first |
//! | 4 | CRC-32C of all that came before |

use std::io::{Read, Write};

use crate::check::audit_used;
use crate::device::BlockDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{SUPERBLOCK, Superblock, marked_logged, zeroed_block};
use crate::repair::report::hopeless;
use crate::units::{METADATA_BLOCK_SIZE, METADATA_BLOCKS_MAX};

const MAGIC: [u8; 8] = *b"tspack01";

/// What was packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// The pool's identity.
    pub identity: [u8; 16],
    /// The volume manager's number.
    pub transaction_id: u64,
    /// The checksum of the superblock: another one stands for another state.
    pub state: u32,
    /// Thin devices.
    pub devices: u64,
    /// Metadata blocks in use.
    pub blocks: u64,
    /// Metadata blocks of the pool.
    pub metadata_blocks: u64,
}

fn cannot(doing: &str) -> impl Fn(std::io::Error) -> Error {
    move |e| Error::io(doing.to_owned(), e)
}

/// Counts the checksum of what passes.
struct Summed<T> {
    inner: T,
    sum: u32,
}

impl<T: Write> Summed<T> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.sum = crc32c::crc32c_append(self.sum, bytes);
        self.inner.write_all(bytes).map_err(cannot("write the backup"))
    }
}

impl<T: Read> Summed<T> {
    fn get(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.inner.read_exact(bytes).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::new(ErrorKind::Corrupt, "read the backup: it breaks off"),
            _ => cannot("read the backup")(e),
        })?;
        self.sum = crc32c::crc32c_append(self.sum, bytes);
        Ok(())
    }

    fn number(&mut self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.get(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// Writes the metadata of `device` that is in use to `out`. Errors: `Corrupt` if the audit finds damage: a backup of
/// it would push out a good one.
pub fn pack(device: &dyn BlockDevice, out: &mut dyn Write) -> Result<Packed> {
    let (report, used) = audit_used(device, &|_| ())?;
    if !report.is_sound() || report.incomplete {
        let first = report.findings.first().map(ToString::to_string).unwrap_or_default();
        return Err(Error::new(ErrorKind::Corrupt, format!("back up the metadata: it is not sound: {first}")));
    }
    let mut block = zeroed_block();
    device.read_at(&mut block[..], 0)?;
    // A backup is put back without the log that the pool had when it was made.
    let first = marked_logged(&block, false);
    let superblock = Superblock::decode(SUPERBLOCK, &first)?;
    let mut out = Summed { inner: out, sum: 0 };
    out.put(&MAGIC)?;
    out.put(&superblock.metadata_map.nr_blocks.to_le_bytes())?;
    out.put(&used.used().to_le_bytes())?;
    for number in (0..used.len()).filter(|number| used.get(*number) > 0) {
        device.read_at(&mut block[..], number * METADATA_BLOCK_SIZE as u64)?;
        out.put(&number.to_le_bytes())?;
        out.put(if number == 0 { &first[..] } else { &block[..] })?;
    }
    let sum = out.sum;
    out.put(&sum.to_le_bytes())?;
    let state = superblock.encode(SUPERBLOCK)[..4].try_into().map(u32::from_le_bytes).unwrap_or(0);
    Ok(Packed {
        identity: superblock.identity,
        transaction_id: superblock.transaction_id,
        state,
        devices: report.devices,
        blocks: used.used(),
        metadata_blocks: superblock.metadata_map.nr_blocks,
    })
}

/// Lays out the metadata of a stream on the device that `make` gives for so many bytes; what the device holds must
/// read as zeroes. Block 0 is written last. Errors: `Corrupt` if the stream is not whole.
pub fn unpack<D: BlockDevice>(input: &mut dyn Read, make: impl FnOnce(u64) -> Result<D>) -> Result<D> {
    let mut input = Summed { inner: input, sum: 0 };
    let mut magic = [0; 8];
    input.get(&mut magic)?;
    let (total, count) = (input.number()?, input.number()?);
    if magic != MAGIC || total > METADATA_BLOCKS_MAX || count > total || count == 0 {
        return Err(Error::new(ErrorKind::Corrupt, "read the backup: it is none, or its sizes are impossible"));
    }
    let device = make(total * METADATA_BLOCK_SIZE as u64)?;
    let mut first = None;
    let mut block = zeroed_block();
    let mut last = None;
    for _ in 0..count {
        let number = input.number()?;
        if number >= total || last.is_some_and(|last| last >= number) {
            return Err(Error::new(ErrorKind::Corrupt, format!("read the backup: block {number} is out of order")));
        }
        last = Some(number);
        input.get(&mut block[..])?;
        if number == 0 {
            first = Some(block.clone());
        } else {
            device.write_at(&block[..], number * METADATA_BLOCK_SIZE as u64)?;
        }
    }
    let sum = input.sum;
    let mut stored = [0; 4];
    input.get(&mut stored)?;
    let Some(first) = first.filter(|_| u32::from_le_bytes(stored) == sum) else {
        return Err(hopeless("the backup's checksum is wrong"));
    };
    device.flush()?;
    device.write_at(&first[..], 0)?;
    device.flush()?;
    Ok(device)
}
