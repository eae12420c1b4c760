//! The bounds of an import: what an archive may ask of us before it is refused.

use thinsnap_pool::ByteCount;

/// Bounds of one import. The default accepts every image seen in the wild with room to spare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one JSON document (index, manifest, config). 8 MiB: registries refuse manifests above 4 MiB.
    pub document_bytes: u64,
    /// Layers of one image. 512: the kernel's overlayfs ends at 500 lower directories, so builders stay below.
    pub layers: usize,
    /// Entries of one layer. 16 million: more inodes than a 256 GiB ext4 has by default.
    pub entries: u64,
    /// Bytes of one path or link target in an archive. 64 KiB: paths over the kernel's 4 KiB are legal in
    /// pax headers and are walked in steps, but a path is held in memory.
    pub path_bytes: usize,
    /// Bytes of one extended header (pax or GNU long name), which is held in memory. 8 MiB: sixteen extended
    /// attributes of the kernel's largest size, 64 KiB, encoded, with room to spare.
    pub header_bytes: u64,
    /// Bytes of one extended attribute's value: the kernel's `XATTR_SIZE_MAX`.
    pub xattr_bytes: usize,
    /// Fragments of one sparse file. 1 million: a 4 KiB block in every 8 KiB of 8 GiB.
    pub sparse_fragments: usize,
    /// Unpacked bytes of one layer for each packed byte, once a layer is larger than `ratio_free`.
    /// 1100: deflate ends at 1032 to 1, so only a zstd bomb is ever refused by this.
    pub ratio: u64,
    /// Unpacked bytes of a layer that are never held against its ratio. A sparse disk image packs very well.
    pub ratio_free: ByteCount,
    /// Unpacked bytes of all layers of one image.
    pub total: ByteCount,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            document_bytes: 8 << 20,
            layers: 512,
            entries: 16_000_000,
            path_bytes: 64 << 10,
            header_bytes: 8 << 20,
            xattr_bytes: 64 << 10,
            sparse_fragments: 1_000_000,
            ratio: 1100,
            ratio_free: ByteCount(4 << 30),
            total: ByteCount(256 << 30),
        }
    }
}
