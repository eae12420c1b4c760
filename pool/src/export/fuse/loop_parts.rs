//! What an event loop needs from its owner.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::export::alive::Alive;
use crate::export::fuse::asking::Asking;
use crate::export::fuse::node::Nodes;
use crate::export::work::{JobSender, Mailbox};

/// The connection, and the doors to the others.
#[derive(Clone)]
pub(super) struct LoopParts {
    pub(super) device: Arc<OwnedFd>,
    /// No other loop reads from the connection.
    pub(super) alone: bool,
    /// What must stay open as long as an operation of the loop may be under way.
    pub(super) alive: Option<Arc<Alive>>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) jobs: JobSender<Asking>,
    /// Slots that workers return.
    pub(super) mailbox: Arc<Mailbox<usize>>,
}
