//! A FUSE filesystem with a file per shown device.
mod arena;
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

pub(super) use node::{Node, Nodes};
pub(super) use serving::Serving;
pub(super) use session::{MountState, Session, detach_mount, make_dir, mount_state};
