//! A FUSE filesystem with a file per shown device.
mod asking;
mod attendant;
mod loop_parts;
mod node;
mod requests;
mod ring_loop;
mod ring_slot;
mod serving;
mod session;
mod thread_loop;
mod wire;

pub(super) use attendant::Attendant;
pub(super) use node::Nodes;
pub(super) use serving::Serving;
pub(crate) use session::is_connected;
pub(super) use session::{MountState, Session, abort_mount, detach_mount, is_mounted, make_dir, mount_state};
