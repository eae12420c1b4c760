//! How a blob or archive is packed: told by its first bytes, never by its name or media type.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;

use crate::error::{Error, ErrorKind, Result};

/// First bytes that tell every packing: tar's own magic stands at 257, the others' at 0.
pub(super) const MAGIC_BYTES: usize = 6;

/// How bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    Plain,
    Gzip,
    Zstd,
}

impl Compression {
    /// From the first bytes, [`MAGIC_BYTES`] or fewer. Errors with `Unsupported` for packings that we know but do not read.
    pub(super) fn detect(magic: &[u8]) -> Result<Self> {
        let unsupported = |name: &str| {
            Err(Error::new(ErrorKind::Unsupported, format!("it is packed with {name}"))
                .advise("pack it with gzip or zstd, or unpack it"))
        };
        match magic {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            // A frame of zstd, or a skippable frame in front of one.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => unsupported("xz"),
            [b'B', b'Z', b'h', ..] => unsupported("bzip2"),
            [0x04, 0x22, 0x4d, 0x18, ..] => unsupported("lz4"),
            _ => Ok(Self::Plain),
        }
    }

    /// Unpacks `packed`. Gzip of several members and zstd of several frames are one stream.
    pub(super) fn unpack<'a>(self, packed: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::Plain => Box::new(packed),
            Self::Gzip => Box::new(MultiGzDecoder::new(packed)),
            // Memory is bounded by the library: windows of more than 128 MiB are refused.
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(packed)?),
        })
    }

    /// For messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}
