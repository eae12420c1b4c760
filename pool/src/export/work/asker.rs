//! Who waits for the answer to a request, whichever way the request came.

/// What a request is answered with.
#[derive(Debug, Clone, Copy)]
pub(in crate::export) enum Reply<'a> {
    /// It is done.
    Done,
    /// So many bytes are written.
    Wrote(u32),
    /// The bytes that were asked for.
    Bytes(&'a [u8]),
    /// It failed with this errno.
    Failed(i32),
}

/// The way back to the kernel.
pub(in crate::export) trait Asker: Clone + Send + 'static {
    /// Answers. A second answer to the same request does nothing.
    fn answer(&self, reply: Reply<'_>);
}
