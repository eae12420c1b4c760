//! File systems on devices: make, mount, sync, replay, grow.
mod detached;
mod grow;
mod host;
mod mkfs;
mod mount;
mod mountinfo;
mod replay;
mod tool;

pub use detached::Detached;
pub use host::{Filesystems, HostFilesystems};
pub use mkfs::size_min;
pub use mount::{Mounted, mount, unmount};
pub use mountinfo::{MountEntry, mounts, targets_of};
pub(crate) use tool::Tool;
