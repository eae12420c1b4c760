//! Shows a plain file as a block device through the exporter, until standard input ends: the data path without a
//! pool, for measuring and for trying what a kernel can do.
//!
//!     cargo run --release -p thinsnap-pool --example export_file -- FILE MOUNT_DIR [EVENT_THREADS]

use std::io::Read;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;

use thinsnap_pool::{
    Access, BlockDevice, ByteCount, DeviceId, DirectToken, Direction, Error, ErrorKind, ExportOptions, Exporter,
    Extent, Extents, FileDevice, FuseExporter, Result, Volume,
};

/// A file whose every byte stands where it seems to stand.
struct Plain(FileDevice);

impl BlockDevice for Plain {
    fn size(&self) -> u64 {
        self.0.size()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.0.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.0.write_at(buf, offset)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.0.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.0.write_zeroes(offset, len)
    }
    fn flush(&self) -> Result<()> {
        self.0.flush()
    }
    fn alignment(&self) -> usize {
        self.0.alignment()
    }
}

impl Volume for Plain {
    fn begin_direct(&self, _direction: Direction, offset: u64, len: u32, extents: &mut Extents) -> Option<DirectToken> {
        extents.push(Extent { offset: Some(offset), len }).then_some(DirectToken { first_block: 0, blocks: 0 })
    }
    fn end_direct(&self, _token: DirectToken) {}
    fn data_fd(&self) -> RawFd {
        self.0.raw_fd().expect("a file has a descriptor")
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, dir, rest @ ..] = arguments.as_slice() else {
        return Err(Error::new(ErrorKind::Invalid, "usage: export_file FILE MOUNT_DIR [EVENT_THREADS]"));
    };
    let mut options = ExportOptions::new(dir);
    if let Some(threads) = rest.first().and_then(|text| text.parse().ok()) {
        options.event_threads = threads;
    }
    let volume = Plain(FileDevice::open(Path::new(file))?);
    let size = ByteCount(volume.size());
    let exporter = FuseExporter::start(options)?;
    let path = exporter.attach(DeviceId::new(1)?, Arc::new(volume), size, Access::ReadWrite)?;
    println!("{}", path.display());
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest).map_err(|e| Error::io("wait for the end of standard input", e))?;
    exporter.shutdown()
}
