//! Tables of the targets `thin-pool` and `thin`: written for the kernel, read back from it.

use crate::error::{Error, ErrorKind, Result};
use crate::kernel::device_number::DeviceNumber;
use crate::kernel::options::{Discards, PoolFeatures, WhenFull};
use crate::units::{BlockSize, ByteCount, DeviceId, SECTOR_SIZE};

/// One line of a table or of a status: first sector, sectors, kind of target, its words.
pub(super) type Line = (u64, u64, String, String);

const POOL: &str = "thin-pool";
const THIN: &str = "thin";

/// The table of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PoolTable {
    pub(super) data_size: ByteCount,
    pub(super) metadata: DeviceNumber,
    pub(super) data: DeviceNumber,
    pub(super) block_size: BlockSize,
    pub(super) features: PoolFeatures,
    /// No change of metadata, as somebody asked for when the pool was started.
    pub(super) read_only: bool,
}

impl PoolTable {
    pub(super) fn line(&self) -> Line {
        let mut features = Vec::new();
        if !self.features.zero_new_blocks {
            features.push("skip_block_zeroing");
        }
        match self.features.discards {
            Discards::PassDown => {}
            Discards::Keep => features.push("no_discard_passdown"),
            Discards::Ignore => features.push("ignore_discard"),
        }
        if self.read_only {
            features.push("read_only");
        }
        if self.features.when_full == WhenFull::Fail {
            features.push("error_if_no_space");
        }
        let Self { metadata, data, .. } = self;
        let (sectors, low_water) = (self.block_size.sectors(), self.features.low_water);
        let mut words = format!("{metadata} {data} {sectors} {low_water} {}", features.len());
        for feature in features {
            words.push(' ');
            words.push_str(feature);
        }
        (0, self.data_size.0 / SECTOR_SIZE, POOL.to_owned(), words)
    }

    /// Reads what the kernel tells. Errors: `Invalid` for the table of anything but a pool.
    pub(super) fn parse(lines: &[Line]) -> Result<Self> {
        read_pool(lines).ok_or_else(|| foreign("thin pool", lines))
    }
}

fn read_pool(lines: &[Line]) -> Option<PoolTable> {
    let [(0, sectors, target, words)] = lines else { return None };
    let mut words = words.split_whitespace();
    if target != POOL {
        return None;
    }
    let metadata = words.next()?.parse().ok()?;
    let data = words.next()?.parse().ok()?;
    let block_sectors: u64 = words.next()?.parse().ok()?;
    let block_size = BlockSize::from_bytes(block_sectors.checked_mul(SECTOR_SIZE)?).ok()?;
    let low_water = words.next()?.parse().ok()?;
    let count: usize = words.next().map_or(Some(0), |word| word.parse().ok())?;
    let mut features =
        PoolFeatures { zero_new_blocks: true, discards: Discards::PassDown, when_full: WhenFull::Wait, low_water };
    let mut read_only = false;
    let mut seen = 0;
    for word in words {
        seen += 1;
        match word {
            "skip_block_zeroing" => features.zero_new_blocks = false,
            "ignore_discard" => features.discards = Discards::Ignore,
            "no_discard_passdown" => features.discards = Discards::Keep,
            "read_only" => read_only = true,
            "error_if_no_space" => features.when_full = WhenFull::Fail,
            _ => return None,
        }
    }
    let data_size = ByteCount(sectors.checked_mul(SECTOR_SIZE)?);
    (seen == count).then_some(PoolTable { data_size, metadata, data, block_size, features, read_only })
}

/// The table of a thin device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ThinTable {
    pub(super) size: ByteCount,
    pub(super) pool: DeviceNumber,
    pub(super) id: DeviceId,
    /// What is read where nothing is mapped: a device that nobody changes.
    pub(super) origin: Option<DeviceNumber>,
}

impl ThinTable {
    pub(super) fn line(&self) -> Line {
        let mut words = format!("{} {}", self.pool, self.id);
        if let Some(origin) = self.origin {
            words.push_str(&format!(" {origin}"));
        }
        (0, self.size.0 / SECTOR_SIZE, THIN.to_owned(), words)
    }

    /// Reads what the kernel tells. Errors: `Invalid` for the table of anything but a thin device.
    pub(super) fn parse(lines: &[Line]) -> Result<Self> {
        read_thin(lines).ok_or_else(|| foreign("thin device", lines))
    }
}

fn read_thin(lines: &[Line]) -> Option<ThinTable> {
    let [(0, sectors, target, words)] = lines else { return None };
    let mut words = words.split_whitespace();
    if target != THIN {
        return None;
    }
    let pool = words.next()?.parse().ok()?;
    let id = DeviceId::new(words.next()?.parse().ok()?).ok()?;
    let origin = words.next().map(str::parse).transpose().ok()?;
    let size = ByteCount(sectors.checked_mul(SECTOR_SIZE)?);
    words.next().is_none().then_some(ThinTable { size, pool, id, origin })
}

fn foreign(what: &str, lines: &[Line]) -> Error {
    let shown = match lines {
        [] => "it is empty".to_owned(),
        [(start, sectors, target, words)] => format!("it is `{start} {sectors} {target} {words}`"),
        _ => format!("it has {} lines, the first of them of the target {}", lines.len(), lines[0].2),
    };
    Error::new(ErrorKind::Invalid, format!("the table is not that of a {what}: {shown}"))
}

#[cfg(test)]
mod tests {
    use super::{Line, PoolTable, ThinTable};
    use crate::error::ErrorKind;
    use crate::kernel::options::{Discards, WhenFull};
    use crate::units::ByteCount;

    fn line(text: &str) -> Vec<Line> {
        let mut words = text.splitn(4, ' ');
        let mut next = || words.next().unwrap_or_default().to_owned();
        let (start, sectors) = (next().parse().unwrap(), next().parse().unwrap());
        vec![(start, sectors, next(), next())]
    }

    #[test]
    fn tables_that_a_kernel_printed_are_read_and_written_the_same() {
        for text in [
            "0 131072 thin-pool 7:0 7:1 128 32 0",
            "0 131072 thin-pool 7:0 7:1 128 0 1 read_only",
            "0 131072 thin-pool 7:0 7:1 128 0 1 no_discard_passdown",
            "0 131072 thin-pool 254:16 254:1048575 2097152 0 2 skip_block_zeroing error_if_no_space",
            "0 131072 thin-pool 7:0 7:1 384 0 1 ignore_discard",
            "0 1280 thin-pool 7:0 7:1 128 0 4 skip_block_zeroing no_discard_passdown read_only error_if_no_space",
        ] {
            let table = PoolTable::parse(&line(text)).unwrap();
            assert_eq!(vec![table.line()], line(text));
        }
        for text in ["0 65536 thin 254:0 0", "0 49 thin 254:3 16777215 7:5"] {
            let table = ThinTable::parse(&line(text)).unwrap();
            assert_eq!(vec![table.line()], line(text));
        }
    }

    #[test]
    fn the_features_of_a_table_are_understood() {
        // As the kernel prints it: with a blank at the end.
        let table = PoolTable::parse(&line("0 131072 thin-pool 7:0 7:1 128 32 0 ")).unwrap();
        assert_eq!((table.data_size, table.block_size.bytes()), (ByteCount(64 << 20), 64 << 10));
        assert_eq!(table.features.discards, Discards::PassDown);
        assert_eq!((table.features.when_full, table.features.low_water), (WhenFull::Wait, 32));
        assert!(table.features.zero_new_blocks && !table.read_only);
    }

    #[test]
    fn foreign_tables_are_refused_with_what_they_are() {
        for text in [
            "0 131072 linear 7:0 0",
            "0 131072 thin-pool 7:0 7:1 128",
            "0 131072 thin-pool 7:0 7:1 127 0 0",
            "0 131072 thin-pool 7:0 /dev/loop1 128 0 0",
            "0 131072 thin-pool 7:0 7:1 128 0 2 read_only",
            "0 131072 thin-pool 7:0 7:1 128 0 1 a_feature_of_tomorrow",
            "8 131072 thin-pool 7:0 7:1 128 0 0",
        ] {
            let error = PoolTable::parse(&line(text)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains(text), "{error}");
        }
        let largest = format!("0 {} thin-pool 7:0 7:1 128 0 0", u64::MAX);
        assert_eq!(PoolTable::parse(&line(&largest)).unwrap_err().kind(), ErrorKind::Invalid);
        for text in ["0 64 thin 254:0 16777216", "0 64 thin 254:0", "0 64 thin 254:0 1 7:0 7:1", "0 64 error "] {
            assert_eq!(ThinTable::parse(&line(text)).unwrap_err().kind(), ErrorKind::Invalid, "{text}");
        }
        let two = [line("0 64 thin 254:0 1"), line("64 64 thin 254:0 2")].concat();
        assert!(ThinTable::parse(&two).unwrap_err().to_string().contains("2 lines"));
        assert!(PoolTable::parse(&[]).unwrap_err().to_string().contains("empty"));
    }
}
