//! The bounds of an import: what an archive may ask of us before it is refused; the table `[import]`.

use std::collections::BTreeMap;
use std::fmt::Display;

use serde::Deserialize;
use thinsnap_pool::ByteCount;

use crate::config::parse_size;
use crate::error::{Error, ErrorKind, Result};

/// Bounds of one import. The default accepts every image seen in the wild with room to spare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one JSON document (index, manifest, config). 8 MiB: registries refuse manifests above 4 MiB.
    pub document_bytes: u64,
    /// Documents and manifests read to find one image. 1000: more than any registry lists platforms.
    pub documents: usize,
    /// Indexes in indexes. 4: builders write two.
    pub index_depth: usize,
    /// Members of an archive of images. 100,000: `docker save` writes three for each layer.
    pub members: usize,
    /// Layers of one image. 512: the kernel's overlayfs ends at 500 lower directories, so builders stay below.
    pub layers: usize,
    /// Entries of one layer. 16 million: more inodes than a 256 GiB ext4 has by default.
    pub entries: u64,
    /// Bytes of one path or link target in an archive. 64 KiB: paths over the kernel's 4 KiB are legal in
    /// pax headers and are walked in steps, but a path is held in memory.
    pub path_bytes: usize,
    /// Directories on one path. 4096: twice as many as the kernel's 4 KiB of a path can name; each costs two calls.
    pub path_depth: usize,
    /// Bytes of memory for the directories of one layer, which get their times at its end. 256 MiB are millions.
    pub directory_bytes: u64,
    /// Bytes of one extended header (pax or GNU long name), which is held in memory. 8 MiB: sixteen extended
    /// attributes of the kernel's largest size, 64 KiB, encoded, with room to spare.
    pub header_bytes: u64,
    /// Extended attributes of one entry. 512: more than the 64 KiB that the kernel lists hold in practice.
    pub xattrs: usize,
    /// Bytes of one extended attribute's value: the kernel's `XATTR_SIZE_MAX`.
    pub xattr_bytes: usize,
    /// Fragments of one sparse file. 1 million: a 4 KiB block in every 8 KiB of 8 GiB.
    pub sparse_fragments: usize,
    /// Unpacked bytes for each packed byte, of a layer or of a packed archive, once it is larger than `ratio_free`.
    /// 1100: deflate ends at 1032 to 1, so only a zstd bomb is ever refused by this.
    pub ratio: u64,
    /// Unpacked bytes that are never held against the ratio. A sparse disk image packs very well.
    pub ratio_free: ByteCount,
    /// Unpacked bytes of all layers of one image, and of a packed archive of images.
    pub total: ByteCount,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            document_bytes: 8 << 20,
            documents: 1000,
            index_depth: 4,
            members: 100_000,
            layers: 512,
            entries: 16_000_000,
            path_bytes: 64 << 10,
            path_depth: 4096,
            directory_bytes: 256 << 20,
            header_bytes: 8 << 20,
            xattrs: 512,
            xattr_bytes: 64 << 10,
            sparse_fragments: 1_000_000,
            ratio: 1100,
            ratio_free: ByteCount(4 << 30),
            total: ByteCount(256 << 30),
        }
    }
}

/// A value in the table: a number, or a size with a unit.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Number {
    Plain(u64),
    Text(String),
}

/// The names of the fields, as they stand in the table.
pub(super) const IMPORT_FIELDS: [&str; 16] = [
    "document_bytes",
    "documents",
    "index_depth",
    "members",
    "layers",
    "entries",
    "path_bytes",
    "path_depth",
    "directory_bytes",
    "header_bytes",
    "xattrs",
    "xattr_bytes",
    "sparse_fragments",
    "ratio",
    "ratio_free",
    "total",
];

impl Limits {
    /// The defaults with what the table `[import]` says over them; names that are not [`IMPORT_FIELDS`] have been refused.
    pub(super) fn of_table(table: BTreeMap<String, Number>) -> Result<Self> {
        let mut limits = Self::default();
        for (name, number) in table {
            let doing = || format!("field `import.{name}`");
            let value = match number {
                Number::Plain(value) => value,
                Number::Text(text) => parse_size(&text).map_err(|error| error.doing(doing()))?.0,
            };
            let count = || {
                usize::try_from(value).map_err(|error| Error::with_source(ErrorKind::InvalidArgument, doing(), error))
            };
            match name.as_str() {
                "document_bytes" => limits.document_bytes = value,
                "documents" => limits.documents = count()?,
                "index_depth" => limits.index_depth = count()?,
                "members" => limits.members = count()?,
                "layers" => limits.layers = count()?,
                "entries" => limits.entries = value,
                "path_bytes" => limits.path_bytes = count()?,
                "path_depth" => limits.path_depth = count()?,
                "directory_bytes" => limits.directory_bytes = value,
                "header_bytes" => limits.header_bytes = value,
                "xattrs" => limits.xattrs = count()?,
                "xattr_bytes" => limits.xattr_bytes = count()?,
                "sparse_fragments" => limits.sparse_fragments = count()?,
                "ratio" => limits.ratio = value,
                "ratio_free" => limits.ratio_free = ByteCount(value),
                _ => limits.total = ByteCount(value),
            }
        }
        limits.check()?;
        Ok(limits)
    }

    /// Errors with `InvalidArgument` if a limit would refuse every image. Without extended attributes, sparse files
    /// and unpacked bytes free of the ratio there are images.
    pub(crate) fn check(&self) -> Result<()> {
        let needed = [
            ("document_bytes", self.document_bytes),
            ("documents", self.documents as u64),
            ("members", self.members as u64),
            ("layers", self.layers as u64),
            ("entries", self.entries),
            ("path_bytes", self.path_bytes as u64),
            ("path_depth", self.path_depth as u64),
            ("directory_bytes", self.directory_bytes),
            ("header_bytes", self.header_bytes),
            ("ratio", self.ratio),
            ("total", self.total.0),
        ];
        match needed.iter().find(|(_, value)| *value == 0) {
            None => Ok(()),
            Some((name, _)) => Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("field `import.{name}`: a limit of zero would refuse every image"),
            )),
        }
    }

    /// What a refusal says that a limit made: the reason, and how to raise it.
    pub(crate) fn over(field: &str, reason: impl Display) -> String {
        format!("{reason}; if you trust the image, raise `{field}` in the table [import] of the configuration")
    }
}
