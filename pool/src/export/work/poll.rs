//! Waiting for a ring: awake for a moment while requests come one at a time and soon, asleep otherwise.
//!
//! To wake a sleeping thread takes about as long as the disk takes for 4 KiB: on a virtual machine an idle processor must
//! be brought back first. So while sleeps are short, the next wait looks for its event awake, up to twice as long as the
//! last sleep; the first one that finds nothing ends that. It is what KVM's halt polling does for virtual processors.
//!
//! Nobody else is to pay for it: while the kernel tells that tasks wait for a processor (pressure stall information), and
//! where it does not tell, all waits are asleep.

use std::fs::File;
use std::io;
use std::num::NonZero;
use std::os::unix::fs::FileExt;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use io_uring::IoUring;

/// Longest time awake: longer sleeps are worth their waking.
const AWAKE_MAX: Duration = Duration::from_micros(100);
/// Events of one turn up to which requests come one at a time: a request, its transfer's end, its answer.
const FEW: usize = 3;
/// Waits that are asleep behind a flush: the kernel's threads that write and flush for one caller want the processors that
/// this one would wait on.
const REST: u32 = 4;
/// `IORING_ENTER_GETEVENTS`: completions that wait for this thread are handled.
const GET_EVENTS: u32 = 1;
/// How long in all some task or other has waited for a processor.
const PRESSURE: &str = "/proc/pressure/cpu";
/// Between two looks at that.
const LOOK: Duration = Duration::from_millis(100);
/// Part of the time in which somebody may have waited for the processors to be called free.
const CALM: f64 = 0.2;

/// How long the next wait stays awake.
pub(in crate::export) struct Poll {
    awake: Duration,
    /// Waits that are asleep, whatever was before.
    rest: u32,
    pressure: Option<Pressure>,
}

/// Whether the processors were free when last looked at.
struct Pressure {
    file: File,
    looked: Instant,
    stalled: Duration,
    calm: bool,
}

impl Poll {
    pub(in crate::export) fn new() -> Self {
        // With one processor whoever causes the event needs it.
        let several = available_parallelism().map_or(1, NonZero::get) > 1;
        Self { awake: Duration::ZERO, rest: 0, pressure: several.then(Pressure::open).flatten() }
    }

    /// A flush has come: the next waits are asleep.
    pub(in crate::export) fn rest(&mut self) {
        (self.awake, self.rest) = (Duration::ZERO, REST);
    }

    /// Hands over what was pushed and waits for `events` completions; the turn before had `before`. Errors: as
    /// `submit_and_wait`.
    pub(in crate::export) fn wait(&mut self, ring: &mut IoUring, events: usize, before: usize) -> io::Result<()> {
        let resting = self.rest > 0;
        self.rest = self.rest.saturating_sub(1);
        let Some(pressure) = self.pressure.as_mut().filter(|_| before <= FEW && !resting) else {
            return ring.submit_and_wait(events).map(drop);
        };
        let start = Instant::now();
        if !pressure.is_calm(start) || self.awake.is_zero() {
            ring.submit_and_wait(events)?;
            let slept = start.elapsed();
            self.awake = if slept <= AWAKE_MAX { (2 * slept).min(AWAKE_MAX) } else { Duration::ZERO };
            return Ok(());
        }
        ring.submit()?;
        while ring.completion().len() < events {
            if start.elapsed() > self.awake {
                self.awake = Duration::ZERO;
                return ring.submit_and_wait(events).map(drop);
            }
            std::hint::spin_loop();
            // SAFETY: nothing is submitted, and no memory is passed.
            unsafe { ring.submitter().enter::<libc::sigset_t>(0, 0, GET_EVENTS, None) }?;
        }
        Ok(())
    }
}

impl Pressure {
    /// `None`: this kernel does not tell.
    fn open() -> Option<Self> {
        let file = File::open(PRESSURE).ok()?;
        let stalled = stalled(&file)?;
        Some(Self { file, looked: Instant::now(), stalled, calm: false })
    }

    fn is_calm(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.looked);
        if since >= LOOK {
            let stalled = stalled(&self.file);
            let waited = stalled.map(|total| total.saturating_sub(self.stalled));
            self.calm = waited.is_some_and(|waited| waited < since.mul_f64(CALM));
            self.stalled = stalled.unwrap_or(self.stalled);
            self.looked = now;
        }
        self.calm
    }
}

fn stalled(file: &File) -> Option<Duration> {
    let mut text = [0; 128];
    let len = file.read_at(&mut text, 0).ok()?;
    parse(std::str::from_utf8(&text[..len]).ok()?)
}

/// The total of the line `some`, which counts microseconds.
fn parse(text: &str) -> Option<Duration> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    let total = line.split(' ').find_map(|word| word.strip_prefix("total="))?;
    total.parse().ok().map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::{Duration, Instant};

    use io_uring::{IoUring, opcode};

    use super::{AWAKE_MAX, LOOK, PRESSURE, Poll, Pressure, REST, parse};

    #[test]
    fn the_time_that_tasks_have_waited_is_found_in_the_kernels_words() {
        let words =
            "some avg10=1.50 avg60=0.00 avg300=0.00 total=1234567\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n";
        assert_eq!(parse(words), Some(Duration::from_micros(1_234_567)));
        for broken in ["", "some avg10=0.00", "full total=3\n", "some total=x"] {
            assert_eq!(parse(broken), None, "{broken:?}");
        }
    }

    /// A wait with this budget, of a processor that is free or not, for an event that is there or never comes.
    fn wait(calm: bool, awake: Duration, event: bool) -> Option<Poll> {
        let file = File::open(PRESSURE).ok()?;
        let pressure = Pressure { file, looked: Instant::now() + 1000 * LOOK, stalled: Duration::ZERO, calm };
        let mut poll = Poll { awake, rest: 0, pressure: Some(pressure) };
        let mut ring = IoUring::new(4).unwrap();
        let deadline = io_uring::types::Timespec::new().nsec(5_000_000);
        let entry = match event {
            true => opcode::Nop::new().build(),
            false => opcode::Timeout::new(&raw const deadline).build(),
        };
        // SAFETY: what the entry points to outlives the wait for it.
        unsafe { ring.submission().push(&entry) }.unwrap();
        poll.wait(&mut ring, 1, 1).unwrap();
        assert_eq!(ring.completion().count(), 1, "it returned before its event");
        Some(poll)
    }

    #[test]
    fn behind_a_flush_waits_are_asleep_for_a_while() {
        let mut poll = Poll::new();
        let mut ring = IoUring::new(4).unwrap();
        poll.rest();
        for _ in 0..REST {
            // SAFETY: nothing is pointed to.
            unsafe { ring.submission().push(&opcode::Nop::new().build()) }.unwrap();
            poll.wait(&mut ring, 1, 1).unwrap();
            assert_eq!((ring.completion().count(), poll.awake), (1, Duration::ZERO));
        }
        assert_eq!(poll.rest, 0);
    }

    #[test]
    fn a_wait_gets_its_event_awake_or_asleep_and_learns_from_how_long_it_took() {
        for calm in [true, false] {
            for awake in [Duration::ZERO, AWAKE_MAX] {
                let Some(late) = wait(calm, awake, false) else {
                    println!("SKIPPED: this kernel has no {PRESSURE}");
                    return;
                };
                assert_eq!(late.awake, Duration::ZERO, "five milliseconds are too long to stay awake");
                wait(calm, awake, true);
            }
        }
    }
}
