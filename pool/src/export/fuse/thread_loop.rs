//! The event loop where the kernel refuses io_uring: one request at a time, by plain system calls.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::uio::readv;

use crate::export::fuse::asking::{Asking, answer};
use crate::export::fuse::loop_parts::LoopParts;
use crate::export::fuse::node::Nodes;
use crate::export::fuse::requests::{Decision, decide};
use crate::export::fuse::session::set_waiting;
use crate::export::fuse::wire::{Request, WRITE_HEADER};
use crate::export::work::{Arena, Errand, Home, Job, JobSender, LentSlot, Mailbox, PAYLOAD_MAX, SLOTS};

/// Reads requests and hands everything that moves bytes to the workers.
pub(super) struct ThreadLoop {
    device: Arc<OwnedFd>,
    nodes: Arc<Nodes>,
    jobs: JobSender<Asking>,
    mailbox: Arc<Mailbox<usize>>,
    arena: Arc<Arena>,
    free: Vec<usize>,
}

impl ThreadLoop {
    pub(super) fn new(parts: LoopParts) -> io::Result<Self> {
        set_waiting(&parts.device, false)?;
        Ok(Self {
            device: parts.device,
            nodes: parts.nodes,
            jobs: parts.jobs,
            mailbox: parts.mailbox,
            arena: Arc::new(Arena::new(SLOTS)?),
            free: (0..SLOTS).rev().collect(),
        })
    }

    /// Serves until the filesystem is unmounted or [`Mailbox::stop`] is called, then until every request under way
    /// is answered.
    pub(super) fn run(mut self) {
        let mut ending = false;
        loop {
            let hungry = ending || self.free.is_empty();
            self.free.append(&mut self.mailbox.collect(hungry));
            if ending && self.free.len() == SLOTS {
                return;
            }
            let slot = if ending { None } else { self.free.pop() };
            match self.wait(slot.is_some()) {
                Ok(Woken { stop, readable }) => {
                    ending |= stop;
                    match slot {
                        Some(slot) if readable => ending |= self.take_request(slot),
                        Some(slot) => self.free.push(slot),
                        None => {}
                    }
                }
                Err(errno) => {
                    tracing::error!("the event loop of the exporter failed: {errno}");
                    return;
                }
            }
        }
    }

    fn wait(&self, requests: bool) -> nix::Result<Woken> {
        let bell = PollFd::new(self.mailbox.bell().as_fd(), PollFlags::POLLIN);
        let mut fds = vec![bell];
        if requests {
            fds.push(PollFd::new(self.device.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let woken = |at: usize| fds.get(at).and_then(PollFd::revents).is_some_and(|events| !events.is_empty());
        Ok(Woken { stop: woken(0) && self.mailbox.answer_bell(), readable: woken(1) })
    }

    /// True: the filesystem is gone.
    fn take_request(&mut self, slot: usize) -> bool {
        let mut head = [0; WRITE_HEADER];
        // SAFETY: a slot taken from the free list is nobody else's.
        let payload = unsafe { self.arena.payload(slot, PAYLOAD_MAX) };
        let len = match readv(&self.device, &mut [IoSliceMut::new(&mut head), IoSliceMut::new(payload)]) {
            Ok(len) => len,
            Err(errno) => {
                self.free.push(slot);
                return match errno {
                    Errno::ENOENT | Errno::EINTR | Errno::EAGAIN | Errno::ENOMEM => false,
                    Errno::ENODEV | Errno::ECONNABORTED => true,
                    _ => {
                        tracing::error!("cannot read from /dev/fuse: {errno}; the export ends");
                        true
                    }
                };
            }
        };
        let head = &head[..len.min(WRITE_HEADER)];
        let request = match Request::parse(head) {
            Some(request) if request.len as usize == len => request,
            _ => {
                tracing::error!("the kernel sent a broken request of {len} bytes");
                self.free.push(slot);
                return false;
            }
        };
        let decision = if len > WRITE_HEADER && !request.carries_payload() {
            decide(&self.nodes, request, &[head, &payload[..len - WRITE_HEADER]].concat())
        } else {
            decide(&self.nodes, request, head)
        };
        let errand = match decision {
            Decision::Transfer(transfer) => Errand::Transfer(transfer),
            Decision::Errand(errand) => errand,
            Decision::Silence => return self.freed(slot),
            Decision::Status(errno) => {
                answer(&self.device, request.unique, errno, &[]);
                return self.freed(slot);
            }
            Decision::Answer(body) => {
                answer(&self.device, request.unique, 0, &body);
                return self.freed(slot);
            }
            Decision::Settle(node) => {
                answer(&self.device, request.unique, 0, &[]);
                let nodes = Arc::clone(&self.nodes);
                self.jobs.send(Job::Aside(Box::new(move || nodes.settle(node))));
                return self.freed(slot);
            }
        };
        let home: Arc<dyn Home> = Arc::clone(&self.mailbox) as _;
        let slot = LentSlot { slot, arena: Arc::clone(&self.arena), home };
        let asker = Asking { unique: request.unique, device: Arc::clone(&self.device) };
        self.jobs.send(Job::Errand { asker, errand, slot });
        false
    }

    fn freed(&mut self, slot: usize) -> bool {
        self.free.push(slot);
        false
    }
}

/// Why the loop woke.
struct Woken {
    stop: bool,
    readable: bool,
}
