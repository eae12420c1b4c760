//! A direct transfer: bytes that go between a slot and the data device without anybody waiting.

use io_uring::types::Fd;
use io_uring::{opcode, squeue};

use crate::export::exporter::{DirectToken, Direction, EXTENTS_MAX, Extents};
use crate::export::work::errand::Transfer;

/// A transfer that the volume has granted; it holds the volume's blocks until [`Moving::end`].
pub(in crate::export) struct Moving {
    transfer: Transfer,
    token: DirectToken,
    extents: Extents,
    /// Bytes done of each extent.
    done: [u32; EXTENTS_MAX],
    /// Kernel operations in flight.
    pending: usize,
    /// The first errno, 0 while all is well.
    errno: i32,
}

impl Moving {
    /// Asks the volume for the way; holes are filled with zeroes at once. Refused: the transfer comes back, for the
    /// blocking way.
    pub(in crate::export) fn begin(transfer: Transfer, payload: &mut [u8]) -> Result<Self, Transfer> {
        let Transfer { direction, offset, len, .. } = transfer;
        let mut extents = Extents::default();
        let Some(token) = transfer.node.volume.begin_direct(direction, offset, len, &mut extents) else {
            return Err(transfer);
        };
        let mut start = 0;
        for extent in extents.as_slice() {
            if let (None, Some(hole)) = (extent.offset, payload.get_mut(start..start + extent.len as usize)) {
                hole.fill(0);
            }
            start += extent.len as usize;
        }
        let holes = extents.as_slice().iter().any(|extent| extent.offset.is_none());
        let sound = start == len as usize && start == payload.len() && !(holes && direction == Direction::Write);
        debug_assert!(sound, "a volume granted a {direction:?} of {len} bytes with {:?}", extents.as_slice());
        let errno = if sound { 0 } else { libc::EIO };
        Ok(Self { transfer, token, extents, done: [0; EXTENTS_MAX], pending: 0, errno })
    }

    /// The extents that are to be moved: none if the volume granted nonsense.
    pub(in crate::export) fn places(&self) -> impl Iterator<Item = usize> + use<> {
        let extents = self.extents;
        let count = if self.errno == 0 { extents.as_slice().len() } else { 0 };
        (0..count).filter(move |extent| extents.as_slice()[*extent].offset.is_some())
    }

    /// The operation that moves what is left of an extent to or from a payload, of which `pointer` gives the address of
    /// a byte and `buffer` the number if it is registered with the ring. The operation counts as in flight.
    pub(in crate::export) fn operation(
        &mut self,
        extent: usize,
        buffer: Option<u16>,
        pointer: impl FnOnce(usize) -> *mut u8,
    ) -> Option<squeue::Entry> {
        let list = self.extents.as_slice();
        let before: u32 = list[..extent].iter().map(|e| e.len).sum();
        let done = self.done[extent];
        let offset = list[extent].offset? + u64::from(done);
        let len = list[extent].len - done;
        self.pending += 1;
        let fd = Fd(self.transfer.node.volume.data_fd());
        let at = pointer((before + done) as usize);
        Some(match (self.transfer.direction, buffer) {
            (Direction::Read, Some(buffer)) => opcode::ReadFixed::new(fd, at, len, buffer).offset(offset).build(),
            (Direction::Write, Some(buffer)) => opcode::WriteFixed::new(fd, at, len, buffer).offset(offset).build(),
            (Direction::Read, None) => opcode::Read::new(fd, at, len).offset(offset).build(),
            (Direction::Write, None) => opcode::Write::new(fd, at, len).offset(offset).build(),
        })
    }

    /// An operation on an extent has completed. True: there is more to move of it.
    pub(in crate::export) fn moved(&mut self, extent: usize, result: i32) -> bool {
        self.pending -= 1;
        match u32::try_from(result) {
            Ok(bytes) => {
                self.done[extent] += bytes;
                if self.done[extent] < self.extents.as_slice()[extent].len {
                    if bytes > 0 {
                        return true;
                    }
                    // The data file ends before a block that the pool gave out.
                    self.errno = libc::EIO;
                }
            }
            Err(_) if matches!(-result, libc::EAGAIN | libc::EINTR) => return true,
            Err(_) => {
                let (id, direction) = (self.transfer.node.id, self.transfer.direction);
                tracing::error!("{direction:?} of device {id} below the pool failed: errno {}", -result);
                self.errno = if result == -libc::ENOSPC { libc::ENOSPC } else { libc::EIO };
            }
        }
        false
    }

    /// True if no operation is in flight.
    pub(in crate::export) fn is_over(&self) -> bool {
        self.pending == 0
    }

    /// Gives the blocks back; the errno, and what was to be done. ENOSPC of a write means that the file system below is
    /// full: the blocking way knows what to do about that.
    pub(in crate::export) fn end(self) -> (i32, Transfer) {
        self.transfer.node.volume.end_direct(self.token);
        (self.errno, self.transfer)
    }
}
