//! The words of the kernel's ublk driver: structs, codes and flags of its interface; no I/O.
//!
//! What is used came by Linux 6.5; a later kernel understands it too.

use crate::export::work::{DISCARD_STEP, PAYLOAD_MAX};
use crate::thin_pool::Access;
use crate::units::ByteCount;

/// A new process may go on with the device of a dead one.
pub(super) const USER_RECOVERY: u64 = 1 << 3;
/// What the dead one did not answer is sent to the new one.
pub(super) const USER_RECOVERY_REISSUE: u64 = 1 << 4;
/// Commands have codes like those of ioctls.
pub(super) const IOCTL_ENCODE: u64 = 1 << 6;
/// The server copies the bytes itself, by reading and writing the character device.
pub(super) const USER_COPY: u64 = 1 << 7;
/// A device that is in use can grow (Linux 6.16).
pub(super) const UPDATE_SIZE: u64 = 1 << 10;
/// A device can be stilled on purpose (Linux 6.16). Nobody asks for it here: what counts is that a driver which can no longer
/// waits, with its lock held, until the requests of a dead server have come to rest. Before 6.15 some never do.
pub(super) const QUIESCE: u64 = 1 << 12;
/// Without these there is no ublk for us.
pub(super) const NEEDED: u64 = USER_RECOVERY | USER_RECOVERY_REISSUE | IOCTL_ENCODE | USER_COPY;

/// Requests that may be under way on a device: as many as on a loop device.
pub(super) const DEPTH: u16 = 128;

const fn code(direction: u32, number: u32, size: usize) -> u32 {
    assert!(size < 1 << 14, "an ioctl's code has 14 bits for the size");
    #[expect(clippy::cast_possible_truncation, reason = "asserted")]
    let size = size as u32;
    direction << 30 | size << 16 | (b'u' as u32) << 8 | number
}

const fn reads(number: u32) -> u32 {
    code(2, number, CONTROL_BYTES)
}

const fn changes(number: u32) -> u32 {
    code(3, number, CONTROL_BYTES)
}

pub(super) const GET_DEV_INFO: u32 = reads(0x02);
pub(super) const ADD_DEV: u32 = changes(0x04);
pub(super) const START_DEV: u32 = changes(0x06);
pub(super) const STOP_DEV: u32 = changes(0x07);
pub(super) const SET_PARAMS: u32 = changes(0x08);
pub(super) const GET_PARAMS: u32 = reads(0x09);
pub(super) const START_USER_RECOVERY: u32 = changes(0x10);
pub(super) const END_USER_RECOVERY: u32 = changes(0x11);
pub(super) const GET_FEATURES: u32 = reads(0x13);
pub(super) const DEL_DEV_ASYNC: u32 = reads(0x14);
pub(super) const UPDATE_SIZE_DEV: u32 = changes(0x15);
pub(super) const DEL_DEV: u32 = changes(0x05);
pub(super) const FETCH_REQ: u32 = code(3, 0x20, IO_COMMAND_BYTES);
pub(super) const COMMIT_AND_FETCH_REQ: u32 = code(3, 0x21, IO_COMMAND_BYTES);

const CONTROL_BYTES: usize = 32;
const IO_COMMAND_BYTES: usize = 16;

/// The arguments of a control command, `ublksrv_ctrl_cmd`.
#[derive(Debug, Clone, Copy)]
pub(super) struct ControlCommand {
    /// `u32::MAX` lets the driver choose (ADD_DEV).
    pub(super) device: u32,
    /// Address and length of what the command reads or fills.
    pub(super) buffer: Option<(u64, u16)>,
    pub(super) data: u64,
}

impl ControlCommand {
    /// As the command part of a submission queue entry of 128 bytes.
    pub(super) fn encode(self) -> [u8; 80] {
        let (address, len) = self.buffer.unwrap_or_default();
        let mut bytes = [0; 80];
        bytes[0..4].copy_from_slice(&self.device.to_ne_bytes());
        // No queue is meant.
        bytes[4..6].copy_from_slice(&u16::MAX.to_ne_bytes());
        bytes[6..8].copy_from_slice(&len.to_ne_bytes());
        bytes[8..16].copy_from_slice(&address.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.data.to_ne_bytes());
        bytes
    }
}

/// The arguments of FETCH_REQ and COMMIT_AND_FETCH_REQ, `ublksrv_io_cmd`, for the first queue.
pub(super) fn io_command(tag: u16, result: i32) -> [u8; IO_COMMAND_BYTES] {
    let mut bytes = [0; IO_COMMAND_BYTES];
    bytes[2..4].copy_from_slice(&tag.to_ne_bytes());
    bytes[4..8].copy_from_slice(&result.to_ne_bytes());
    bytes
}

/// No process serves it and nobody can open it.
pub(in crate::export) const STATE_DEAD: u16 = 0;

/// What a device is, `ublksrv_ctrl_dev_info`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::export) struct DeviceInfo {
    pub(super) queues: u16,
    pub(super) depth: u16,
    pub(in crate::export) state: u16,
    pad0: u16,
    pub(super) io_bytes_max: u32,
    pub(super) device: u32,
    pub(super) server_pid: i32,
    pad1: u32,
    pub(super) flags: u64,
    /// The server's own; the driver keeps it.
    pub(in crate::export) marks: u64,
    owner_uid: u32,
    owner_gid: u32,
    reserved: [u64; 2],
}

impl DeviceInfo {
    /// A device to be added, of a number that the driver chooses.
    pub(super) fn new(marks: u64) -> Self {
        Self {
            queues: 1,
            depth: DEPTH,
            io_bytes_max: PAYLOAD_BYTES,
            device: u32::MAX,
            flags: NEEDED,
            marks,
            ..Self::default()
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "asserted below")]
const PAYLOAD_BYTES: u32 = PAYLOAD_MAX as u32;
const _: () = assert!(PAYLOAD_BYTES as usize == PAYLOAD_MAX, "a payload's length has 32 bits");

const ATTRIBUTE_READ_ONLY: u32 = 1 << 0;
/// Acknowledged writes are durable only after a flush. FUA is left to the block layer, which makes a flush of it: ours
/// would be one too.
const ATTRIBUTE_VOLATILE_CACHE: u32 = 1 << 2;
const TYPE_BASIC: u32 = 1 << 0;
const TYPE_DISCARD: u32 = 1 << 1;
/// What a loop device allows: whole discards come in one request.
const DISCARD_SECTORS_MAX: u32 = u32::MAX >> 9;

/// `ublk_param_basic`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Basic {
    attributes: u32,
    logical_block_shift: u8,
    physical_block_shift: u8,
    io_best_shift: u8,
    io_min_shift: u8,
    sectors_max: u32,
    chunk_sectors: u32,
    sectors: u64,
    virtual_boundary_mask: u64,
}

/// `ublk_param_discard`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Discard {
    alignment: u32,
    granularity: u32,
    discard_sectors_max: u32,
    write_zeroes_sectors_max: u32,
    segments_max: u16,
    reserved: u16,
}

/// `ublk_param_devt`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Numbers {
    char_major: u32,
    char_minor: u32,
    disk_major: u32,
    disk_minor: u32,
}

/// What the block device is like, `ublk_params` up to the device numbers.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::export) struct Params {
    len: u32,
    types: u32,
    basic: Basic,
    discard: Discard,
    numbers: Numbers,
    pad: u32,
}

impl Params {
    /// A device of `size` bytes; `block_size` is a power of two.
    pub(in crate::export) fn new(size: ByteCount, access: Access, block_size: u32) -> Self {
        let shift = u8::try_from(block_size.trailing_zeros()).unwrap_or(9);
        let read_only = if access == Access::ReadOnly { ATTRIBUTE_READ_ONLY } else { 0 };
        Self {
            len: PARAMS_BYTES,
            types: TYPE_BASIC | TYPE_DISCARD,
            basic: Basic {
                attributes: ATTRIBUTE_VOLATILE_CACHE | read_only,
                logical_block_shift: shift,
                physical_block_shift: shift,
                io_best_shift: shift,
                io_min_shift: shift,
                sectors_max: PAYLOAD_BYTES >> 9,
                sectors: size.0 >> 9,
                ..Basic::default()
            },
            discard: Discard {
                granularity: DISCARD_STEP.max(block_size),
                discard_sectors_max: DISCARD_SECTORS_MAX,
                write_zeroes_sectors_max: DISCARD_SECTORS_MAX,
                segments_max: 1,
                ..Discard::default()
            },
            ..Self::default()
        }
    }

    /// To be filled by GET_PARAMS.
    pub(super) fn unknown() -> Self {
        Self { len: PARAMS_BYTES, ..Self::default() }
    }

    pub(in crate::export) fn size(&self) -> ByteCount {
        ByteCount(self.basic.sectors << 9)
    }

    pub(in crate::export) fn access(&self) -> Access {
        if self.basic.attributes & ATTRIBUTE_READ_ONLY == 0 { Access::ReadWrite } else { Access::ReadOnly }
    }

    /// Major and minor number of the character device.
    pub(in crate::export) fn char_number(&self) -> (u64, u64) {
        (self.numbers.char_major.into(), self.numbers.char_minor.into())
    }

    /// Major and minor number of the block device.
    pub(in crate::export) fn disk_number(&self) -> (u64, u64) {
        (self.numbers.disk_major.into(), self.numbers.disk_minor.into())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "80 bytes, asserted below")]
const PARAMS_BYTES: u32 = size_of::<Params>() as u32;

const _: () = assert!(
    size_of::<DeviceInfo>() == 64
        && size_of::<Basic>() == 32
        && size_of::<Discard>() == 20
        && size_of::<Numbers>() == 16
        && size_of::<Params>() == 80
        && size_of::<IoDescriptor>() == 24,
    "sizes of the kernel's interface"
);

/// A request, `ublksrv_io_desc`: one for each tag, in memory that the driver writes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct IoDescriptor {
    operation: u32,
    sectors: u32,
    first_sector: u64,
    address: u64,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
    Other(u32),
}

impl IoDescriptor {
    pub(super) fn operation(&self) -> Operation {
        match self.operation & 0xff {
            0 => Operation::Read,
            1 => Operation::Write,
            2 => Operation::Flush,
            3 => Operation::Discard,
            5 => Operation::WriteZeroes,
            other => Operation::Other(other),
        }
    }

    /// Bytes from the start of the device; `None` if that is no number.
    pub(super) fn offset(&self) -> Option<u64> {
        self.first_sector.checked_mul(512)
    }

    /// Bytes.
    pub(super) fn len(&self) -> u64 {
        u64::from(self.sectors) * 512
    }
}

/// Where a tag's bytes stand in the character device, for reading (a write request's) and writing (a read request's).
pub(super) fn bytes_of(tag: u16) -> u64 {
    const START: u64 = 0x8000_0000;
    const TAG_SHIFT: u32 = 25;
    START + (u64::from(tag) << TAG_SHIFT)
}

#[cfg(test)]
mod tests {
    use super::{ADD_DEV, ControlCommand, FETCH_REQ, GET_DEV_INFO, bytes_of, io_command};

    #[test]
    fn commands_look_as_the_driver_reads_them() {
        assert_eq!((ADD_DEV, GET_DEV_INFO, FETCH_REQ), (0xc020_7504, 0x8020_7502, 0xc010_7520));
        let command = ControlCommand { device: 7, buffer: Some((0x1122, 64)), data: 9 }.encode();
        assert_eq!(command[..8], [7, 0, 0, 0, 0xff, 0xff, 64, 0]);
        assert_eq!((command[8], command[9], command[16]), (0x22, 0x11, 9));
        assert_eq!(io_command(3, -5), [0, 0, 3, 0, 0xfb, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes_of(2), 0x8400_0000);
    }
}
