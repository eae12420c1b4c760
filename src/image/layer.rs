//! One layer on its way from a blob to a directory: read, hashed, unpacked, hashed and laid down at the same time.
//!
//! ```text
//! reader ──packed──▶ unpacker ──chunks──▶ this thread: tar → root directory
//!   blob digest          └─────chunks──▶ hasher: diff id
//! ```
//! Channels are bounded, so the slowest stage sets the pace and memory stays at a few megabytes. The first error wins, with
//! one exception: bytes that do not match their digest explain every error behind them, so a bad archive is
//! read to its end and the digest has the first word.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use crate::config::Limits;
use crate::error::{Error, ErrorKind, Result};
use crate::image::apply::{Applied, unpack};
use crate::image::blob::Blob;
use crate::image::compression::Compression;
use crate::image::digest::{Digest, Hasher};
use crate::image::progress::REPORT_EVERY;
use crate::image::tar::{ArchiveSource, EndMark, TarReader};

/// Bytes that travel together: large enough that channels do not count, small enough for the processor's cache.
const CHUNK_BYTES: usize = 256 << 10;

/// Chunks under way between two stages: with [`CHUNK_BYTES`], 2 MiB for each of three channels.
const CHUNKS_AHEAD: usize = 8;

/// Bytes shared by the stages behind them.
type Chunk = Arc<Vec<u8>>;

/// A layer to lay down.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    /// Its bytes, packed or not.
    pub(super) blob: Blob,
    /// What the packed bytes must hash to, if the archive tells.
    pub(super) digest: Option<Digest>,
    /// What the unpacked bytes must hash to, if the archive tells.
    pub(super) diff_id: Option<Digest>,
}

/// A layer that was laid down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LaidLayer {
    pub(super) diff_id: Digest,
    /// Bytes of the unpacked archive.
    pub(super) unpacked_bytes: u64,
    pub(super) applied: Applied,
}

/// What [`apply_layer`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedLayer {
    /// Digest of the unpacked archive.
    pub diff_id: String,
    /// Bytes of the unpacked archive.
    pub unpacked_bytes: u64,
    /// Members of the archive.
    pub entries: u64,
    /// Extended attributes that the file system of the directory does not know.
    pub xattrs_passed_over: u64,
}

/// Lays the layer in the file `archive` (a tar, packed with gzip or zstd or not) down on the directory `root`, on top of
/// what is there. Whatever the archive says, nothing outside `root` is read or written.
///
/// Errors: `BadArchive` naming the entry, `Unsupported` for other packings. After an error the directory is half
/// changed.
pub fn apply_layer(archive: &Path, root: BorrowedFd<'_>, limits: &Limits) -> Result<AppliedLayer> {
    let failed = |error| Error::io(format!("open {}", archive.display()), error);
    let file = File::open(archive).map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    let blob = Blob::new(archive.display().to_string(), Arc::new(file), 0, len);
    let layer = Layer { blob, digest: None, diff_id: None };
    let laid = layer.lay_down(root, limits, limits.total.0, &|_| ControlFlow::Continue(()))?;
    Ok(AppliedLayer {
        diff_id: laid.diff_id.to_string(),
        unpacked_bytes: laid.unpacked_bytes,
        entries: laid.applied.entries,
        xattrs_passed_over: laid.applied.xattrs_passed_over,
    })
}

/// Called with the packed bytes that were read.
pub(super) type OnBytes<'a> = &'a (dyn Fn(u64) -> ControlFlow<()> + Sync);

impl Layer {
    /// Lays the layer down on the directory `root`. `unpacked_max` bounds its unpacked bytes.
    ///
    /// Errors: `BadArchive` naming the entry, or the digest that does not match. What was laid down before stays:
    /// the directory is only good after a success.
    pub(super) fn lay_down(
        &self,
        root: BorrowedFd<'_>,
        limits: &Limits,
        unpacked_max: u64,
        on_bytes: OnBytes<'_>,
    ) -> Result<LaidLayer> {
        let compression = self.blob.compression()?;
        let give_up = AtomicBool::new(false);
        let mut digests = Digests::default();
        let laid = thread::scope(|scope| {
            let (packed_in, packed) = sync_channel(CHUNKS_AHEAD);
            let reader = scope.spawn(|| read_packed(&self.blob, packed_in, on_bytes, &give_up));
            let bound = Bound::new(self, limits, unpacked_max);
            let laid = match compression {
                Compression::Plain => self.lay_down_from(Chunks::new(packed, bound), root, limits),
                Compression::Gzip | Compression::Zstd => {
                    let (unpacked_in, unpacked) = sync_channel(CHUNKS_AHEAD);
                    let (hashed_in, hashed) = sync_channel::<Chunk>(CHUNKS_AHEAD);
                    let source = Chunks::new(packed, Bound::none());
                    scope.spawn(move || unpack_chunks(compression, source, &unpacked_in, &hashed_in));
                    let hasher = scope.spawn(move || hash(hashed));
                    let laid = self.lay_down_from(Chunks::new(unpacked, bound), root, limits);
                    digests.unpacked = Some(hasher.join().expect("hashing does not panic"));
                    laid
                }
            };
            // A bad archive is read to its end all the same, for its digest.
            let is_bad = laid.as_ref().is_err_and(|error| error.kind() == ErrorKind::BadArchive);
            give_up.store(!is_bad || self.digest.is_none(), Ordering::Relaxed);
            digests.packed = reader.join().expect("reading does not panic");
            laid
        });
        self.judge(laid, digests)
    }

    /// The tar and what is behind its end mark, which belongs to the diff id.
    fn lay_down_from(&self, source: Chunks, root: BorrowedFd<'_>, limits: &Limits) -> Result<(Applied, u64)> {
        let end_mark = if self.diff_id.is_some() { EndMark::Optional } else { EndMark::Required };
        let mut tar = TarReader::new(source, end_mark, limits);
        let applied = unpack(&mut tar, root, limits).map_err(|error| error.doing(&self.blob.name))?;
        let mut rest = tar.into_source();
        let unpacked_bytes = rest.drain().map_err(|error| error.doing(&self.blob.name))?;
        Ok((applied, unpacked_bytes))
    }

    /// Compares the digests: first the packed bytes', then the archive's own error, then the diff id.
    fn judge(&self, laid: Result<(Applied, u64)>, digests: Digests) -> Result<LaidLayer> {
        let mismatch = |what: &str, told: &Digest, is: &Digest| {
            let reason = format!("{}: its {what} is {is}, not {told}", self.blob.name);
            Err(Error::new(ErrorKind::BadArchive, reason).advise("the archive is damaged: fetch it again"))
        };
        if let (Some(told), Some(is)) = (&self.digest, &digests.packed)
            && told != is
        {
            return mismatch("digest", told, is);
        }
        let (applied, unpacked_bytes) = laid?;
        let diff_id = digests.unpacked.or(digests.packed).expect("what was read to its end was hashed");
        match &self.diff_id {
            Some(told) if *told != diff_id => mismatch("diff id", told, &diff_id),
            Some(_) | None => Ok(LaidLayer { diff_id, unpacked_bytes, applied }),
        }
    }
}

/// What was computed on the way; `None` if it was not all read, or not unpacked.
#[derive(Default)]
struct Digests {
    packed: Option<Digest>,
    unpacked: Option<Digest>,
}

/// First stage: reads the blob and hashes it. Goes on without a receiver until told to give up. Returns the digest if it
/// came to the end.
fn read_packed(
    blob: &Blob,
    out: SyncSender<Result<Chunk>>,
    on_bytes: OnBytes<'_>,
    give_up: &AtomicBool,
) -> Option<Digest> {
    let mut hasher = Hasher::default();
    let mut reader = blob.reader();
    let (mut done, mut reported) = (0u64, 0u64);
    let mut out = Some(out);
    let fail = |out: Option<SyncSender<Result<Chunk>>>, error: Error| {
        if let Some(out) = out {
            // Nobody listens any more: then there is an error already.
            let _ = out.send(Err(error));
        }
        None
    };
    loop {
        let chunk = match read_chunk(&mut reader) {
            Ok(chunk) => chunk,
            Err(error) => return fail(out, Error::io(format!("read {}", blob.name), error)),
        };
        if chunk.is_empty() {
            return Some(hasher.finish());
        }
        hasher.update(&chunk);
        done += chunk.len() as u64;
        if done - reported >= REPORT_EVERY || done == blob.len() {
            reported = done;
            if on_bytes(done).is_break() {
                return fail(out, Error::new(ErrorKind::Unavailable, format!("{}: stopped as asked", blob.name)));
            }
        }
        if let Some(sender) = &out
            && sender.send(Ok(Arc::new(chunk))).is_err()
        {
            out = None;
        }
        if out.is_none() && give_up.load(Ordering::Relaxed) {
            return None;
        }
    }
}

/// Second stage, for packed layers.
fn unpack_chunks(
    compression: Compression,
    packed: Chunks,
    out: &SyncSender<Result<Chunk>>,
    hashed: &SyncSender<Chunk>,
) {
    let fail = |error: io::Error| {
        let error = match error.downcast::<Error>() {
            Ok(ours) => ours,
            Err(error) => Error::with_source(
                ErrorKind::BadArchive,
                format!("unpack it with {}", compression.name()),
                match error.kind() {
                    io::ErrorKind::UnexpectedEof => io::Error::other("it ends too early: it was cut off"),
                    _ => error,
                },
            ),
        };
        // Nobody listens any more: then there is an error already.
        let _ = out.send(Err(error));
    };
    let mut unpacked = match compression.unpack(packed) {
        Ok(unpacked) => unpacked,
        Err(error) => return fail(error),
    };
    loop {
        match read_chunk(&mut unpacked) {
            Ok(chunk) if chunk.is_empty() => return,
            Ok(chunk) => {
                let chunk = Arc::new(chunk);
                if out.send(Ok(Arc::clone(&chunk))).is_err() || hashed.send(chunk).is_err() {
                    return;
                }
            }
            Err(error) => return fail(error),
        }
    }
}

/// Third stage, beside the laying down.
fn hash(chunks: Receiver<Chunk>) -> Digest {
    let mut hasher = Hasher::default();
    for chunk in chunks {
        hasher.update(&chunk);
    }
    hasher.finish()
}

/// Reads until a chunk is full or the source ends; empty at its end.
fn read_chunk(source: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    source.take(CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
    Ok(chunk)
}

/// How many bytes may come out of a layer.
struct Bound {
    bytes: u64,
    reason: String,
}

impl Bound {
    fn new(layer: &Layer, limits: &Limits, unpacked_max: u64) -> Self {
        let by_ratio = layer.blob.len().saturating_mul(limits.ratio).max(limits.ratio_free.0);
        if by_ratio < unpacked_max {
            let reason = Limits::over("ratio", format_args!("it unpacks to more than {} times its size", limits.ratio));
            Self { bytes: by_ratio, reason }
        } else {
            let reason = Limits::over("total", format_args!("the image unpacks to more than {} bytes", limits.total.0));
            Self { bytes: unpacked_max, reason }
        }
    }

    fn none() -> Self {
        Self { bytes: u64::MAX, reason: String::new() }
    }
}

/// The receiving end of a channel, to be read.
struct Chunks {
    channel: Receiver<Result<Chunk>>,
    chunk: Chunk,
    at: usize,
    taken: u64,
    bound: Bound,
}

impl Chunks {
    fn new(channel: Receiver<Result<Chunk>>, bound: Bound) -> Self {
        Self { channel, chunk: Chunk::default(), at: 0, taken: 0, bound }
    }

    /// Takes all that comes; returns how much there was in all.
    fn drain(&mut self) -> Result<u64> {
        loop {
            let ready = self.fill_buf().map_err(|error| match error.downcast::<Error>() {
                Ok(ours) => ours,
                Err(error) => Error::io("read a layer", error),
            })?;
            if ready.is_empty() {
                return Ok(self.taken);
            }
            let len = ready.len();
            self.consume(len);
        }
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.chunk.len() {
            match self.channel.recv() {
                Err(_) => return Ok(&[]),
                Ok(Err(error)) => return Err(io::Error::other(error)),
                Ok(Ok(chunk)) => (self.chunk, self.at) = (chunk, 0),
            }
            self.taken += self.chunk.len() as u64;
            if self.taken > self.bound.bytes {
                let error = Error::new(ErrorKind::BadArchive, self.bound.reason.clone());
                return Err(io::Error::other(error));
            }
        }
        Ok(&self.chunk[self.at..])
    }

    fn consume(&mut self, bytes: usize) {
        self.at += bytes;
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let ready = self.fill_buf()?;
        let len = ready.len().min(buffer.len());
        buffer[..len].copy_from_slice(&ready[..len]);
        self.consume(len);
        Ok(len)
    }
}

impl ArchiveSource for Chunks {}
