//! Answers for a dying server what it may itself be waiting for.
//!
//! A killed process may have a thread inside the kernel that waits for an answer from its own filesystem (it was
//! opening a file of it, or binding a loop device to it), and the kernel lets nobody interrupt that. It can only go
//! when somebody answers; and whoever serves the data may begin only when it is gone. So the attendant answers what
//! needs no data. What it reads beyond that it leaves unanswered: the kernel sends it again, to the real server.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::uio::readv;

use crate::error::{Error, Result};
use crate::export::fuse::asking::answer;
use crate::export::fuse::node::Nodes;
use crate::export::fuse::requests::{Decision, decide};
use crate::export::fuse::session::{Session, resend, set_waiting};
use crate::export::fuse::wire::{Request, WRITE_HEADER};
use crate::export::work::PAYLOAD_MAX;

/// How often the kernel is asked to send again: the dying process may still take a request that its ring waited for.
const RESEND_EVERY_MS: u16 = 100;

/// The thread; ended and joined when dropped.
pub(in crate::export) struct Attendant {
    thread: Option<JoinHandle<()>>,
    bell: Arc<EventFd>,
}

impl Attendant {
    /// Attends to the connection with what is known about its files.
    pub(in crate::export) fn start(session: &Session, nodes: Arc<Nodes>) -> Result<Self> {
        let fail = |e: io::Error| Error::io("attend to the connection of a dying server", e);
        let fds = session.duplicate()?;
        for fd in &fds {
            // Another reader may be faster.
            set_waiting(fd, false).map_err(fail)?;
        }
        let bell = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map_err(|e| fail(e.into()))?);
        let stop = Arc::clone(&bell);
        let thread = std::thread::Builder::new()
            .name("pool-attend".into())
            .spawn(move || attend(&fds, &stop, &nodes))
            .map_err(fail)?;
        Ok(Self { thread: Some(thread), bell })
    }
}

impl Drop for Attendant {
    fn drop(&mut self) {
        if let Err(errno) = self.bell.write(1) {
            tracing::error!("cannot wake the attendant: {errno}");
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the attendant of a dying server panicked");
        }
    }
}

fn attend(fds: &[OwnedFd], stop: &EventFd, nodes: &Nodes) {
    let mut payload = vec![0; PAYLOAD_MAX];
    ask_again(fds);
    loop {
        let mut polled = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        polled.extend(fds.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        match poll(&mut polled, PollTimeout::from(RESEND_EVERY_MS)) {
            Ok(0) => ask_again(fds),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return tracing::error!("the attendant of a dying server: {errno}"),
        }
        let woken: Vec<bool> = polled.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        if woken[0] {
            return;
        }
        for (fd, _) in fds.iter().zip(&woken[1..]).filter(|(_, woken)| **woken) {
            match take_one(fd, nodes, &mut payload) {
                Ok(()) | Err(Errno::ENOENT | Errno::EINTR | Errno::EAGAIN | Errno::ENOMEM) => {}
                Err(errno) => return tracing::warn!("the attendant of a dying server: {errno}"),
            }
        }
    }
}

fn ask_again(fds: &[OwnedFd]) {
    if let Some(Err(error)) = fds.first().map(resend) {
        tracing::warn!("{error}");
    }
}

fn take_one(fd: &OwnedFd, nodes: &Nodes, payload: &mut [u8]) -> nix::Result<()> {
    let mut head = [0; WRITE_HEADER];
    let len = readv(fd, &mut [IoSliceMut::new(&mut head), IoSliceMut::new(payload)])?;
    let head = &head[..len.min(WRITE_HEADER)];
    let Some(request) = Request::parse(head) else { return Ok(()) };
    let decision = if len > WRITE_HEADER && !request.carries_payload() {
        decide(nodes, request, &[head, &payload[..len - WRITE_HEADER]].concat())
    } else {
        decide(nodes, request, head)
    };
    match decision {
        Decision::Status(errno) => answer(fd, request.unique, errno, &[]),
        Decision::Answer(body) => answer(fd, request.unique, 0, &body),
        Decision::Settle(node) => {
            answer(fd, request.unique, 0, &[]);
            nodes.settle(node);
        }
        Decision::Silence | Decision::Transfer(_) | Decision::Errand(_) => {}
    }
    Ok(())
}
