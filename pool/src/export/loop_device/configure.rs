//! The loop driver's calls that the `loopdev` crate does not have.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

/// Writes are refused.
const READ_ONLY: u32 = 1;
/// The device lets its file go when its last opener closes it.
const AUTOCLEAR: u32 = 4;
/// The file is read and written without the page cache.
const DIRECT_IO: u32 = 16;

/// `struct loop_info64` of the kernel's interface.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    real_device: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of the kernel's interface.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Info>() == 232 && size_of::<Config>() == 304, "sizes of the kernel's interface");

nix::ioctl_none_bad!(loop_get_free, 0x4C82);
nix::ioctl_write_ptr_bad!(loop_configure, 0x4C0A, Config);
nix::ioctl_write_ptr_bad!(loop_set_status, 0x4C04, Info);
nix::ioctl_read_bad!(loop_get_status, 0x4C05, Info);

impl Info {
    fn empty() -> Self {
        Self {
            device: 0,
            inode: 0,
            real_device: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: 0,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}

/// The number of a loop device that is free at this moment; the driver makes one if none is.
pub(super) fn free_number(control: &impl AsRawFd) -> io::Result<u32> {
    // SAFETY: the call takes no argument and touches no memory.
    let number = unsafe { loop_get_free(control.as_raw_fd()) }?;
    u32::try_from(number).map_err(io::Error::other)
}

/// Binds `file` to the loop device in one step, with direct I/O. Errors: `EBUSY` if somebody was faster.
pub(super) fn configure(
    device: &impl AsRawFd,
    file: RawFd,
    name: &str,
    block_size: u32,
    read_only: bool,
) -> io::Result<()> {
    let mut info = Info::empty();
    info.flags = DIRECT_IO | if read_only { READ_ONLY } else { 0 };
    // The last byte stays 0.
    for (to, from) in info.file_name[..63].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    let fd = u32::try_from(file).map_err(io::Error::other)?;
    let config = Config { fd, block_size, info, reserved: [0; 8] };
    // SAFETY: `config` has the layout that the driver reads, and lives through the call.
    unsafe { loop_configure(device.as_raw_fd(), &raw const config) }?;
    Ok(())
}

/// What a bound loop device is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flags {
    pub(super) autoclear: bool,
    pub(super) direct_io: bool,
}

/// Errors: `ENXIO` if the device is free.
pub(super) fn flags(device: &impl AsRawFd) -> io::Result<Flags> {
    let info = status(device)?;
    Ok(Flags { autoclear: info.flags & AUTOCLEAR != 0, direct_io: info.flags & DIRECT_IO != 0 })
}

/// Keeps the device bound when its last opener closes it.
pub(super) fn keep_bound(device: &impl AsRawFd) -> io::Result<()> {
    let mut info = status(device)?;
    info.flags &= !AUTOCLEAR;
    // SAFETY: `info` has the layout that the driver reads, and lives through the call.
    unsafe { loop_set_status(device.as_raw_fd(), &raw const info) }?;
    Ok(())
}

fn status(device: &impl AsRawFd) -> io::Result<Info> {
    let mut info = Info::empty();
    // SAFETY: `info` has the layout that the driver fills, and lives through the call.
    unsafe { loop_get_status(device.as_raw_fd(), &raw mut info) }?;
    Ok(info)
}
