//! Claims about reading a file that containerd wrote: whole, cut, with each byte damaged, and in use.

use std::fs::File;
use std::path::PathBuf;

use super::{BoltFile, newest, read_tree};
use crate::bolt::meta::fnv1a;
use crate::bolt::tree::Bucket;
use crate::error::{ErrorKind, Result};

/// The snapshots of a containerd 2 that was stopped.
const SNAPSHOTS: &[u8] = include_bytes!("../../migrate/testdata/metadata.db.zst");

fn snapshots() -> Vec<u8> {
    zstd::decode_all(SNAPSHOTS).unwrap()
}

fn read(bytes: &[u8]) -> Result<Bucket> {
    read_tree(bytes, &newest(bytes)?)
}

/// Offset of the newest meta page.
fn newest_at(bytes: &[u8]) -> usize {
    let meta = newest(bytes).unwrap();
    let transaction = |at: usize| u64::from_le_bytes(*bytes[at + 64..].first_chunk().unwrap());
    if transaction(0) == meta.transaction { 0 } else { meta.page_size }
}

#[test]
fn a_file_that_containerd_wrote_is_read_to_its_end() {
    let root = read(&snapshots()).unwrap();
    let v1 = root.bucket(b"v1").unwrap();
    let names: Vec<_> = v1.bucket(b"snapshots").unwrap().buckets().map(|(name, _)| name).collect();
    assert_eq!(names.len(), 4);
    let parents = v1.bucket(b"parents").unwrap();
    assert!(parents.values().all(|(_, child)| names.contains(&child)));
    assert_eq!(parents.values().count(), 3);
}

#[test]
fn a_newest_meta_page_that_is_torn_gives_the_one_before() {
    let mut bytes = snapshots();
    let at = newest_at(&bytes);
    let newer = newest(&bytes).unwrap().transaction;
    bytes[at + 30] ^= 1;
    assert_eq!(newest(&bytes).unwrap().transaction, newer - 1);
    let other = newest_at(&bytes);
    assert_ne!(other, at);
    bytes[other + 30] ^= 1;
    assert_eq!(newest(&bytes).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn no_damaged_byte_makes_the_reader_panic_or_go_on_for_ever() {
    let mut bytes = snapshots();
    for at in 0..bytes.len() {
        for flip in [1 << (at % 8), 0xff] {
            bytes[at] ^= flip;
            if let Err(error) = read(&bytes) {
                assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported), "byte {at}: {error}");
            }
            bytes[at] ^= flip;
        }
    }
}

#[test]
fn every_cut_of_a_file_is_read_as_before_or_refused() {
    let bytes = snapshots();
    let whole = read(&bytes).unwrap();
    for len in (0..bytes.len()).step_by(97) {
        match read(&bytes[..len]) {
            Ok(found) => assert_eq!(found, whole, "cut to {len}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "cut to {len}: {error}"),
        }
    }
}

#[test]
fn a_page_that_names_itself_is_refused() {
    let mut bytes = snapshots();
    let (at, meta) = (newest_at(&bytes), newest(&bytes).unwrap());
    let root = usize::try_from(meta.root).unwrap() * meta.page_size;
    // One entry of a branch, which leads to the page that it stands in.
    bytes[root + 8..root + 12].copy_from_slice(&[1, 0, 1, 0]);
    bytes[root + 24..root + 32].copy_from_slice(&meta.root.to_le_bytes());
    let error = read(&bytes).unwrap_err();
    assert!(error.to_string().contains("twice"), "{error}");
    // As for a root beyond the file, under a checksum that is right.
    bytes[at + 32..at + 40].copy_from_slice(&(u64::MAX / 2).to_le_bytes());
    let sum = fnv1a(&bytes[at + 16..at + 72]);
    bytes[at + 72..at + 80].copy_from_slice(&sum.to_le_bytes());
    assert_eq!(read(&bytes).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn a_file_in_use_is_refused_and_a_read_one_cannot_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("metadata.db");
    std::fs::write(&path, snapshots()).unwrap();
    let containerd = File::options().read(true).write(true).open(&path).unwrap();
    containerd.lock().unwrap();
    let error = BoltFile::open(&path).err().unwrap();
    assert_eq!((error.kind(), error.advice().is_some()), (ErrorKind::InUse, true));
    containerd.unlock().unwrap();
    let open = BoltFile::open(&path).unwrap();
    assert!(containerd.try_lock().is_err());
    drop(open);
    containerd.try_lock().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), snapshots());
}

#[test]
fn what_is_no_bolt_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metadata.db");
    for content in [b"".as_slice(), b"no bolt file", &[0; 65_536]] {
        std::fs::write(&path, content).unwrap();
        assert_eq!(BoltFile::open(&path).err().unwrap().kind(), ErrorKind::Corrupt);
    }
    assert_eq!(BoltFile::open(&dir.path().join("none")).err().unwrap().kind(), ErrorKind::NotFound);
    assert_eq!(BoltFile::open(dir.path()).err().unwrap().kind(), ErrorKind::InvalidArgument);
}
