//! A FUSE filesystem with a file per shown device.
mod arena;
mod attendant;
mod lost_volume;
mod lot;
mod mailbox;
mod node;
mod requests;
mod ring_loop;
mod ring_slot;
mod serving;
mod session;
mod thread_loop;
mod wire;
mod workers;

pub(super) use attendant::Attendant;
pub(super) use lost_volume::LostVolume;
pub(super) use node::{Node, Nodes};
pub(super) use serving::Serving;
pub(crate) use session::is_connected;
pub(super) use session::{MountState, Session, abort_mount, detach_mount, is_mounted, make_dir, mount_state};
