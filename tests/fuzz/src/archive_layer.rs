//! A layer of an image: a tar, packed or not, laid down on an empty directory.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;

use flate2::write::GzEncoder;
use thinsnap::image::{Limits, apply_layer};
use thinsnap_pool::ByteCount;

use crate::scratch::{file_of, scratch};

const BLOCK: usize = 512;

/// Lays a layer down. The first byte says how it comes: with its headers' checksums made right (1), packed with
/// gzip (2), with zstd (4). Nothing outside its directory may change.
pub fn archive_layer(bytes: &[u8]) {
    let Some((how, archive)) = bytes.split_first() else { return };
    let mut archive = archive.to_vec();
    if how & 1 != 0 {
        seal(&mut archive);
    }
    if how & 2 != 0 {
        let mut packer = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packer.write_all(&archive).expect("memory takes bytes");
        archive = packer.finish().expect("memory takes bytes");
    }
    if how & 4 != 0 {
        archive = zstd::encode_all(archive.as_slice(), 1).expect("memory takes bytes");
    }
    let top = scratch();
    let (root, canary) = (top.path().join("root"), top.path().join("canary"));
    std::fs::create_dir(&root).expect("a scratch directory");
    std::fs::write(&canary, "alive").expect("a scratch file");
    let (_file, path) = file_of(&archive);
    let directory = File::open(&root).expect("a scratch directory");
    let laid = apply_layer(&path, directory.as_fd(), &limits());
    if let Err(error) = laid {
        assert!(!error.to_string().is_empty());
    }
    assert_eq!(std::fs::read(&canary).ok().as_deref(), Some(b"alive".as_slice()), "the canary outside is dead");
    let beside = std::fs::read_dir(top.path()).expect("a scratch directory").count();
    assert_eq!(beside, 2, "something was laid down outside the root");
}

/// Small, so that a bomb is refused before it costs time.
pub(crate) fn limits() -> Limits {
    Limits {
        entries: 1000,
        header_bytes: 1 << 20,
        sparse_fragments: 1000,
        ratio: 100,
        ratio_free: ByteCount(8 << 20),
        total: ByteCount(32 << 20),
        ..Limits::default()
    }
}

/// Makes the checksum of every block that looks like a header right: a fuzzer does not guess sums.
fn seal(archive: &mut [u8]) {
    for block in archive.chunks_exact_mut(BLOCK) {
        if &block[257..262] != b"ustar" {
            continue;
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}
