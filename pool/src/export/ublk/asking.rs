//! A request of a ublk device that waits for its answer.
//!
//! Only the thread that asked for requests may answer them, so an answer goes to its event loop. Each arrival of a
//! request has a number of its own (its turn): the same tag may long carry another request when a second answer comes.

use std::sync::Arc;

use crate::export::ublk::channel::Channel;
use crate::export::work::{Asker, Home, Mailbox, Node, Reply};

/// What comes to an event loop from other threads.
pub(super) enum Message {
    /// A device to be served from here on.
    Serve { channel: Arc<Channel>, node: Arc<Node> },
    /// A worker's or waiter's answer: the result for the driver.
    Answer { tag: Tag, result: i32 },
    /// A worker needs the slot no more.
    Slot(usize),
}

/// A request: the place of its device in the loop, its tag there, and its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) place: usize,
    pub(super) tag: u16,
    pub(super) turn: u64,
}

/// Who waits: the way to the loop, and to the request's bytes. It holds no volume.
#[derive(Clone)]
pub(in crate::export) struct Asking {
    pub(super) tag: Tag,
    pub(super) channel: Arc<Channel>,
    pub(super) mailbox: Arc<Mailbox<Message>>,
}

impl Asker for Asking {
    fn answer(&self, reply: Reply<'_>) {
        let result = match reply {
            Reply::Done => 0,
            Reply::Wrote(len) => result_of(len as usize),
            Reply::Bytes(bytes) => give(&self.channel, self.tag.tag, bytes),
            Reply::Failed(errno) => -errno,
        };
        self.mailbox.give(Message::Answer { tag: self.tag, result });
    }
}

impl Home for Mailbox<Message> {
    fn give_back(&self, slot: usize) {
        self.give(Message::Slot(slot));
    }
}

/// Copies what was read; the result for the driver.
pub(super) fn give(channel: &Channel, tag: u16, bytes: &[u8]) -> i32 {
    match channel.give(tag, bytes) {
        Ok(()) => result_of(bytes.len()),
        Err(error) => {
            tracing::error!("hand the bytes of a request to ublk: {error}");
            -libc::EIO
        }
    }
}

/// The result of a request that moved so many bytes.
pub(super) fn result_of(len: usize) -> i32 {
    i32::try_from(len).expect("a request's payload is at most 1 MiB")
}
