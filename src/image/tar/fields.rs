//! What the fields of a member's headers may say, and which holds where two say the same.

use crate::image::tar::entry::EntryKind;
use crate::image::tar::header::{Field, Header};

/// What a type flag means.
pub(super) fn kind_of(flag: u8, path: &[u8]) -> Field<EntryKind> {
    Ok(match flag {
        // v7 has no flag for directories.
        0 if path.ends_with(b"/") => EntryKind::Directory,
        // 7 is a "contiguous file", which nobody has ever written otherwise than a plain one.
        b'0' | 0 | b'7' | b'S' => EntryKind::File,
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::CharDevice,
        b'4' => EntryKind::BlockDevice,
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        other => return Err(format!("its type {:?} is not one that an image may hold", char::from(other))),
    })
}

/// Programs part ways on members that have content but should not: some pass over the content, some take it for the next
/// header. Only the size that old programs gave hard links, with nothing behind it, is known and harmless.
pub(super) fn check_no_content(kind: EntryKind, block_size: u64, pax_size: Option<u64>) -> Field<()> {
    let block_size = if kind == EntryKind::HardLink { 0 } else { block_size };
    match (block_size, pax_size.unwrap_or(0)) {
        (0, 0) => Ok(()),
        (size, pax) => Err(format!("it is not a file, but has {} bytes of content", size.max(pax))),
    }
}

pub(super) fn device_of(kind: EntryKind, header: &Header<'_>) -> Field<(u32, u32)> {
    match kind {
        EntryKind::CharDevice | EntryKind::BlockDevice => {
            let (major, minor) = header.device()?;
            // The kernel's limits: 12 bits of major, 20 of minor.
            let major = u32::try_from(major).ok().filter(|major| *major < 1 << 12);
            let minor = u32::try_from(minor).ok().filter(|minor| *minor < 1 << 20);
            major.zip(minor).ok_or_else(|| "is out of range".to_owned())
        }
        EntryKind::File | EntryKind::HardLink | EntryKind::Symlink | EntryKind::Directory | EntryKind::Fifo => {
            Ok((0, 0))
        }
    }
}

/// An owner's number. The last one is refused because chown(2) takes it for "leave it as it is".
pub(super) fn owner(pax: Option<u64>, block: Field<u64>) -> Field<u32> {
    let number = match pax {
        Some(number) => number,
        None => block?,
    };
    u32::try_from(number).ok().filter(|n| *n != u32::MAX).ok_or_else(|| format!("its owner {number} is out of range"))
}

pub(super) fn low_bits(mode: u64) -> u32 {
    u32::try_from(mode & 0o7777).expect("twelve bits fit in 32")
}

/// The name that holds: a pax one or a GNU one; both, and programs differ.
pub(super) fn one_name(pax: Option<Vec<u8>>, long: Option<Vec<u8>>, block: impl FnOnce() -> Vec<u8>) -> Field<Vec<u8>> {
    let name = match (pax, long) {
        (Some(_), Some(_)) => return Err("a pax and a GNU header both name the next entry".to_owned()),
        (Some(name), None) | (None, Some(name)) => name,
        (None, None) => block(),
    };
    if name.is_empty() { Err("a name or link target is empty".to_owned()) } else { Ok(name) }
}

pub(super) fn once<T>(slot: &mut Option<T>, value: T) -> Field<()> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err("two extended headers of one kind for one entry".to_owned()),
    }
}

pub(super) fn until_nul(mut data: Vec<u8>) -> Vec<u8> {
    data.truncate(data.iter().position(|b| *b == 0).unwrap_or(data.len()));
    data
}
