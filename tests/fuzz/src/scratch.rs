//! Files for what a target writes, in TMPDIR: whoever starts a target gives it one, in memory if there is room.
//!
//! What lives as long as the process (a host's socket, a store) is not removed by it: the starter removes its TMPDIR.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use tempfile::TempDir;

/// A new directory.
pub(crate) fn scratch() -> TempDir {
    TempDir::new().expect("a directory for scratch files")
}

/// Bytes as a file that has a path for as long as the handle lives.
pub(crate) fn file_of(bytes: &[u8]) -> (File, PathBuf) {
    let mut file = tempfile::tempfile().expect("a scratch file");
    file.write_all(bytes).expect("a scratch file takes bytes");
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    (file, path)
}
