//! Unpacking: the device of a layer is written while its files still come, not only when it is unmounted.
//!
//! What is unpacked stays and is wanted durable at once, so that holding it back in the page cache saves nothing; a
//! container's files may be gone before they are ever written, so that its device is left to the kernel's own choice. The
//! limit goes with the device, at Commit and Remove: the pool takes care of that.

use std::path::Path;

use thinsnap_pool::ByteCount;

use crate::snapshot::{Labels, Snapshot};
use crate::snapshotter::snapshotter::Snapshotter;
use crate::store::REF_LABEL;

/// The label of a Prepare on which a layer is to be unpacked. containerd's own unpacker says it with `snapshot.ref`, which
/// counts as much. containerd hands down labels that begin so.
pub const UNPACK_LABEL: &str = "containerd.io/snapshot/thinsnap.unpack";

/// Bytes in the page cache before they are written: less lets the unpacker wait for the disk, more is left for the end.
const DIRTY_MAX: ByteCount = ByteCount(32 << 20);

fn is_unpacked_into(labels: &Labels) -> bool {
    labels.contains_key(REF_LABEL) || labels.contains_key(UNPACK_LABEL)
}

impl Snapshotter {
    /// Has the kernel write the device early, if a layer is unpacked into the snapshot. It is only slower without.
    pub(super) fn write_early(&self, snapshot: &Snapshot, device: &Path) {
        if is_unpacked_into(&snapshot.labels)
            && let Err(error) = self.filesystems.limit_dirty(device, DIRTY_MAX)
        {
            tracing::debug!(snapshot = %snapshot.name, "the kernel writes it when it likes: {error}");
        }
    }
}
