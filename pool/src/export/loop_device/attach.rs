//! A loop device from binding to letting go.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use loopdev::LoopControl;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::device::limit_dirty;
use crate::error::{Error, ErrorKind, Result};
use crate::export::loop_device::configure::{configure, flags, free_number, keep_bound};
use crate::export::loop_device::sysfs::backing_file;
use crate::thin_pool::Access;

/// Bindings tried when other programs take free devices at the same time.
const TRIES_MAX: usize = 64;
/// The loop driver's major number.
const MAJOR: u64 = 7;

/// What to bind.
pub(in crate::export) struct AttachOptions<'a> {
    /// The file, open for what `access` needs.
    pub(in crate::export) file: &'a File,
    /// Its path, for people who look at the device.
    pub(in crate::export) path: &'a Path,
    pub(in crate::export) access: Access,
    /// Bytes in a logical block: what direct I/O on the data below needs, at least 512.
    pub(in crate::export) block_size: u32,
}

/// A loop device that was bound to a file of ours. Letting go is the exporter's decision, not this value's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::export) struct LoopDevice {
    number: u32,
    file: PathBuf,
}

impl LoopDevice {
    /// Binds a free device to the file.
    pub(in crate::export) fn attach(options: &AttachOptions<'_>) -> Result<Self> {
        let control = LoopControl::open().map_err(|e| match e.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Error::with_source(
                ErrorKind::Unsupported,
                "open /dev/loop-control: this kernel or container has no loop devices (load the module loop, pass \
                 the device in)",
                e,
            ),
            _ => Error::io("open /dev/loop-control", e),
        })?;
        for _ in 0..TRIES_MAX {
            let number = free_number(&control).map_err(|e| Error::io("find a free loop device", e))?;
            let fail = |e: io::Error| Error::io(format!("bind /dev/loop{number} to {}", options.path.display()), e);
            let device = open_node(number).map_err(fail)?;
            let name = options.path.to_string_lossy();
            let read_only = options.access == Access::ReadOnly;
            match configure(&device, options.file.as_raw_fd(), &name, options.block_size, read_only) {
                Ok(()) => {}
                // Another program took it between the two calls.
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => continue,
                Err(e) => return Err(fail(e)),
            }
            if !flags(&device).map_err(fail)?.direct_io {
                tracing::warn!("the kernel refused direct I/O for /dev/loop{number}: data is cached twice");
            }
            let bound = Self { number, file: options.path.to_path_buf() };
            bound.write_as_usual();
            return Ok(bound);
        }
        Err(Error::new(ErrorKind::InUse, format!("bind a loop device: others took {TRIES_MAX} free ones before us")))
    }

    /// The device with this number, which is bound to `file`.
    pub(in crate::export) fn known(number: u32, file: PathBuf) -> Self {
        Self { number, file }
    }

    pub(in crate::export) fn number(&self) -> u32 {
        self.number
    }

    /// As in `/sys/block`.
    pub(in crate::export) fn name(&self) -> String {
        format!("loop{}", self.number)
    }

    /// `/dev/loopN`.
    pub(in crate::export) fn path(&self) -> PathBuf {
        node_path(self.number)
    }

    /// True while the device is bound to our file, and not to somebody else's after we let go.
    pub(in crate::export) fn is_bound(&self) -> bool {
        backing_file(self.number).as_ref() == Some(&self.file)
    }

    /// Lets the file go: at once if nobody has the device open, else when the last opener closes it.
    pub(in crate::export) fn detach(&self) -> Result<()> {
        if !self.is_bound() {
            return Ok(());
        }
        let fail = |e: io::Error| Error::io(format!("free {}", self.path().display()), e);
        let device = loopdev::LoopDevice::open(self.path()).map_err(fail)?;
        self.write_as_usual();
        match device.detach() {
            Err(e) if e.raw_os_error() != Some(libc::ENXIO) => Err(fail(e)),
            _ => Ok(()),
        }
    }

    /// Takes a limit of dirty pages away, which the number would keep for its next file.
    fn write_as_usual(&self) {
        if let Err(error) = limit_dirty(&self.path(), None) {
            tracing::debug!("cannot tell whether {} has a limit of dirty pages: {error}", self.path().display());
        }
    }

    /// Takes `detach` back. False: too late, the device is free or about to be.
    pub(in crate::export) fn keep(&self) -> Result<bool> {
        let fail = |e: io::Error| Error::io(format!("keep {}", self.path().display()), e);
        // While we have it open it is not freed: what is bound here stays bound.
        let device = loopdev::LoopDevice::open(self.path()).map_err(fail)?;
        if !self.is_bound() {
            return Ok(false);
        }
        match keep_bound(&device).and_then(|()| flags(&device)) {
            Ok(flags) => Ok(!flags.autoclear),
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Ok(false),
            Err(e) => Err(fail(e)),
        }
    }

    /// Takes over the file's size.
    pub(in crate::export) fn resize(&self) -> Result<()> {
        let fail = |e: io::Error| Error::io(format!("resize {}", self.path().display()), e);
        loopdev::LoopDevice::open(self.path()).and_then(|device| device.set_capacity()).map_err(fail)
    }
}

fn node_path(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

/// Opens the device's node, made first where nobody else makes nodes (a container without udev or devtmpfs).
fn open_node(number: u32) -> io::Result<loopdev::LoopDevice> {
    let path = node_path(number);
    match loopdev::LoopDevice::open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let mode = Mode::S_IRUSR | Mode::S_IWUSR;
            match mknod(&path, SFlag::S_IFBLK, mode, makedev(MAJOR, u64::from(number))) {
                Ok(()) | Err(nix::errno::Errno::EEXIST) => loopdev::LoopDevice::open(&path),
                Err(errno) => Err(errno.into()),
            }
        }
        other => other,
    }
}
