//! A request of the FUSE connection that waits for its answer.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::sys::uio::writev;

use crate::export::fuse::wire::{answer_write, out_header};
use crate::export::work::{Asker, Reply};

/// The request `unique`, read from `device`.
#[derive(Clone)]
pub(in crate::export) struct Asking {
    pub(super) unique: u64,
    pub(super) device: Arc<OwnedFd>,
}

impl Asker for Asking {
    /// The kernel refuses a second answer.
    fn answer(&self, reply: Reply<'_>) {
        match reply {
            Reply::Done => answer(&self.device, self.unique, 0, &[]),
            Reply::Wrote(len) => answer(&self.device, self.unique, 0, &answer_write(len)),
            Reply::Bytes(bytes) => answer(&self.device, self.unique, 0, bytes),
            Reply::Failed(errno) => answer(&self.device, self.unique, errno, &[]),
        }
    }
}

/// Answers a request at once. The kernel refuses an answer only when the request was given up (ENOENT) or the
/// filesystem is gone; there is nobody to tell then.
pub(super) fn answer(device: &OwnedFd, unique: u64, errno: i32, body: &[u8]) {
    let header = out_header(unique, errno, body.len());
    let pieces = [IoSlice::new(&header), IoSlice::new(body)];
    if let Err(errno) = writev(device, &pieces[..if body.is_empty() { 1 } else { 2 }]) {
        tracing::debug!(fd = device.as_raw_fd(), "the kernel did not take an answer: {errno}");
    }
}
