//! A run of bytes in a file: a blob of a layout, or a member of an archive that is read in place.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::config::Limits;
use crate::error::{Error, ErrorKind, Result};
use crate::image::compression::{Compression, MAGIC_BYTES};
use crate::image::digest::Digest;

/// Bytes in a file, read without moving its position, so that many may read at once.
#[derive(Debug, Clone)]
pub(super) struct Blob {
    /// What it is called in the archive, for messages.
    pub(super) name: String,
    file: Arc<File>,
    offset: u64,
    len: u64,
}

impl Blob {
    /// `len` bytes from `offset` on; the caller has seen that the file is that long.
    pub(super) fn new(name: String, file: Arc<File>, offset: u64, len: u64) -> Self {
        Self { name, file, offset, len }
    }

    /// Bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// How it is packed.
    pub(super) fn compression(&self) -> Result<Compression> {
        let mut magic = Vec::new();
        let read = self.reader().take(MAGIC_BYTES as u64).read_to_end(&mut magic);
        read.map_err(|error| Error::io(format!("read {}", self.name), error))?;
        Compression::detect(&magic).map_err(|error| error.doing(&self.name))
    }

    /// Reads from its start.
    pub(super) fn reader(&self) -> BlobReader<'_> {
        BlobReader { blob: self, at: 0 }
    }

    /// All of it, for a JSON document within `limits`; checked against `digest` if there is one.
    pub(super) fn document(&self, limits: &Limits, digest: Option<&Digest>) -> Result<Vec<u8>> {
        if self.len > limits.document_bytes {
            let reason = format!("{} has {} bytes; documents end at {}", self.name, self.len, limits.document_bytes);
            return Err(Error::new(ErrorKind::BadArchive, Limits::over("document_bytes", reason)));
        }
        let mut bytes = Vec::new();
        self.reader().read_to_end(&mut bytes).map_err(|error| Error::io(format!("read {}", self.name), error))?;
        match digest {
            Some(digest) if Digest::of(&bytes) != *digest => {
                Err(Error::new(ErrorKind::BadArchive, format!("{} does not match its digest {digest}", self.name))
                    .advise("the archive is damaged: fetch it again"))
            }
            Some(_) | None => Ok(bytes),
        }
    }

    /// Errors unless it has the size that whoever names it tells.
    pub(super) fn check_size(&self, told: u64) -> Result<()> {
        if self.len == told {
            return Ok(());
        }
        let reason = format!("{} has {} bytes, its descriptor tells {told}", self.name, self.len);
        Err(Error::new(ErrorKind::BadArchive, reason).advise("the archive is damaged: fetch it again"))
    }
}

/// Reads a blob from its start to its end.
#[derive(Debug)]
pub(super) struct BlobReader<'a> {
    blob: &'a Blob,
    at: u64,
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.blob.len - self.at).unwrap_or(usize::MAX);
        let want = buffer.len().min(left);
        if want == 0 {
            return Ok(0);
        }
        let read = self.blob.file.read_at(&mut buffer[..want], self.blob.offset + self.at)?;
        if read == 0 {
            // The file was cut while we read it.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += read as u64;
        Ok(read)
    }
}
