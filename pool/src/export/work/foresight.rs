//! Foresees flushes: who writes and flushes by turns has its flush begun before it asks for it.
//!
//! The log of a database and the journal of a file system are written in a rhythm: so many writes, a flush, so many writes, a
//! flush. Between the answer to the last write and the request to flush lie the caller's own way and several wakings; the disk
//! can flush meanwhile. It is only done where a flush is short (see [`Node::flush_at_hand`]).
//!
//! Invariant: a device is covered only by a flush that began after all its changes that were answered before, while none was
//! under way; the next change ends that. So it holds for a loop through which all requests of its devices come.

use crate::export::work::node::Node;
use crate::mutation::Mutation;
use crate::units::DeviceId;

/// Flushes in a row that came when they were expected, before one is begun ahead of its request: where the rhythm changes,
/// at most one in so many is for nothing.
const HITS: u32 = 4;

/// The rhythm of one event loop's requests.
#[derive(Debug, Default)]
pub(in crate::export) struct Foresight {
    /// Changes that were asked for since the last flush.
    since: u32,
    /// Changes before the last flush, and before the one before that: a journal's flushes come by twos.
    before: [u32; 2],
    /// Flushes in a row that came when they were expected.
    hits: u32,
    /// The device whose write was answered last, until somebody looks.
    answered: Option<DeviceId>,
    covered: Option<DeviceId>,
}

impl Foresight {
    /// A request has come that changes a device, or a device has come.
    pub(in crate::export) fn note_change(&mut self) {
        self.since = self.since.saturating_add(1);
        if !Mutation::KeepCover.is_on() {
            self.covered = None;
        }
    }

    /// A write of a device is done and about to be answered.
    pub(in crate::export) fn note_answer(&mut self, device: DeviceId) {
        self.answered = Some(device);
    }

    /// The device of the write that was answered since the last look, if a flush is likely the next to come.
    pub(in crate::export) fn expects_flush(&mut self) -> Option<DeviceId> {
        let device = self.answered.take()?;
        (self.hits >= HITS && self.since == self.before[1]).then_some(device)
    }

    /// Flushes ahead of the request. The caller vouches that no change of the device is under way.
    pub(in crate::export) fn flush_ahead(&mut self, node: &Node) {
        // A failure is told to who asks for the flush: none succeeds after it.
        if node.flush_at_hand() == Some(0) {
            self.covered = Some(node.id);
        }
    }

    /// Takes note of a flush that is asked for. True: there is nothing left to do.
    pub(in crate::export) fn take_flush(&mut self, device: DeviceId) -> bool {
        // Of devices that are written by turns the other one was covered, for nothing.
        let expected = self.since == self.before[1] && self.covered.is_none_or(|covered| covered == device);
        self.hits = if expected { self.hits.saturating_add(1) } else { 0 };
        self.before = [self.since, self.before[0]];
        self.since = 0;
        self.covered == Some(device)
    }
}

#[cfg(test)]
mod tests {
    use super::{Foresight, HITS};
    use crate::units::DeviceId;

    fn device(id: u32) -> DeviceId {
        DeviceId::new(id).unwrap()
    }

    /// `changes` writes that are answered; whether a flush is expected behind each.
    fn write(foresight: &mut Foresight, changes: u32) -> Vec<bool> {
        (0..changes)
            .map(|_| {
                foresight.note_change();
                foresight.note_answer(device(1));
                foresight.expects_flush().is_some()
            })
            .collect()
    }

    /// Rounds of writes with a flush behind each; how often one was expected at the right time, and at a wrong one.
    fn play(rounds: impl IntoIterator<Item = u32>) -> (u32, u32) {
        let mut foresight = Foresight::default();
        let (mut right, mut wrong) = (0, 0);
        for changes in rounds {
            let expected = write(&mut foresight, changes);
            let (last, others) = expected.split_last().unwrap();
            right += u32::from(*last);
            wrong += u32::try_from(others.iter().filter(|expected| **expected).count()).unwrap();
            assert!(!foresight.take_flush(device(1)), "nobody flushed");
        }
        (right, wrong)
    }

    #[test]
    fn a_rhythm_is_known_after_a_few_rounds() {
        for changes in [1, 3, 100] {
            // Two rounds to compare with.
            assert_eq!(play([changes; 50]), (50 - HITS - 2, 0), "{changes} a round");
        }
    }

    #[test]
    fn a_journals_rhythm_of_two_is_known() {
        assert_eq!(play([2, 1].repeat(25)), (50 - HITS - 2, 0));
        assert_eq!(play([5, 1].repeat(25)), (50 - HITS - 2, 0));
    }

    #[test]
    fn where_there_is_no_rhythm_few_flushes_are_for_nothing() {
        let mut random = 7_u32;
        let rounds: Vec<_> = std::iter::repeat_with(|| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            1 + (random >> 16) % 3
        })
        .take(3000)
        .collect();
        let (right, wrong) = play(rounds);
        assert!(wrong <= 3000 / HITS && right <= 3000 / HITS, "{right} right, {wrong} wrong of 3000");
        // The worst that can be: broken whenever it is trusted.
        let broken = [1, 1, 1, 1, 1, 1, 1, 2].repeat(100);
        let (_, wrong) = play(broken);
        assert!(wrong <= 100, "{wrong} flushes for nothing among 800");
    }

    #[test]
    fn a_change_ends_what_a_flush_has_covered() {
        let covered = || Foresight { covered: Some(device(1)), ..Foresight::default() };
        assert!(!covered().take_flush(device(2)), "another device's");
        let mut foresight = covered();
        assert!(foresight.take_flush(device(1)));
        assert!(foresight.take_flush(device(1)), "a second one without a change between");
        foresight.note_change();
        assert!(!foresight.take_flush(device(1)));
    }

    #[test]
    fn a_flush_of_another_device_than_was_covered_ends_the_rhythm() {
        let mut foresight =
            Foresight { covered: Some(device(1)), hits: HITS, before: [1, 1], since: 1, ..Foresight::default() };
        assert!(!foresight.take_flush(device(2)));
        assert_eq!(foresight.hits, 0);
    }

    #[test]
    fn one_answer_is_looked_at_once() {
        let mut foresight = Foresight::default();
        for _ in 0..20 {
            write(&mut foresight, 1);
            foresight.take_flush(device(1));
        }
        foresight.note_change();
        assert_eq!(foresight.expects_flush(), None, "it is not answered yet");
        foresight.note_answer(device(1));
        assert_eq!(foresight.expects_flush(), Some(device(1)));
        assert_eq!(foresight.expects_flush(), None);
    }
}
