//! Tar archives, read strictly: where programs disagree about what an archive holds, it is refused.
mod entry;
mod fields;
mod header;
mod pax;
mod reader;
mod sparse;

pub(super) use entry::{Entry, EntryKind, bad_entry, shown};
pub(super) use reader::{ArchiveSource, EndMark, TarReader};
pub(super) use sparse::Fragment;
