//! The tables of the store and the shape of their keys.
//!
//! Names hold no NUL (checked where they are born), so a NUL ends each part of a key and a prefix scan
//! finds exactly one space, one parent or one device.
//!
//! | table     | key                                    | value                |
//! |-----------|----------------------------------------|----------------------|
//! | snapshots | space NUL name                         | `Snapshot`           |
//! | children  | space NUL parent NUL child             | empty                |
//! | refs      | space NUL ref NUL parent NUL name      | empty; committed ones with a ref label |
//! | owners    | device id (4, big endian), kind, owner | empty; who needs the device to exist   |
//! | limbo     | device id (4, big endian)              | empty                |
//! | bases     | file system (1), size (8, big endian)  | device id            |
//! | meta      | word                                   | as the word says     |

use thinsnap_pool::{ByteCount, DeviceId};

use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{FsType, Name, Space};

/// A table of the store, known by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Table(&'static str);

impl Table {
    /// A table for records of a room above, for example `Table::new("images")`; made on first use.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self(name)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.0
    }
}

pub(crate) const SNAPSHOTS: Table = Table("snapshots");
pub(crate) const CHILDREN: Table = Table("children");
pub(crate) const REFS: Table = Table("refs");
pub(crate) const OWNERS: Table = Table("owners");
pub(crate) const LIMBO: Table = Table("limbo");
pub(crate) const BASES: Table = Table("bases");
pub(crate) const META: Table = Table("meta");

/// The layout of all tables; a store with a newer one is refused.
pub(crate) const SCHEMA_VERSION: u32 = 1;

pub(crate) const META_SCHEMA: &[u8] = b"schema";
pub(crate) const META_IDENTITY: &[u8] = b"identity";
pub(crate) const META_TRANSACTION: &[u8] = b"transaction";
pub(crate) const META_NEXT_DEVICE: &[u8] = b"next_device";

/// Why a device must exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// It is the base of a profile.
    Base,
    /// An active or committed snapshot stands on it.
    Snapshot,
    /// A view shows it.
    View,
}

impl Owner {
    fn byte(self) -> u8 {
        match self {
            Self::Base => b'b',
            Self::Snapshot => b's',
            Self::View => b'v',
        }
    }
}

/// `parts` with a NUL after each but the last.
pub(crate) fn key(parts: &[&str]) -> Vec<u8> {
    parts.join("\0").into_bytes()
}

/// `parts` with a NUL after each: what all keys below them begin with.
pub(crate) fn prefix(parts: &[&str]) -> Vec<u8> {
    let mut bytes = key(parts);
    bytes.push(0);
    bytes
}

pub(crate) fn device_key(id: DeviceId) -> [u8; 4] {
    id.get().to_be_bytes()
}

/// Errors with `Corrupt` if the key does not begin with a device id.
pub(crate) fn device_of(key: &[u8]) -> Result<DeviceId> {
    key.first_chunk::<4>()
        .and_then(|bytes| DeviceId::new(u32::from_be_bytes(*bytes)).ok())
        .ok_or_else(|| Error::new(ErrorKind::Corrupt, format!("key {key:?} of the store names no device id")))
}

pub(crate) fn owner_key(id: DeviceId, owner: Owner, of: &[u8]) -> Vec<u8> {
    let mut bytes = owner_prefix(id, owner);
    bytes.extend_from_slice(of);
    bytes
}

pub(crate) fn owner_prefix(id: DeviceId, owner: Owner) -> Vec<u8> {
    let mut bytes = device_key(id).to_vec();
    bytes.push(owner.byte());
    bytes
}

pub(crate) fn snapshot_key(space: &Space, name: &Name) -> Vec<u8> {
    key(&[space.as_str(), name.as_str()])
}

pub(crate) fn base_key(fs: FsType, size: ByteCount) -> [u8; 9] {
    let mut bytes = [0; 9];
    bytes[0] = match fs {
        FsType::Ext4 => b'e',
        FsType::Xfs => b'x',
    };
    bytes[1..].copy_from_slice(&size.0.to_be_bytes());
    bytes
}
