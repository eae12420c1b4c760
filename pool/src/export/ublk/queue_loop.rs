//! The event loop of ublk devices: asks for requests, does direct I/O and answers, all through one io_uring.
//!
//! One loop serves many devices. A request that has come needs a **slot** for its bytes; if none is free it waits in
//! the loop, which costs no memory, because the bytes stay with the kernel until they are asked for (USER_COPY). A slot
//! is in one place at a time: free, moving bytes, or lent to a worker. Only its place may touch it; the loop ends only
//! after the last operation on a slot has completed.
//!
//! The kernel has handed out every request that it could: there is no reading of further ones to be stopped. A loop that
//! ends leaves those that it has not begun; they are sent again to whoever serves next.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use io_uring::types::Fd;
use io_uring::{IoUring, opcode, squeue};

use crate::export::exporter::Direction;
use crate::export::ublk::asking::{Asking, Message, Tag, give, result_of};
use crate::export::ublk::channel::{Channel, Stage};
use crate::export::ublk::event::Event;
use crate::export::ublk::requests::{Decision, Work, decide};
use crate::export::ublk::wire::{COMMIT_AND_FETCH_REQ, DEPTH, FETCH_REQ, io_command};
use crate::export::work::{
    Arena, Errand, Foresight, Home, Job, JobSender, LentSlot, Lot, Mailbox, Moving, Node, PAYLOAD_MAX, SLOTS, Transfer,
    build_ring,
};

/// Room for all tags of a device at once: the kernel must get them in one call (see [`QueueLoop::serve`]).
const RING_ENTRIES: u32 = 256;
const _: () = assert!(DEPTH as u32 <= RING_ENTRIES, "all tags of a device go into the ring at once");

/// A device that the loop serves.
struct Served {
    channel: Arc<Channel>,
    node: Arc<Node>,
    /// The turn of the request that a tag carries, if it is with us.
    turns: Box<[Option<u64>]>,
    /// Tags that the kernel has not taken back for good.
    left: u16,
}

/// What a slot is busy with.
#[derive(Default)]
struct Slot {
    tag: Option<Tag>,
    moving: Option<Moving>,
}

/// One event loop; [`QueueLoop::run`] is the body of its thread.
pub(super) struct QueueLoop {
    ring: IoUring,
    jobs: JobSender<Asking>,
    lot: Arc<Lot<Asking>>,
    mailbox: Arc<Mailbox<Message>>,
    arena: Arc<Arena>,
    slots: Box<[Slot]>,
    free: Vec<usize>,
    devices: Vec<Option<Served>>,
    /// Requests without a slot.
    waiting: VecDeque<(Tag, Work)>,
    next_turn: u64,
    /// Transfers in flight.
    in_flight: usize,
    lent: usize,
    ending: bool,
    /// True if the payloads are registered with the ring, which saves pinning them for each transfer.
    registered: bool,
    completed: Vec<(u64, i32)>,
    foresight: Foresight,
}

impl QueueLoop {
    /// Must be called on the thread that runs the loop. `alive` is kept open until the ring's last operation is done.
    pub(super) fn new(
        alive: RawFd,
        jobs: JobSender<Asking>,
        lot: Arc<Lot<Asking>>,
        mailbox: Arc<Mailbox<Message>>,
    ) -> io::Result<Self> {
        let ring = build_ring(RING_ENTRIES)?;
        ring.submitter().register_files(&[alive])?;
        let arena = Arena::new(SLOTS)?;
        let registered = arena.register(&ring);
        Ok(Self {
            ring,
            jobs,
            lot,
            mailbox,
            arena: Arc::new(arena),
            slots: (0..SLOTS).map(|_| Slot::default()).collect(),
            free: (0..SLOTS).rev().collect(),
            devices: Vec::new(),
            waiting: VecDeque::new(),
            next_turn: 0,
            in_flight: 0,
            lent: 0,
            ending: false,
            registered,
            completed: Vec::with_capacity(2 * RING_ENTRIES as usize),
            foresight: Foresight::default(),
        })
    }

    /// Serves until [`Mailbox::stop`] is called, then until every request that was begun is answered.
    pub(super) fn run(mut self) {
        self.listen();
        loop {
            for message in self.mailbox.collect(true) {
                self.hear(message);
            }
            self.begin_waiting();
            if self.ending && self.in_flight + self.lent == 0 {
                // Hands the last answers over.
                if let Err(error) = self.ring.submit() {
                    tracing::error!("the last answers of an event loop: {error}");
                }
                return;
            }
            self.flush_ahead();
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
                Err(error) => {
                    // The kernel refuses the ring itself: what is in flight cannot be waited for, so its memory
                    // must outlive this thread.
                    tracing::error!("the event loop of the exporter failed: {error}");
                    std::mem::forget(self);
                    return;
                }
            }
            self.handle_completed();
        }
    }

    fn handle_completed(&mut self) {
        let mut completed = std::mem::take(&mut self.completed);
        completed.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
        for (data, result) in completed.drain(..) {
            match Event::unpack(data) {
                Event::Fetched { place, tag } => self.fetched(place, tag, result),
                Event::Moved { slot, extent } => {
                    self.in_flight -= 1;
                    self.moved(slot, extent, result);
                }
                Event::Wake => {
                    self.ending |= self.mailbox.answer_bell();
                    self.listen();
                }
            }
        }
        self.completed = completed;
    }

    /// Waits for the bell.
    fn listen(&mut self) {
        let bell = Fd(self.mailbox.bell().as_raw_fd());
        let poll = i16::cast_unsigned(libc::POLLIN);
        self.push(&opcode::PollAdd::new(bell, u32::from(poll)).build(), Event::Wake);
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Serve { channel, node } => self.serve(channel, node),
            Message::Answer { tag, result } => self.answer(tag, result),
            Message::Slot(slot) => {
                self.lent -= 1;
                self.free.push(slot);
            }
        }
    }

    /// Asks for a device's requests, all tags in one call: a kill is before it or after it. Of a queue of which only a
    /// part was asked for when its process died the driver could not tell that the process is dead.
    fn serve(&mut self, channel: Arc<Channel>, node: Arc<Node>) {
        // Nothing that was flushed of another device with its number says anything about this one.
        self.foresight.note_change();
        let turns = (0..DEPTH).map(|_| None).collect();
        let served = Served { channel: Arc::clone(&channel), node, turns, left: DEPTH };
        let place = self.devices.iter().position(Option::is_none).unwrap_or(self.devices.len());
        let fd = channel.raw_fd();
        if place == self.devices.len() {
            self.devices.push(Some(served));
        } else {
            self.devices[place] = Some(served);
        }
        self.submit();
        for tag in 0..DEPTH {
            let entry = opcode::UringCmd16::new(Fd(fd), FETCH_REQ).cmd(io_command(tag, 0)).build();
            self.push(&entry, Event::Fetched { place, tag });
        }
        self.submit();
        // A refusal has completed by now.
        self.handle_completed();
        let left = self.devices[place].as_ref().map_or(0, |served| served.left);
        channel.enter(match left {
            DEPTH => Stage::Served,
            0 => Stage::LetGo,
            _ => Stage::Refused,
        });
    }

    fn submit(&mut self) {
        if let Err(error) = self.ring.submit() {
            tracing::debug!("handing over a queue: {error}");
        }
    }

    /// A tag came back from the kernel: with a request, or for good.
    fn fetched(&mut self, place: usize, tag: u16, result: i32) {
        let Some(served) = self.devices.get_mut(place).and_then(Option::as_mut) else { return };
        if result < 0 {
            if !matches!(-result, libc::ENODEV | libc::ECANCELED) {
                tracing::error!("ublk takes no requests of device {} any more: errno {}", served.node.id, -result);
            }
            served.left -= 1;
            if served.left == 0 {
                self.let_go(place);
            }
            return;
        }
        let turn = self.next_turn;
        self.next_turn += 1;
        served.turns[usize::from(tag)] = Some(turn);
        served.channel.begun();
        let decision = match served.channel.request(tag) {
            Some(request) => decide(&served.node, &request),
            None => Decision::Status(libc::EIO),
        };
        let tag = Tag { place, tag, turn };
        match decision {
            Decision::Status(errno) => self.answer(tag, -errno),
            Decision::Work(work) => self.waiting.push_back((tag, work)),
        }
    }

    /// The kernel has taken a device away.
    fn let_go(&mut self, place: usize) {
        let Some(served) = self.devices[place].take() else { return };
        let Served { channel, node, .. } = served;
        drop(node);
        channel.enter(Stage::LetGo);
    }

    /// Answers the request of a tag and asks for the next one; nothing, if it is answered already.
    fn answer(&mut self, tag: Tag, result: i32) {
        let Tag { place, tag, turn } = tag;
        let Some(served) = self.devices.get_mut(place).and_then(Option::as_mut) else { return };
        if served.turns[usize::from(tag)] != Some(turn) {
            return;
        }
        served.turns[usize::from(tag)] = None;
        served.channel.ended();
        let fd = served.channel.raw_fd();
        let entry = opcode::UringCmd16::new(Fd(fd), COMMIT_AND_FETCH_REQ).cmd(io_command(tag, result)).build();
        self.push(&entry, Event::Fetched { place, tag });
    }

    /// Gives slots to requests.
    fn begin_waiting(&mut self) {
        while !self.ending && !self.waiting.is_empty() {
            let Some(slot) = self.free.pop() else { return };
            let Some((tag, work)) = self.waiting.pop_front() else { return self.free.push(slot) };
            self.slots[slot].tag = Some(tag);
            match work {
                Work::Transfer(transfer) => self.begin(slot, tag, transfer),
                Work::Errand(Errand::Flush(node)) => self.flush(slot, node),
                Work::Errand(errand) => {
                    self.foresight.note_change();
                    self.lend(slot, errand);
                }
            }
        }
    }

    /// Begins a flush that is likely to be asked for, while the caller goes on.
    fn flush_ahead(&mut self) {
        let Some(device) = self.foresight.expects_flush() else { return };
        if self.in_flight + self.lent == 0 && self.waiting.is_empty() && self.lot.is_empty() {
            self.submit();
            if let Some(served) = self.devices.iter().flatten().find(|served| served.node.id == device) {
                self.foresight.flush_ahead(&served.node);
            }
        }
    }

    /// Flushes on this thread if nobody else waits for it: to wake another one would take as long as the flush.
    fn flush(&mut self, slot: usize, node: Arc<Node>) {
        if self.foresight.take_flush(node.id) {
            drop(node);
            return self.finish(slot, 0);
        }
        let nobody_waits = self.in_flight + self.lent == 0 && self.waiting.is_empty();
        if nobody_waits {
            // Not for an answer either that is only to be handed over.
            self.submit();
        }
        match nobody_waits.then(|| node.flush_at_hand()).flatten() {
            Some(errno) => {
                drop(node);
                self.finish(slot, -errno);
            }
            None => self.lend(slot, Errand::Flush(node)),
        }
    }

    fn channel(&self, tag: Tag) -> Option<&Arc<Channel>> {
        self.devices.get(tag.place)?.as_ref().map(|served| &served.channel)
    }

    fn begin(&mut self, slot: usize, tag: Tag, transfer: Transfer) {
        // SAFETY: no operation is in flight on the slot yet, and it is nobody else's.
        let payload = unsafe { self.arena.payload(slot, transfer.len as usize) };
        if transfer.direction == Direction::Write {
            self.foresight.note_change();
            let taken = self.channel(tag).map(|channel| channel.take(tag.tag, payload));
            if let Some(Err(error)) = taken {
                tracing::error!("take the bytes of a write of device {}: {error}", transfer.node.id);
                drop(transfer);
                return self.finish(slot, -libc::EIO);
            }
        }
        match Moving::begin(transfer, payload) {
            Err(transfer) if transfer.is_done_early(payload, false) => {
                drop(transfer);
                self.finish(slot, i32::try_from(payload.len()).unwrap_or(i32::MAX));
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

    /// Answers a request that was with us, and frees its slot.
    fn finish(&mut self, slot: usize, result: i32) {
        if let Some(tag) = self.slots[slot].tag.take() {
            self.answer(tag, result);
        }
        self.free.push(slot);
    }

    fn lend(&mut self, slot: usize, errand: Errand) {
        let tag = self.slots[slot].tag.take();
        let Some((tag, channel)) = tag.and_then(|tag| Some((tag, Arc::clone(self.channel(tag)?)))) else {
            return self.free.push(slot);
        };
        self.lent += 1;
        let home: Arc<dyn Home> = Arc::clone(&self.mailbox) as _;
        let lent = LentSlot { slot, arena: Arc::clone(&self.arena), home };
        let asker = Asking { tag, channel, mailbox: Arc::clone(&self.mailbox) };
        self.jobs.send(Job::Errand { asker, errand, slot: lent });
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
        if direction == Direction::Write {
            self.foresight.note_answer(transfer.node.id);
        }
        // Before the answer: right after it the device may be taken away.
        drop(transfer);
        let result = match (errno, direction, self.slots[slot].tag) {
            (0, Direction::Write, _) => result_of(len),
            (0, Direction::Read, Some(tag)) => match self.channel(tag) {
                // SAFETY: the last operation on the slot has completed, and it is nobody else's.
                Some(channel) => give(channel, tag.tag, unsafe { self.arena.payload(slot, len.min(PAYLOAD_MAX)) }),
                None => -libc::EIO,
            },
            (0, Direction::Read, None) => -libc::EIO,
            (errno, ..) => -errno,
        };
        self.finish(slot, result);
    }

    fn push(&mut self, entry: &squeue::Entry, event: Event) {
        let entry = entry.clone().user_data(event.pack());
        loop {
            // SAFETY: every pointer in an entry is into the arena, which lives until the operation has completed (see
            // `run`), and the slot's place keeps others away from it; commands to the driver carry no pointer.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            // The queue is full: hand it over. Completions that do not fit wait in the kernel.
            self.submit();
        }
    }
}
