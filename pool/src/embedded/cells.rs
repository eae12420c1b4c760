//! Who may touch which block of a volume: shared for I/O in place, exclusive for a change of its mapping.
//!
//! A cell covers the virtual blocks with the same remainder by [`CELLS`]: a collision costs waiting, never
//! correctness. The direct way only ever tries ([`Cells::try_shared`]): no lock, no allocation, no wait. A
//! writer that wants a cell for itself closes it first and then waits for the users inside, so that a
//! stream of readers cannot keep it out.
//!
//! Order: whoever holds several cells took them ascending by cell number, closed or shared, and holds no
//! lock of the pool meanwhile.

use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Condvar, Mutex, PoisonError};

/// Cells of a volume: 4 KiB of memory, enough that a queue of 128 requests rarely collides.
pub(super) const CELLS: u64 = 1024;
/// Set while the cell belongs to one user alone, or to one who waits for the last sharers to leave.
const CLOSED: u32 = 1 << 31;

pub(super) struct Cells {
    cells: Box<[AtomicU32]>,
    /// How many threads wait: whoever leaves a cell takes the lock only if there is one.
    waiting: AtomicU32,
    lock: Mutex<()>,
    left: Condvar,
}

/// Exclusive use of the cells of a range of blocks, until dropped.
pub(super) struct Exclusive<'a> {
    cells: &'a Cells,
    first: u64,
    blocks: u64,
}

/// Shared use of the cells of a range of blocks, until dropped.
pub(super) struct Shared<'a> {
    cells: &'a Cells,
    first: u64,
    blocks: u64,
}

impl Cells {
    pub(super) fn new() -> Self {
        Self {
            cells: (0..CELLS).map(|_| AtomicU32::new(0)).collect(),
            waiting: AtomicU32::new(0),
            lock: Mutex::new(()),
            left: Condvar::new(),
        }
    }

    /// Shares the cells of `blocks` blocks from `first` on, if none is closed. On true the caller must
    /// call [`leave`](Self::leave) with the same range.
    #[must_use]
    pub(super) fn try_shared(&self, first: u64, blocks: u64) -> bool {
        for (taken, cell) in in_order(first, blocks).enumerate() {
            if !self.try_enter(cell) {
                for cell in in_order(first, blocks).take(taken) {
                    self.leave_cell(cell);
                }
                return false;
            }
        }
        true
    }

    /// Ends a successful [`try_shared`](Self::try_shared).
    pub(super) fn leave(&self, first: u64, blocks: u64) {
        for cell in in_order(first, blocks) {
            self.leave_cell(cell);
        }
    }

    /// Shares the cells of a range, waiting where one is closed.
    pub(super) fn shared(&self, first: u64, blocks: u64) -> Shared<'_> {
        for cell in in_order(first, blocks) {
            self.wait(|| self.try_enter(cell));
        }
        Shared { cells: self, first, blocks }
    }

    /// Takes the cells of a range alone, waiting for everybody in them.
    pub(super) fn exclusive(&self, first: u64, blocks: u64) -> Exclusive<'_> {
        for cell in in_order(first, blocks) {
            let state = &self.cells[cell];
            self.wait(|| state.fetch_or(CLOSED, Ordering::AcqRel) & CLOSED == 0);
            self.wait(|| state.load(Ordering::Acquire) == CLOSED);
        }
        Exclusive { cells: self, first, blocks }
    }

    /// Takes the cell of a block alone, if nobody is in it. On true the caller must call [`open`](Self::open).
    #[must_use]
    pub(super) fn try_alone(&self, block: u64) -> bool {
        let cell = &self.cells[cell_of(block)];
        cell.compare_exchange(0, CLOSED, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Ends a successful [`try_alone`](Self::try_alone), on any thread.
    pub(super) fn open(&self, block: u64) {
        self.open_cell(cell_of(block));
        self.wake();
    }

    fn try_enter(&self, cell: usize) -> bool {
        let state = &self.cells[cell];
        let mut seen = state.load(Ordering::Relaxed);
        loop {
            if seen & CLOSED != 0 {
                return false;
            }
            match state.compare_exchange_weak(seen, seen + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
    }

    fn leave_cell(&self, cell: usize) {
        let before = self.cells[cell].fetch_sub(1, Ordering::Release);
        debug_assert!(before & !CLOSED > 0, "cell {cell} was left more often than entered");
        if before == CLOSED + 1 {
            self.wake();
        }
    }

    fn open_cell(&self, cell: usize) {
        self.cells[cell].fetch_and(!CLOSED, Ordering::Release);
    }

    fn wake(&self) {
        // With the fence in `wait`: either the waiter sees the cell as it is, or it is counted here.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.left.notify_all();
        }
    }

    fn wait(&self, mut done: impl FnMut() -> bool) {
        if done() {
            return;
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !done() {
            guard = self.left.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        drop(guard);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        for cell in in_order(self.first, self.blocks) {
            self.cells.open_cell(cell);
        }
        self.cells.wake();
    }
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        self.cells.leave(self.first, self.blocks);
    }
}

/// The cells of a range, each once, ascending.
fn in_order(first: u64, blocks: u64) -> impl Iterator<Item = usize> {
    let start = first % CELLS;
    let (low, high) = if blocks >= CELLS {
        (0..0, 0..CELLS)
    } else {
        let end = start + blocks;
        (0..end.saturating_sub(CELLS), start..end.min(CELLS))
    };
    low.chain(high).map(cell_of)
}

/// True if a block has the cell of one of a range of blocks.
pub(super) fn share_cells(block: u64, first: u64, blocks: u64) -> bool {
    (block % CELLS + CELLS - first % CELLS) % CELLS < blocks
}

fn cell_of(block: u64) -> usize {
    usize::try_from(block % CELLS).expect("a cell number is below 1024")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::{CELLS, Cells, in_order, share_cells};

    #[test]
    fn a_range_names_each_cell_once_and_in_ascending_order() {
        for (first, blocks) in [(0, 1), (1023, 1), (1023, 2), (5, 1023), (5, 1024), (5, 5000), (3000, 900), (7, 0)] {
            let cells: Vec<usize> = in_order(first, blocks).collect();
            assert!(cells.is_sorted_by(|a, b| a < b), "{first} {blocks}");
            assert_eq!(cells.len() as u64, blocks.min(CELLS));
            for block in 0..2 * CELLS {
                let cell = usize::try_from(block % CELLS).unwrap();
                assert_eq!(share_cells(block, first, blocks), cells.contains(&cell), "{block}: {first} {blocks}");
            }
            for block in first..first + blocks {
                assert!(cells.contains(&usize::try_from(block % CELLS).unwrap()));
            }
        }
    }

    #[test]
    fn a_closed_cell_lets_nobody_in_and_a_failed_try_leaves_nothing_taken() {
        let cells = Cells::new();
        let alone = cells.exclusive(10, 1);
        assert!(!cells.try_shared(8, 4));
        assert!(cells.try_shared(8, 2));
        cells.leave(8, 2);
        drop(alone);
        drop(cells.exclusive(0, CELLS));
        assert!(cells.try_shared(8, 4));
        cells.leave(8, 4);
    }

    #[test]
    fn a_cell_is_taken_alone_at_once_or_not_at_all() {
        let cells = Cells::new();
        assert!(cells.try_shared(5, 1));
        assert!(!cells.try_alone(5));
        cells.leave(5, 1);
        assert!(cells.try_alone(5));
        assert!(!cells.try_alone(5 + CELLS) && !cells.try_shared(5, 1));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| drop(cells.shared(5, 1)));
            cells.open(5);
            waiting.join().unwrap();
        });
        assert!(cells.try_alone(5));
    }

    #[test]
    fn sharers_and_loners_never_meet() {
        let cells = Arc::new(Cells::new());
        let inside: Arc<Vec<AtomicU64>> = Arc::new((0..8).map(|_| AtomicU64::new(0)).collect());
        let loner: u64 = 1 << 32;
        let threads: Vec<_> = (0..4_u64)
            .map(|thread| {
                let (cells, inside) = (Arc::clone(&cells), Arc::clone(&inside));
                std::thread::spawn(move || {
                    for round in 0..5_000_u64 {
                        let first = (round * 7 + thread * 3) % 7;
                        let pair = [usize::try_from(first).unwrap(), usize::try_from(first + 1).unwrap()];
                        match round % 3 {
                            0 => {
                                let _alone = cells.exclusive(first, 2);
                                for block in pair {
                                    assert_eq!(inside[block].fetch_add(loner, Ordering::SeqCst), 0);
                                }
                                for block in pair {
                                    inside[block].fetch_sub(loner, Ordering::SeqCst);
                                }
                            }
                            1 => {
                                let _shared = cells.shared(first, 2);
                                for block in pair {
                                    assert!(inside[block].fetch_add(1, Ordering::SeqCst) < loner);
                                    inside[block].fetch_sub(1, Ordering::SeqCst);
                                }
                            }
                            _ => {
                                if cells.try_shared(first, 2) {
                                    for block in pair {
                                        assert!(inside[block].fetch_add(1, Ordering::SeqCst) < loner);
                                        inside[block].fetch_sub(1, Ordering::SeqCst);
                                    }
                                    cells.leave(first, 2);
                                }
                            }
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    }
}
