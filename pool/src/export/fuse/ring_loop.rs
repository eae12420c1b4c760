//! The event loop: reads requests, does direct I/O and answers, all through one io_uring.
//!
//! A **slot** is the memory of one request: its header, its payload (in the [`Arena`]) and its answer. A slot is in
//! one place at a time: free, armed (the kernel reads a request into it), moving bytes, being answered, or lent to a
//! worker. Only its place may touch it; every kernel operation on a slot is in flight while the slot is in that
//! place, and the loop ends only after the last one has completed.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use io_uring::types::{Fd, Fixed};
use io_uring::{IoUring, opcode, squeue};

use crate::export::exporter::Direction;
use crate::export::fuse::asking::{Asking, answer};
use crate::export::fuse::loop_parts::LoopParts;
use crate::export::fuse::node::Nodes;
use crate::export::fuse::requests::{Decision, decide};
use crate::export::fuse::ring_slot::{Event, Slot};
use crate::export::fuse::session::set_waiting;
use crate::export::fuse::wire::{OUT_HEADER, Request, WRITE_HEADER, answer_write, out_header};
use crate::export::work::{
    Arena, Errand, Foresight, Home, Job, JobSender, LentSlot, Mailbox, Moving, Node, PAYLOAD_MAX, Poll, SLOTS,
    Transfer, build_ring,
};
use crate::mutation::Mutation;

/// Most reads of /dev/fuse in flight. A batch of requests wants many; but every read that waits is woken by every
/// request, so a loop with little to do keeps one.
const ARMED_MAX: usize = 8;
/// Transfers in flight for each further read.
const TRANSFERS_PER_READ: usize = 4;
const RING_ENTRIES: u32 = 256;
/// Place of the connection in the ring's file table.
const DEVICE: Fixed = Fixed(0);

/// One event loop; [`RingLoop::run`] is the body of its thread.
pub(super) struct RingLoop {
    ring: IoUring,
    device: Arc<OwnedFd>,
    nodes: Arc<Nodes>,
    jobs: JobSender<Asking>,
    arena: Arc<Arena>,
    slots: Box<[Slot]>,
    free: Vec<usize>,
    armed: usize,
    lent: usize,
    /// Kernel operations in flight that are not armed reads.
    in_flight: usize,
    mailbox: Arc<Mailbox<usize>>,
    /// Answers in flight; they complete while they are submitted.
    answering: usize,
    /// True when no more requests are to be read.
    ending: bool,
    /// True if the payloads are registered with the ring, which saves pinning them for each transfer.
    registered: bool,
    completed: Vec<(u64, i32)>,
    poll: Poll,
    /// `None`: other loops read from the connection too, so that this one does not see all changes.
    foresight: Option<Foresight>,
}

impl RingLoop {
    /// Must be called on the thread that runs the loop: the ring belongs to it. Errors: no io_uring here.
    pub(super) fn new(parts: LoopParts) -> io::Result<Self> {
        // A thread loop before this one may have asked for reads that do not wait, which a ring would spin on.
        set_waiting(&parts.device, true)?;
        let ring = build_ring(RING_ENTRIES)?;
        // The ring never uses the second one: it only keeps it open until its last operation is done (see `Alive`).
        let alive = parts.alive.as_ref().map_or(-1, |alive| alive.raw_fd());
        ring.submitter().register_files(&[parts.device.as_raw_fd(), alive])?;
        let arena = Arena::new(SLOTS)?;
        let registered = arena.register(&ring);
        let mut slots: Box<[Slot]> = (0..SLOTS).map(|_| Slot::new()).collect();
        for (number, slot) in slots.iter_mut().enumerate() {
            slot.read_pieces = [
                libc::iovec { iov_base: slot.header.as_mut_ptr().cast(), iov_len: WRITE_HEADER },
                libc::iovec { iov_base: arena.pointer(number).cast(), iov_len: PAYLOAD_MAX },
            ];
        }
        Ok(Self {
            ring,
            device: parts.device,
            nodes: parts.nodes,
            jobs: parts.jobs,
            arena: Arc::new(arena),
            slots,
            free: (0..SLOTS).rev().collect(),
            armed: 0,
            lent: 0,
            in_flight: 0,
            mailbox: parts.mailbox,
            answering: 0,
            ending: false,
            registered,
            completed: Vec::with_capacity(2 * RING_ENTRIES as usize),
            poll: Poll::new(),
            foresight: parts.alone.then(Foresight::default),
        })
    }

    /// Serves until the filesystem is unmounted or [`Mailbox::stop`] is called, then until every request under way
    /// is answered.
    pub(super) fn run(mut self) {
        self.listen();
        let mut handled = 0;
        loop {
            self.collect();
            self.arm();
            if self.ending && self.armed + self.in_flight + self.lent == 0 {
                return;
            }
            self.flush_ahead();
            let events = events_to_wait_for(self.armed, self.in_flight, self.answering);
            match self.poll.wait(&mut self.ring, events, handled) {
                Ok(()) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
                Err(error) => {
                    // The kernel refuses the ring itself: what is in flight cannot be waited for, so its memory
                    // must outlive this thread.
                    tracing::error!("the event loop of the exporter failed: {error}");
                    std::mem::forget(self);
                    return;
                }
            }
            let mut completed = std::mem::take(&mut self.completed);
            completed.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
            handled = completed.len();
            for (data, result) in completed.drain(..) {
                self.handle(Event::unpack(data), result);
            }
            self.completed = completed;
        }
    }

    fn handle(&mut self, event: Event, result: i32) {
        match event {
            Event::Request { slot } => {
                self.armed -= 1;
                self.slots[slot].armed = false;
                self.take_request(slot, result);
            }
            Event::Moved { slot, extent } => {
                self.in_flight -= 1;
                self.moved(slot, extent, result);
            }
            Event::Answered { slot } => {
                self.in_flight -= 1;
                self.answering -= 1;
                if result < 0 {
                    // The request was given up, or the filesystem is gone: nobody is left to tell.
                    tracing::debug!("the kernel did not take an answer: errno {}", -result);
                }
                self.free.push(slot);
            }
            Event::Wake => {
                if self.mailbox.answer_bell() {
                    self.end();
                }
                self.listen();
            }
            Event::Cancelled => self.in_flight -= 1,
        }
    }

    /// Waits for the bell.
    fn listen(&mut self) {
        let bell = Fd(self.mailbox.bell().as_raw_fd());
        let poll = i16::cast_unsigned(libc::POLLIN);
        self.push(&opcode::PollAdd::new(bell, u32::from(poll)).build(), Event::Wake);
    }

    /// Reads no more requests.
    fn end(&mut self) {
        if std::mem::replace(&mut self.ending, true) {
            return;
        }
        for slot in 0..self.slots.len() {
            if self.slots[slot].armed {
                self.in_flight += 1;
                let target = Event::Request { slot }.pack();
                self.push(&opcode::AsyncCancel::new(target).build(), Event::Cancelled);
            }
        }
    }

    /// Takes back what workers returned.
    fn collect(&mut self) {
        let hungry = self.ending || (self.free.is_empty() && self.armed == 0);
        let mut returned = self.mailbox.collect(hungry);
        self.lent -= returned.len();
        self.free.append(&mut returned);
    }

    /// Lets the kernel read requests into free slots.
    fn arm(&mut self) {
        let wanted = (1 + self.in_flight / TRANSFERS_PER_READ).min(ARMED_MAX);
        while !self.ending && self.armed < wanted {
            let Some(slot) = self.free.pop() else { return };
            let pieces = self.slots[slot].read_pieces.as_ptr();
            self.armed += 1;
            self.slots[slot].armed = true;
            self.push(&opcode::Readv::new(DEVICE, pieces, 2).build(), Event::Request { slot });
        }
    }

    fn push(&mut self, entry: &squeue::Entry, event: Event) {
        let entry = entry.clone().user_data(event.pack());
        loop {
            // SAFETY: every pointer in an entry is into a slot or the arena; both live until the operation has
            // completed (see `run`), and the slot's place keeps others away from it.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            // The queue is full: hand it over. Completions that do not fit wait in the kernel.
            if let Err(error) = self.ring.submit() {
                tracing::debug!("handing over a full queue: {error}");
            }
        }
    }

    fn take_request(&mut self, slot: usize, result: i32) {
        let Ok(len) = usize::try_from(result) else {
            self.free.push(slot);
            match -result {
                // The request was given up before it was read; a signal; a read taken back.
                libc::ENOENT | libc::EINTR | libc::EAGAIN | libc::ENOMEM | libc::ECANCELED => {}
                libc::ENODEV | libc::ECONNABORTED => self.end(),
                errno => {
                    tracing::error!("cannot read from {}: errno {errno}; the export ends", "/dev/fuse");
                    self.end();
                }
            }
            return;
        };
        let head = &self.slots[slot].header[..len.min(WRITE_HEADER)];
        let request = match Request::parse(head) {
            Some(request) if request.len as usize == len => request,
            _ => {
                tracing::error!("the kernel sent a broken request of {len} bytes");
                self.free.push(slot);
                return;
            }
        };
        self.slots[slot].unique = request.unique;
        let decision = if len > WRITE_HEADER && !request.carries_payload() {
            // SAFETY: the read into this slot has completed; the slot is nobody else's.
            let rest = unsafe { self.arena.payload(slot, len - WRITE_HEADER) };
            decide(&self.nodes, request, &[head, rest].concat())
        } else {
            decide(&self.nodes, request, head)
        };
        match decision {
            Decision::Transfer(transfer) => self.begin(slot, transfer),
            Decision::Errand(Errand::Flush(node)) => self.flush(slot, node),
            Decision::Errand(errand) => {
                self.note_change();
                self.lend(slot, errand);
            }
            Decision::Silence => self.free.push(slot),
            Decision::Status(errno) => self.answer_now(slot, errno, &[]),
            Decision::Answer(body) => self.answer_now(slot, 0, &body),
            Decision::Settle(node) => {
                self.answer_now(slot, 0, &[]);
                let nodes = Arc::clone(&self.nodes);
                self.jobs.send(Job::Aside(Box::new(move || nodes.settle(node))));
            }
        }
    }

    /// Begins a flush that is likely to be asked for, while the caller goes on.
    fn flush_ahead(&mut self) {
        let Some(device) = self.foresight.as_mut().and_then(Foresight::expects_flush) else { return };
        let quiet = self.in_flight == self.answering && self.lent == 0 && self.nodes.lot.is_empty()
            || Mutation::CoverUnderWay.is_on();
        // First the answer: its caller goes on meanwhile.
        if self.ending || !quiet || self.ring.submit().is_err() {
            return;
        }
        // The write's loop device has the file open: nobody takes the volume away before this loop has read its release.
        if let (Some(foresight), Some(node)) = (&mut self.foresight, self.nodes.find_device(device)) {
            foresight.flush_ahead(&node);
        }
    }

    /// Flushes on this thread if nobody else waits for it: to wake another one would take as long as the flush.
    fn flush(&mut self, slot: usize, node: Arc<Node>) {
        self.poll.rest();
        if self.foresight.as_mut().is_some_and(|foresight| foresight.take_flush(node.id)) {
            drop(node);
            return self.answer_now(slot, 0, &[]);
        }
        let nobody_waits = self.in_flight + self.lent == 0;
        match nobody_waits.then(|| node.flush_at_hand()).flatten() {
            Some(errno) => {
                drop(node);
                self.answer_now(slot, errno, &[]);
            }
            None => self.lend(slot, Errand::Flush(node)),
        }
    }

    /// Answers what is not on the hot path.
    fn answer_now(&mut self, slot: usize, errno: i32, body: &[u8]) {
        answer(&self.device, self.slots[slot].unique, errno, body);
        self.free.push(slot);
    }

    fn lend(&mut self, slot: usize, errand: Errand) {
        self.lent += 1;
        let home: Arc<dyn Home> = Arc::clone(&self.mailbox) as _;
        let slot_lent = LentSlot { slot, arena: Arc::clone(&self.arena), home };
        let asker = Asking { unique: self.slots[slot].unique, device: Arc::clone(&self.device) };
        self.jobs.send(Job::Errand { asker, errand, slot: slot_lent });
    }

    fn note_change(&mut self) {
        if let Some(foresight) = &mut self.foresight {
            foresight.note_change();
        }
    }

    fn begin(&mut self, slot: usize, transfer: Transfer) {
        if transfer.direction == Direction::Write {
            self.note_change();
        }
        // SAFETY: no operation is in flight on the slot yet, and it is nobody else's.
        let payload = unsafe { self.arena.payload(slot, transfer.len as usize) };
        match Moving::begin(transfer, payload) {
            Err(transfer) if transfer.is_done_early(payload, false) => {
                drop(transfer);
                self.answer_transfer(slot, 0, Direction::Write, payload.len());
            }
            Err(transfer) => self.lend(slot, Errand::Transfer(transfer)),
            Ok(moving) => {
                let places = moving.places();
                self.slots[slot].moving = Some(moving);
                places.for_each(|extent| self.move_rest(slot, extent));
                self.settle(slot);
            }
        }
    }

    /// Starts the transfer of what is left of an extent.
    fn move_rest(&mut self, slot: usize, extent: usize) {
        let Some(moving) = &mut self.slots[slot].moving else { return };
        let buffer = self.registered.then(|| u16::try_from(slot).expect("slots are few"));
        // SAFETY: the extents add up to the payload (checked when the transfer began).
        let entry = moving.operation(extent, buffer, |at| unsafe { self.arena.pointer(slot).add(at) });
        let Some(entry) = entry else { return };
        self.in_flight += 1;
        self.push(&entry, Event::Moved { slot, extent });
    }

    fn moved(&mut self, slot: usize, extent: usize, result: i32) {
        let Some(moving) = &mut self.slots[slot].moving else { return };
        if moving.moved(extent, result) {
            self.move_rest(slot, extent);
        } else {
            self.settle(slot);
        }
    }

    /// Ends a transfer whose last operation has completed, and answers it.
    fn settle(&mut self, slot: usize) {
        let Some(moving) = self.slots[slot].moving.take_if(|moving| moving.is_over()) else { return };
        let (errno, transfer) = moving.end();
        let (direction, len) = (transfer.direction, transfer.len as usize);
        if (errno, direction) == (libc::ENOSPC, Direction::Write) && !self.ending {
            return self.lend(slot, Errand::Transfer(transfer));
        }
        if let (Direction::Write, Some(foresight)) = (direction, &mut self.foresight) {
            foresight.note_answer(transfer.node.id);
        }
        // Before the answer: see the invariant of the table of files.
        drop(transfer);
        self.answer_transfer(slot, errno, direction, len);
    }

    /// Answers a request to move `len` bytes through the ring.
    fn answer_transfer(&mut self, slot: usize, errno: i32, direction: Direction, len: usize) {
        let place = &mut self.slots[slot];
        let body = match direction {
            _ if errno != 0 => 0,
            Direction::Read => len,
            Direction::Write => place.answer_write.len(),
        };
        place.answer_header = out_header(place.unique, errno, body);
        place.answer_write = answer_write(u32::try_from(len).expect("a request's payload is at most 1 MiB"));
        place.answer_pieces = [
            libc::iovec { iov_base: place.answer_header.as_mut_ptr().cast(), iov_len: OUT_HEADER },
            libc::iovec {
                iov_base: match direction {
                    Direction::Read => self.arena.pointer(slot).cast(),
                    Direction::Write => place.answer_write.as_mut_ptr().cast(),
                },
                iov_len: body,
            },
        ];
        let pieces = place.answer_pieces.as_ptr();
        let count = if body == 0 { 1 } else { 2 };
        self.in_flight += 1;
        self.answering += 1;
        self.push(&opcode::Writev::new(DEVICE, pieces, count).build(), Event::Answered { slot });
    }
}

/// How many completions to wait for. Answers (`answering` of the `in_flight` operations) complete at once, so waiting
/// for one event more spares an empty turn. But only if something can be that event: with every slot being answered
/// no read is armed, and the bell may never ring.
fn events_to_wait_for(armed: usize, in_flight: usize, answering: usize) -> usize {
    let others = armed + (in_flight - answering);
    (answering + usize::from(others > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::{SLOTS, events_to_wait_for};

    /// A burst of transfers that complete together had every slot answered in one turn, and the loop waited for
    /// an event that nothing could cause: the export hung for good.
    #[test]
    fn a_loop_whose_every_slot_is_being_answered_waits_for_no_other_event() {
        assert_eq!(events_to_wait_for(0, SLOTS, SLOTS), SLOTS);
    }

    #[test]
    fn a_loop_waits_for_its_answers_and_one_event_more_if_there_can_be_one() {
        assert_eq!(events_to_wait_for(4, 3, 3), 4);
        assert_eq!(events_to_wait_for(0, 5, 3), 4);
        assert_eq!(events_to_wait_for(0, 0, 0), 1, "only the bell is left");
    }
}
