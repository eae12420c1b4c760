//! Bytes to requests of the FUSE protocol and answers to bytes; no I/O.
//!
//! Only what a flat directory of regular files needs (kernel protocol 7.31 and later, native byte order).

use crate::export::work::PAYLOAD_MAX;

/// Bytes of the header before every request.
pub(super) const IN_HEADER: usize = 40;
/// Bytes of the header and the arguments of READ and WRITE; a WRITE's payload follows.
pub(super) const WRITE_HEADER: usize = IN_HEADER + 40;
/// Bytes of the header before every answer.
pub(super) const OUT_HEADER: usize = 16;
/// The node of the directory.
pub(super) const ROOT_NODE: u64 = 1;

/// Most payload bytes in one READ or WRITE: 256 pages, the kernel's default limit. INIT comes once in the life of a
/// connection, so a later version that takes over must take at least as much.
const PAYLOAD_BYTES: u32 = PAGES as u32 * 4096;
const PAGES: u16 = 256;
const _: () = assert!(PAYLOAD_BYTES as usize == PAYLOAD_MAX, "a slot holds what INIT lets the kernel send");

const MAJOR: u32 = 7;
const MINOR_MIN: u32 = 31;
const MINOR: u32 = 41;
/// Requests that the kernel lets run in the background. Direct I/O of a loop device counts as background; the
/// protocol's default of 12 would cap the queue depth. Writes that wait for room count too, and must leave room for
/// the others.
const BACKGROUND_MAX: u16 = 1024;

const INIT_ASYNC_READ: u64 = 1 << 0;
const INIT_BIG_WRITES: u64 = 1 << 5;
const INIT_ASYNC_DIO: u64 = 1 << 15;
const INIT_PARALLEL_DIROPS: u64 = 1 << 18;
const INIT_MAX_PAGES: u64 = 1 << 22;
const INIT_EXT: u64 = 1 << 30;
const INIT_HAS_RESEND: u64 = 1 << 39;
const WANTED: u64 = INIT_ASYNC_READ
    | INIT_BIG_WRITES
    | INIT_ASYNC_DIO
    | INIT_PARALLEL_DIROPS
    | INIT_MAX_PAGES
    | INIT_EXT
    | INIT_HAS_RESEND;

const OPEN_DIRECT_IO: u32 = 1 << 0;
/// A close asks the server nothing (Linux 5.16; where it is unknown the answer ENOSYS to the first FLUSH says the same).
const OPEN_NO_FLUSH: u32 = 1 << 5;
const OPEN_PARALLEL_WRITES: u32 = 1 << 6;

/// What the kernel asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Lookup,
    Forget,
    GetAttr,
    SetAttr,
    Open,
    Read,
    Write,
    StatFs,
    Release,
    Fsync,
    Init,
    OpenDir,
    ReadDir,
    ReleaseDir,
    Destroy,
    BatchForget,
    Fallocate,
    Other(u32),
}

impl Operation {
    fn from_code(code: u32) -> Self {
        match code {
            1 => Self::Lookup,
            2 => Self::Forget,
            3 => Self::GetAttr,
            4 => Self::SetAttr,
            14 => Self::Open,
            15 => Self::Read,
            16 => Self::Write,
            17 => Self::StatFs,
            18 => Self::Release,
            20 => Self::Fsync,
            26 => Self::Init,
            27 => Self::OpenDir,
            28 => Self::ReadDir,
            29 => Self::ReleaseDir,
            38 => Self::Destroy,
            42 => Self::BatchForget,
            43 => Self::Fallocate,
            other => Self::Other(other),
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// The header before every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    /// Bytes of the whole request.
    pub(super) len: u32,
    pub(super) operation: Operation,
    /// Repeated in the answer; the high bit marks a request that is sent again.
    pub(super) unique: u64,
    pub(super) node: u64,
}

impl Request {
    /// `None`: fewer bytes than a header.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            len: u32_at(bytes, 0)?,
            operation: Operation::from_code(u32_at(bytes, 4)?),
            unique: u64_at(bytes, 8)?,
            node: u64_at(bytes, 16)?,
        })
    }

    /// True if bytes for a device follow the arguments.
    pub(super) fn carries_payload(self) -> bool {
        self.operation == Operation::Write
    }
}

/// Where a READ or a WRITE goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) offset: u64,
    pub(super) len: u32,
}

impl Span {
    /// From the arguments of READ or WRITE, which stand alike in both.
    pub(super) fn parse(arguments: &[u8]) -> Option<Self> {
        Some(Self { offset: u64_at(arguments, 8)?, len: u32_at(arguments, 16)? })
    }
}

/// The arguments of FALLOCATE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fallocate {
    pub(super) offset: u64,
    pub(super) len: u64,
    /// Flags of fallocate(2).
    pub(super) mode: u32,
}

impl Fallocate {
    pub(super) fn parse(arguments: &[u8]) -> Option<Self> {
        Some(Self { offset: u64_at(arguments, 8)?, len: u64_at(arguments, 16)?, mode: u32_at(arguments, 24)? })
    }
}

/// The arguments of READDIR: where to go on and how many bytes fit.
pub(super) fn parse_read_dir(arguments: &[u8]) -> Option<(u64, usize)> {
    Some((u64_at(arguments, 8)?, usize::try_from(u32_at(arguments, 16)?).ok()?))
}

/// The handle that a RELEASE gives back.
pub(super) fn parse_release(arguments: &[u8]) -> Option<u64> {
    u64_at(arguments, 0)
}

/// True if an answer to INIT lets requests be sent again after the death of a server (Linux 6.9).
pub(super) fn grants_resend(answer: &[u8]) -> bool {
    u32_at(answer, 32).is_some_and(|high| u64::from(high) << 32 & INIT_HAS_RESEND != 0)
}

/// The message that has the kernel send again what was read and not answered.
pub(super) fn resend_message() -> [u8; OUT_HEADER] {
    const NOTIFY_RESEND: u32 = 7;
    let mut out = [0; OUT_HEADER];
    out[..4].copy_from_slice(&16_u32.to_ne_bytes());
    out[4..8].copy_from_slice(&NOTIFY_RESEND.to_ne_bytes());
    out
}

/// The answer to INIT, or `None` if the kernel speaks a protocol that is too old or broken.
pub(super) fn answer_init(arguments: &[u8]) -> Option<Vec<u8>> {
    let (major, minor) = (u32_at(arguments, 0)?, u32_at(arguments, 4)?);
    if major != MAJOR || minor < MINOR_MIN {
        return None;
    }
    let readahead = u32_at(arguments, 8)?;
    let low = u64::from(u32_at(arguments, 12)?);
    let high = if low & INIT_EXT == 0 { 0 } else { u64::from(u32_at(arguments, 16)?) };
    let flags = (high << 32 | low) & WANTED;
    let mut out = Bytes::with_capacity(64);
    out.u32(MAJOR).u32(MINOR).u32(readahead).u32(low_half(flags));
    out.u16(BACKGROUND_MAX).u16(BACKGROUND_MAX / 4 * 3);
    out.u32(PAYLOAD_BYTES).u32(1);
    out.u16(PAGES).u16(0);
    out.u32(low_half(flags >> 32));
    out.zeroes(28);
    Some(out.0)
}

/// The low 32 bits.
#[expect(clippy::cast_possible_truncation, reason = "the flags travel in two halves")]
fn low_half(flags: u64) -> u32 {
    flags as u32
}

/// What LOOKUP and GETATTR tell of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) node: u64,
    pub(super) size: u64,
    /// File type and permissions.
    pub(super) mode: u32,
}

impl Attributes {
    fn append_to(self, out: &mut Bytes) {
        out.u64(self.node).u64(self.size).u64(self.size.div_ceil(512));
        out.zeroes(3 * 8 + 3 * 4); // the three times
        out.u32(self.mode).u32(1); // one link
        out.zeroes(3 * 4); // root owns it; no device number
        out.u32(4096).u32(0);
    }

    /// The answer to GETATTR. Validity 0, so that a loop device asking for the size gets the one of that moment.
    pub(super) fn answer(self) -> Vec<u8> {
        let mut out = Bytes::with_capacity(104);
        out.zeroes(16);
        self.append_to(&mut out);
        out.0
    }

    /// The answer to LOOKUP.
    pub(super) fn answer_entry(self) -> Vec<u8> {
        let mut out = Bytes::with_capacity(128);
        out.u64(self.node);
        out.zeroes(8 + 8 + 8 + 4 + 4);
        self.append_to(&mut out);
        out.0
    }
}

/// The answer to OPEN of a file: no page cache (the filesystem on the loop device has one), writes side by side, and no
/// close that waits for an answer: a server that is killed closes its own files when nobody serves them any more.
/// `handle` comes back in the RELEASE.
pub(super) fn answer_open(handle: u64) -> Vec<u8> {
    let mut out = Bytes::with_capacity(16);
    out.u64(handle).u32(OPEN_DIRECT_IO | OPEN_NO_FLUSH | OPEN_PARALLEL_WRITES).u32(0);
    out.0
}

/// The answer to OPENDIR.
pub(super) fn answer_open_dir() -> Vec<u8> {
    vec![0; 16]
}

/// The answer to STATFS. The block size becomes the loop device's discard granularity.
pub(super) fn answer_stat_fs(block_size: u32) -> Vec<u8> {
    let mut out = Bytes::with_capacity(80);
    out.zeroes(5 * 8);
    out.u32(block_size).u32(255).u32(block_size);
    out.zeroes(4 + 6 * 4);
    out.0
}

/// The answer to WRITE.
pub(super) fn answer_write(len: u32) -> [u8; 8] {
    let mut out = [0; 8];
    out[..4].copy_from_slice(&len.to_ne_bytes());
    out
}

/// The answer to READDIR: entries `(node, name)` from the place `from` on, as many as fit into `room` bytes.
pub(super) fn answer_read_dir(entries: &[(u64, String)], from: u64, room: usize) -> Vec<u8> {
    const REGULAR: u32 = 8;
    let mut out = Bytes::with_capacity(room.min(4096));
    let skip = usize::try_from(from).unwrap_or(usize::MAX);
    for (place, (node, name)) in entries.iter().enumerate().skip(skip) {
        let padded = name.len().next_multiple_of(8);
        if out.0.len() + 24 + padded > room {
            break;
        }
        out.u64(*node).u64(place as u64 + 1).u32(u32::try_from(name.len()).unwrap_or(u32::MAX)).u32(REGULAR);
        out.0.extend_from_slice(name.as_bytes());
        out.zeroes(padded - name.len());
    }
    out.0
}

/// The header of an answer with `body` bytes behind it. `errno` is 0 or a positive errno.
pub(super) fn out_header(unique: u64, errno: i32, body: usize) -> [u8; OUT_HEADER] {
    let len = u32::try_from(OUT_HEADER + body).expect("an answer is at most a payload and a header");
    let mut out = [0; OUT_HEADER];
    out[..4].copy_from_slice(&len.to_ne_bytes());
    out[4..8].copy_from_slice(&(-errno).to_ne_bytes());
    out[8..].copy_from_slice(&unique.to_ne_bytes());
    out
}

/// A growing answer.
struct Bytes(Vec<u8>);

impl Bytes {
    fn with_capacity(len: usize) -> Self {
        Self(Vec::with_capacity(len))
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn zeroes(&mut self, count: usize) {
        self.0.resize(self.0.len() + count, 0);
    }
}
