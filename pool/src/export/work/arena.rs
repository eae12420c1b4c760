//! The memory that requests pass through: page-aligned payloads, set aside once.
//!
//! A process that serves a block device must not wait for memory that only the writeback of that device frees;
//! so nothing on the way of a request allocates a payload.

use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use io_uring::IoUring;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

/// Most payload bytes of one request.
pub(in crate::export) const PAYLOAD_MAX: usize = 1 << 20;
/// Requests of one event loop that may be under way at once.
pub(in crate::export) const SLOTS: usize = 32;

/// Payload memory of all slots of one event loop.
pub(in crate::export) struct Arena {
    base: NonNull<libc::c_void>,
    len: usize,
}

// SAFETY: the arena is plain memory; who may touch which slot at what time is the matter of its users, who get at
// it through `payload` only, an unsafe call.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    pub(in crate::export) fn new(slots: usize) -> io::Result<Self> {
        let len = slots * PAYLOAD_MAX;
        let size = NonZeroUsize::new(len).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        // SAFETY: a new private mapping at an address of the kernel's choice touches no memory of ours.
        let base =
            unsafe { mmap_anonymous(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)? };
        // Large pages make pinning and copying cheaper; a kernel without them serves as well.
        // SAFETY: the range is the mapping made above; the advice changes no contents.
        let _ = unsafe { madvise(base, len, MmapAdvise::MADV_HUGEPAGE) };
        Ok(Self { base, len })
    }

    /// Registers the payloads with a ring, a buffer for each slot. False: refused, transfers cost a little more. The
    /// arena must outlive every operation of the ring on it.
    pub(in crate::export) fn register(&self, ring: &IoUring) -> bool {
        let buffers: Vec<_> = (0..self.slots())
            .map(|slot| libc::iovec { iov_base: self.pointer(slot).cast(), iov_len: PAYLOAD_MAX })
            .collect();
        // SAFETY: the buffers are inside the mapping, which by contract outlives the ring's operations.
        let registered = unsafe { ring.submitter().register_buffers(&buffers) };
        if let Err(error) = &registered {
            tracing::warn!("payload buffers are not registered ({error}): transfers cost a little more");
        }
        registered.is_ok()
    }

    pub(in crate::export) fn slots(&self) -> usize {
        self.len / PAYLOAD_MAX
    }

    /// The first byte of a slot's payload.
    pub(in crate::export) fn pointer(&self, slot: usize) -> *mut u8 {
        assert!(slot < self.slots(), "slot {slot} is not in this arena");
        // SAFETY: the assertion keeps the offset inside the mapping.
        unsafe { self.base.as_ptr().cast::<u8>().add(slot * PAYLOAD_MAX) }
    }

    /// The first `len` bytes of a slot's payload.
    ///
    /// # Safety
    /// Nobody else, the kernel included, may use the slot's payload while the slice lives.
    #[expect(clippy::mut_from_ref, reason = "slots are handed from owner to owner; the caller vouches for it")]
    pub(in crate::export) unsafe fn payload(&self, slot: usize, len: usize) -> &mut [u8] {
        assert!(len <= PAYLOAD_MAX, "a payload has {PAYLOAD_MAX} bytes, not {len}");
        // SAFETY: the range is inside the mapping (see `pointer` and the assertion); the mapping is zero-filled
        // memory, valid for every byte; the caller vouches that nobody else uses it.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(slot), len) }
    }
}

/// A ring whose completions are handled only when its thread asks for them (Linux 6.1), else a plain one.
pub(in crate::export) fn build_ring(entries: u32) -> io::Result<IoUring> {
    let fast = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(entries);
    match fast {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::new(entries),
        other => other,
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length and nothing borrows from it any more.
        let _ = unsafe { munmap(self.base, self.len) };
    }
}
