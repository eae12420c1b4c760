//! The metadata of a pool that somebody else is serving, as one view of it: read beside the owner, never locked.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Whence, lseek};

use crate::device::{BlockDevice, FileDevice, check_range};
use crate::error::{Error, ErrorKind, Result};
use crate::status::MetadataView;
use crate::units::METADATA_BLOCK_SIZE;

/// What a view is read from.
enum Source {
    File(File),
    /// Past the page cache: the kernel's dm-thin writes below it.
    Disk(FileDevice),
}

/// A metadata file or disk with the view's own blocks in place of those that go on changing.
pub struct ViewDevice {
    source: Source,
    path: PathBuf,
    size: u64,
    copies: BTreeMap<u64, Vec<u8>>,
}

impl ViewDevice {
    /// Opens `path`, the metadata of the pool that gave `view`. What is read holds as long as the view: end it
    /// afterwards, and believe nothing unless it was whole. Errors: `NotFound`, `Denied`.
    pub fn open(path: &Path, view: &MetadataView) -> Result<Self> {
        let doing = || format!("open {}", path.display());
        let seen = path.metadata().map_err(|e| Error::io(doing(), e))?;
        let (source, size) = if seen.file_type().is_block_device() {
            let disk = FileDevice::open_beside(path, false)?;
            let size = disk.size();
            (Source::Disk(disk), size)
        } else {
            let file = File::open(path).map_err(|e| Error::io(doing(), e))?;
            let end = lseek(&file, 0, Whence::SeekEnd).map_err(|e| Error::io(doing(), e.into()))?;
            (Source::File(file), u64::try_from(end).map_err(|_| Error::new(ErrorKind::Invalid, doing()))?)
        };
        let mut copies = view.copies.clone();
        copies.insert(0, view.superblock.clone());
        Ok(Self { source, path: path.to_owned(), size, copies })
    }

    fn refuse<T>(&self, doing: &str) -> Result<T> {
        Err(Error::new(ErrorKind::ReadOnly, format!("{doing} {}: it is open for reading", self.path.display())))
    }

    /// Lays the view's own blocks over what was read at `offset`.
    fn lay_over(&self, buf: &mut [u8], offset: u64) {
        let block = METADATA_BLOCK_SIZE as u64;
        let end = offset.saturating_add(buf.len() as u64);
        for (number, copy) in self.copies.range(offset / block..end.div_ceil(block)) {
            let (start, stop) = ((number * block).max(offset), ((number + 1) * block).min(end));
            let within = |at: u64, from: u64| usize::try_from(at - from).unwrap_or(usize::MAX);
            let own = copy.get(within(start, number * block)..within(stop, number * block));
            let place = buf.get_mut(within(start, offset)..within(stop, offset));
            if let (Some(own), Some(place)) = (own, place) {
                place.copy_from_slice(own);
            }
        }
    }
}

impl BlockDevice for ViewDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(&self.path.display(), self.size, offset, buf.len() as u64)?;
        match &self.source {
            Source::File(file) => file.read_exact_at(buf, offset).map_err(|e| {
                Error::io(format!("read {} bytes of {} at {offset}", buf.len(), self.path.display()), e)
            })?,
            Source::Disk(disk) => disk.read_at(buf, offset)?,
        }
        self.lay_over(buf, offset);
        Ok(())
    }

    fn write_at(&self, _buf: &[u8], _offset: u64) -> Result<()> {
        self.refuse("write")
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        self.refuse("discard")
    }

    fn write_zeroes(&self, _offset: u64, _len: u64) -> Result<()> {
        self.refuse("write")
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::ViewDevice;
    use crate::device::BlockDevice;
    use crate::error::ErrorKind;
    use crate::status::MetadataView;

    #[test]
    fn a_view_keeps_its_own_superblock_and_reads_the_rest_from_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [1; 3 * 4096]).unwrap();
        let copies = [(2, vec![8; 4096])].into();
        let view = MetadataView { number: 1, superblock: vec![9; 4096], copies };
        let device = ViewDevice::open(file.path(), &view).unwrap();
        let mut bytes = vec![0; 8192];
        device.read_at(&mut bytes, 0).unwrap();
        assert!(bytes[..4096].iter().all(|&b| b == 9) && bytes[4096..].iter().all(|&b| b == 1));
        device.read_at(&mut bytes, 4096).unwrap();
        assert!(bytes[..4096].iter().all(|&b| b == 1) && bytes[4096..].iter().all(|&b| b == 8));
        device.read_at(&mut bytes[..1024], 8192 - 512).unwrap();
        assert!(bytes[..512].iter().all(|&b| b == 1) && bytes[512..1024].iter().all(|&b| b == 8));
        device.read_at(&mut bytes[..512], 4096 - 512).unwrap();
        assert!(bytes[..512].iter().all(|&b| b == 9));
        assert_eq!(device.write_at(&[0; 512], 0).unwrap_err().kind(), ErrorKind::ReadOnly);
        assert_eq!(device.read_at(&mut bytes, 8192).unwrap_err().kind(), ErrorKind::Invalid);
    }
}
