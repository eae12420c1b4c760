//! Keeps a process that serves block devices out of the way of memory pressure, as far as it is allowed.

/// The prctl of that name, Linux 5.6.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Tells the kernel that this thread serves block I/O, so that its allocations never wait for writeback that only it
/// can finish. Needs `CAP_SYS_RESOURCE` and Linux 5.6; without them the preallocated buffers are all there is.
pub(crate) fn shun_memory_pressure() {
    // SAFETY: this prctl takes plain numbers and touches no memory.
    let refused = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) } != 0;
    if refused {
        tracing::debug!("not marked as an I/O flusher: {}", std::io::Error::last_os_error());
    }
}

/// Locks the process's memory as it is touched, so that serving never waits for a page of its own. A refusal (the
/// limit `RLIMIT_MEMLOCK` without `CAP_IPC_LOCK`) is a warning: it matters only on a machine that swaps.
pub(crate) fn keep_resident() {
    // SAFETY: mlockall takes flags only.
    let refused = unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) } != 0;
    if refused {
        let error = std::io::Error::last_os_error();
        tracing::warn!("memory is not locked ({error}): raise the memlock limit if this machine swaps");
    }
}
