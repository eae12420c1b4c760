//! What a file as a device promises: locking, alignment, holes, growth.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::device::block_device::BlockDevice;
use crate::device::file::FileDevice;
use crate::error::ErrorKind;

const SIZE: u64 = 1 << 20;

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i % 251).unwrap() ^ seed).collect()
}

#[test]
fn reads_and_writes_at_any_offset_and_length_agree_with_memory() {
    let dir = tempfile::tempdir().unwrap();
    let device = FileDevice::create(&dir.path().join("data"), SIZE).unwrap();
    let mut model = vec![0; usize::try_from(SIZE).unwrap()];
    for (seed, (offset, len)) in
        [(0, 4096), (1, 1), (511, 2), (4095, 4098), (65_536, 65_536), (99_999, 70_001), (1_048_575, 1)]
            .into_iter()
            .enumerate()
    {
        let bytes = pattern(len, u8::try_from(seed).unwrap());
        device.write_at(&bytes, offset as u64).unwrap();
        model[offset..offset + len].copy_from_slice(&bytes);
    }
    let mut all = vec![0; model.len()];
    device.read_at(&mut all, 0).unwrap();
    assert!(all == model);
    for (offset, len) in [(0, 1), (510, 5), (99_990, 80_000), (1_048_000, 576)] {
        let mut piece = vec![0; len];
        device.read_at(&mut piece, offset as u64).unwrap();
        assert!(piece == model[offset..offset + len], "{len} bytes at {offset}");
    }
}

#[test]
fn a_second_opener_is_told_who_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let first = FileDevice::create(&path, SIZE).unwrap();
    for second in [FileDevice::open(&path), FileDevice::open_read_only(&path)] {
        let error = second.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InUse);
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    drop(first);
    let (_a, _b) = (FileDevice::open_read_only(&path).unwrap(), FileDevice::open_read_only(&path).unwrap());
    assert_eq!(FileDevice::open(&path).err().unwrap().kind(), ErrorKind::InUse);
}

#[test]
fn a_reader_cannot_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    drop(FileDevice::create(&path, SIZE).unwrap());
    let device = FileDevice::open_read_only(&path).unwrap();
    assert_eq!(device.write_at(&[1], 0).err().unwrap().kind(), ErrorKind::ReadOnly);
    assert_eq!(device.discard(0, 4096).err().unwrap().kind(), ErrorKind::ReadOnly);
}

#[test]
fn a_new_file_is_private_and_sparse_and_never_replaces_another() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let device = FileDevice::create(&path, SIZE).unwrap();
    let seen = std::fs::metadata(&path).unwrap();
    assert_eq!((seen.permissions().mode() & 0o777, seen.blocks()), (0o600, 0));
    assert_eq!(FileDevice::create(&path, SIZE).err().unwrap().kind(), ErrorKind::AlreadyExists);
    assert_eq!(device.size(), SIZE);
}

#[test]
fn a_link_to_a_file_and_a_directory_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    drop(FileDevice::create(&path, SIZE).unwrap());
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert_eq!(FileDevice::open(&link).err().unwrap().kind(), ErrorKind::Invalid);
    assert_eq!(FileDevice::open(dir.path()).err().unwrap().kind(), ErrorKind::Invalid);
    assert_eq!(FileDevice::open(&dir.path().join("absent")).err().unwrap().kind(), ErrorKind::NotFound);
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeroes_and_a_hole_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let device = FileDevice::create(&path, SIZE).unwrap();
    assert!(device.known_zero(0, SIZE));
    device.write_at(&pattern(SIZE.try_into().unwrap(), 7), 0).unwrap();
    assert!(!device.known_zero(0, 4096));
    device.discard(65_536, 65_536).unwrap();
    device.write_zeroes(262_144 + 100, 1000).unwrap();
    device.flush().unwrap();
    assert!(device.known_zero(65_536, 65_536));
    assert!(!device.known_zero(65_536, 65_537));
    let mut piece = vec![1; 65_536];
    device.read_at(&mut piece, 65_536).unwrap();
    assert!(piece.iter().all(|&byte| byte == 0));
    let mut piece = vec![1; 1002];
    device.read_at(&mut piece, 262_144 + 99).unwrap();
    assert!(piece[0] != 0 && piece[1001] != 0 && piece[1..1001].iter().all(|&byte| byte == 0));
}

#[test]
fn growing_keeps_the_content_and_shrinking_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let device = FileDevice::create(&dir.path().join("data"), SIZE).unwrap();
    device.write_at(&[5; 4096], SIZE - 4096).unwrap();
    assert_eq!(device.write_at(&[5; 4096], SIZE).err().unwrap().kind(), ErrorKind::Invalid);
    device.grow(2 * SIZE).unwrap();
    assert_eq!(device.size(), 2 * SIZE);
    device.write_at(&[6; 4096], 2 * SIZE - 4096).unwrap();
    let mut byte = [0];
    device.read_at(&mut byte, SIZE - 1).unwrap();
    assert_eq!(byte, [5]);
    assert_eq!(device.grow(SIZE).err().unwrap().kind(), ErrorKind::Invalid);
}

#[test]
fn preallocated_room_is_taken_and_still_reads_as_zeroes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metadata");
    let device = FileDevice::create(&path, SIZE).unwrap();
    device.preallocate(0).unwrap();
    assert!(std::fs::metadata(&path).unwrap().blocks() * 512 >= SIZE);
    let mut byte = [1];
    device.read_at(&mut byte, SIZE / 2).unwrap();
    assert_eq!(byte, [0]);
}
