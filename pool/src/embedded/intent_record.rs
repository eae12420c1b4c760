//! One record of the intent log: a change of the metadata that was acknowledged before its commit. No I/O.

use crate::meta::DataRun;
use crate::units::{DataBlock, DeviceId, VirtualBlock};

/// 64-bit words of a record.
pub(super) const RECORD_WORDS: usize = 6;

const KIND_MAP: u32 = 1;
const KIND_UNMAP: u32 = 2;
const KIND_GROW_DATA: u32 = 3;
const KIND_GROW_METADATA: u32 = 4;

/// What happened to the metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntentChange {
    /// Virtual blocks from `start` on were mapped to `run`, whose bytes had been written.
    Map {
        /// The device.
        device: DeviceId,
        /// The first virtual block.
        start: VirtualBlock,
        /// As many data blocks as virtual ones.
        run: DataRun,
    },
    /// `len` virtual blocks from `start` on lost their mappings, of which there were `removed`.
    Unmap {
        /// The device.
        device: DeviceId,
        /// The first virtual block.
        start: VirtualBlock,
        /// Virtual blocks.
        len: u64,
        /// Mappings among them.
        removed: u64,
    },
    /// The data space was grown to `blocks` in all.
    GrowData {
        /// Data blocks of the pool.
        blocks: u64,
    },
    /// The metadata space was grown to `blocks` in all.
    GrowMetadata {
        /// Metadata blocks of the pool.
        blocks: u64,
    },
}

/// The words of a record.
pub(super) fn encode(sequence: u64, change: &IntentChange) -> [u64; RECORD_WORDS] {
    let (kind, device, start, data, len) = match *change {
        IntentChange::Map { device, start, run } => (KIND_MAP, device.get(), start.0, run.start.0, run.len),
        IntentChange::Unmap { device, start, len, removed } => (KIND_UNMAP, device.get(), start.0, removed, len),
        IntentChange::GrowData { blocks } => (KIND_GROW_DATA, 0, 0, blocks, 0),
        IntentChange::GrowMetadata { blocks } => (KIND_GROW_METADATA, 0, 0, blocks, 0),
    };
    let head = [sequence, start, data, len, u64::from(device) | u64::from(kind) << 32];
    let [a, b, c, d, e] = head;
    [a, b, c, d, e, seal(&head)]
}

/// The record at a place where number `sequence` belongs. Errors: what is wrong with it.
pub(super) fn decode(sequence: u64, words: &[u64; RECORD_WORDS]) -> Result<IntentChange, String> {
    let [found, start, data, len, device_and_kind, sum] = *words;
    if sum != seal(&words[..RECORD_WORDS - 1]) {
        return Err("its checksum is wrong".to_owned());
    }
    if found != sequence {
        return Err(format!("it carries the number {found}"));
    }
    let [low, high] = [device_and_kind & u64::from(u32::MAX), device_and_kind >> 32];
    let device = || {
        let number = u32::try_from(low).map_err(|e| e.to_string())?;
        DeviceId::new(number).map_err(|e| e.to_string())
    };
    if start.checked_add(len).is_none() || data.checked_add(len).is_none() {
        return Err("its blocks reach past the last number".to_owned());
    }
    match u32::try_from(high) {
        Ok(KIND_MAP) if len > 0 => {
            let run = DataRun { start: DataBlock(data), len };
            Ok(IntentChange::Map { device: device()?, start: VirtualBlock(start), run })
        }
        Ok(KIND_UNMAP) if data > 0 && data <= len => {
            Ok(IntentChange::Unmap { device: device()?, start: VirtualBlock(start), len, removed: data })
        }
        Ok(KIND_GROW_DATA) => Ok(IntentChange::GrowData { blocks: data }),
        Ok(KIND_GROW_METADATA) => Ok(IntentChange::GrowMetadata { blocks: data }),
        _ => Err(format!("it is of kind {high} with a length of {len}, which means nothing")),
    }
}

/// The checksum of some words, as a word: CRC-32C, and its complement above it, so that no row of zeroes passes.
pub(super) fn seal(words: &[u64]) -> u64 {
    let mut sum = 0;
    for word in words {
        sum = crc32c::crc32c_append(sum, &word.to_le_bytes());
    }
    u64::from(sum) | u64::from(!sum) << 32
}

#[cfg(test)]
mod tests {
    use super::{IntentChange, decode, encode};
    use crate::meta::DataRun;
    use crate::units::{DataBlock, DeviceId, VirtualBlock};

    fn changes() -> [IntentChange; 4] {
        let device = DeviceId::new(0xff_fffe).unwrap();
        let run = DataRun { start: DataBlock(1 << 39), len: 3 };
        [
            IntentChange::Map { device, start: VirtualBlock(7), run },
            IntentChange::Unmap { device, start: VirtualBlock(1 << 40), len: 16_384, removed: 9 },
            IntentChange::GrowData { blocks: 12 },
            IntentChange::GrowMetadata { blocks: 600 },
        ]
    }

    #[test]
    fn every_kind_of_record_comes_back_and_only_in_its_place() {
        for change in changes() {
            assert_eq!(decode(77, &encode(77, &change)), Ok(change));
            assert!(decode(78, &encode(77, &change)).is_err());
        }
        assert!(decode(0, &[0; 6]).is_err(), "what was never written is no record");
    }

    #[test]
    fn no_flipped_bit_passes() {
        for change in changes() {
            let sound = encode(5, &change);
            for bit in 0..6 * 64 {
                let mut words = sound;
                words[bit / 64] ^= 1 << (bit % 64);
                assert!(decode(5, &words).is_err(), "bit {bit} of {change:?}");
            }
        }
    }
}
