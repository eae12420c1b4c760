//! The metadata of a pool that somebody else is serving, as one view of it: read beside the owner, never locked.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Whence, lseek};

use crate::device::{BlockDevice, check_range};
use crate::error::{Error, ErrorKind, Result};
use crate::status::MetadataView;

/// A metadata file or disk with the view's superblock in place of the one that goes on changing.
pub struct ViewDevice {
    file: File,
    path: PathBuf,
    size: u64,
    superblock: Vec<u8>,
}

impl ViewDevice {
    /// Opens `path`, the metadata of the pool that gave `view`. What is read holds as long as the view: end it
    /// afterwards, and believe nothing unless it was whole. Errors: `NotFound`, `Denied`.
    pub fn open(path: &Path, view: &MetadataView) -> Result<Self> {
        let doing = || format!("open {}", path.display());
        let file = File::open(path).map_err(|e| Error::io(doing(), e))?;
        // The end of a file or of a disk.
        let end = lseek(&file, 0, Whence::SeekEnd).map_err(|e| Error::io(doing(), e.into()))?;
        let size = u64::try_from(end).map_err(|_| Error::new(ErrorKind::Invalid, doing()))?;
        Ok(Self { file, path: path.to_owned(), size, superblock: view.superblock.clone() })
    }

    fn refuse<T>(&self, doing: &str) -> Result<T> {
        Err(Error::new(ErrorKind::ReadOnly, format!("{doing} {}: it is open for reading", self.path.display())))
    }
}

impl BlockDevice for ViewDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(&self.path.display(), self.size, offset, buf.len() as u64)?;
        self.file
            .read_exact_at(buf, offset)
            .map_err(|e| Error::io(format!("read {} bytes of {} at {offset}", buf.len(), self.path.display()), e))?;
        if let Some(own) = usize::try_from(offset).ok().and_then(|at| self.superblock.get(at..)) {
            let len = own.len().min(buf.len());
            buf[..len].copy_from_slice(&own[..len]);
        }
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
        let view = MetadataView { number: 1, superblock: vec![9; 4096] };
        let device = ViewDevice::open(file.path(), &view).unwrap();
        let mut bytes = vec![0; 8192];
        device.read_at(&mut bytes, 0).unwrap();
        assert!(bytes[..4096].iter().all(|&b| b == 9) && bytes[4096..].iter().all(|&b| b == 1));
        device.read_at(&mut bytes[..512], 4096 - 512).unwrap();
        assert!(bytes[..512].iter().all(|&b| b == 9));
        assert_eq!(device.write_at(&[0; 512], 0).unwrap_err().kind(), ErrorKind::ReadOnly);
        assert_eq!(device.read_at(&mut bytes, 8192).unwrap_err().kind(), ErrorKind::Invalid);
    }
}
