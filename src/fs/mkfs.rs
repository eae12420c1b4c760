//! Makes the file system of a base device, so that its snapshots start small and empty.
//!
//! Every snapshot inherits what is decided here:
//! - ext4's features are spelled out from `none` up, so that every distribution makes the same base;
//! - `packed_meta_blocks` keeps bitmaps and inode tables together, so that a first write breaks the
//!   sharing of few data blocks;
//! - the journal is small, because a container that lives long writes all of it;
//! - a fresh thin device reads as zeroes, so nothing is zeroed and nothing discarded;
//! - the root directory is empty, also of lost+found: clients compare trees strictly. e2fsck makes it
//!   anew when it has something to put there.

use std::path::Path;

use thinsnap_pool::ByteCount;

use crate::error::{Error, Result};
use crate::fs::detached::Detached;
use crate::fs::tool::Tool;
use crate::snapshot::FsType;

const MKFS_EXT4: Tool = Tool { program: "mkfs.ext4", package: "e2fsprogs" };
const MKFS_XFS: Tool = Tool { program: "mkfs.xfs", package: "xfsprogs" };

const MIB: u64 = 1 << 20;
const EXT4_FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,\
                             sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";
const EXT4_EXTENDED: &str =
    "nodiscard,assume_storage_prezeroed=1,lazy_journal_init=1,packed_meta_blocks=1,root_owner=0:0";

/// The smallest device that the file system can be made on.
#[must_use]
pub fn size_min(fs: FsType) -> ByteCount {
    match fs {
        // Room for the journal and some files.
        FsType::Ext4 => ByteCount(16 * MIB),
        // mkfs.xfs refuses less (source: xfsprogs).
        FsType::Xfs => ByteCount(300 * MIB),
    }
}

/// Makes an empty file system on a device that reads as zeroes. It is unmounted and clean at return.
pub(crate) fn make(fs: FsType, device: &Path, size: ByteCount) -> Result<()> {
    match fs {
        FsType::Ext4 => {
            // 4 MiB is the least that a journal of 4 KiB blocks may have; 16 MiB serve a busy container.
            let journal = format!("size={}", (size.0 / (64 * MIB)).clamp(4, 16));
            let args = ["-q", "-F", "-m", "0", "-b", "4096", "-e", "remount-ro", "-O", EXT4_FEATURES];
            let args = [args.as_slice(), &["-J", &journal, "-E", EXT4_EXTENDED]].concat();
            MKFS_EXT4.run(&args, device)?;
            let mounted = Detached::open(fs, device, &["noatime"])?;
            mounted
                .remove_dir("lost+found")
                .map_err(|e| Error::io(format!("remove lost+found on {}", device.display()), e))
        }
        FsType::Xfs => MKFS_XFS.run(&["-q", "-f", "-K", "-m", "crc=1"], device),
    }
}
