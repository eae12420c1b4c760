//! Who may touch which block of a volume: shared for I/O in place, exclusive for a change of its mapping.
//!
//! A cell covers the virtual blocks with the same remainder by [`CELLS`]: a collision costs waiting, never
//! correctness. The direct way only ever tries ([`Cells::try_shared`]): no lock, no allocation, no wait. A
//! writer that wants a cell for itself closes it first and then waits for the users inside, so that a
//! stream of readers cannot keep it out.
//!
//! A block may also be **promised**: it belongs alone to a change that is made later, while its cell stays open for the
//! others. The cell counts its promised blocks; who finds that it has some looks whether his own is among them.
//!
//! Order: whoever holds several cells took them ascending by cell number, closed or shared, and holds no
//! lock of the pool meanwhile.

use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Cells of a volume: 4 KiB of memory, enough that a queue of 128 requests rarely collides.
pub(super) const CELLS: u64 = 1024;
// A cell: how many share it, how many of its blocks are promised, and whether it is closed: it belongs to one user alone,
// or to one who waits for the last sharers to leave.
const PROMISE: u32 = 1 << 16;
const CLOSED: u32 = 1 << 31;
const SHARERS: u32 = PROMISE - 1;
const PROMISES: u32 = CLOSED - PROMISE;

pub(super) struct Cells {
    cells: Box<[AtomicU32]>,
    /// The promised blocks: as many as there are early writes, in no order. Taken under `lock` or nothing.
    promised: Mutex<Vec<u64>>,
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
            promised: Mutex::new(Vec::new()),
            waiting: AtomicU32::new(0),
            lock: Mutex::new(()),
            left: Condvar::new(),
        }
    }

    /// Shares the cells of `blocks` blocks from `first` on, if none is closed and none of the blocks promised. On true
    /// the caller must call [`leave`](Self::leave) with the same range.
    #[must_use]
    pub(super) fn try_shared(&self, first: u64, blocks: u64) -> bool {
        let mut promises = false;
        for (taken, cell) in in_order(first, blocks).enumerate() {
            let Some(has_promises) = self.try_enter(cell) else {
                in_order(first, blocks).take(taken).for_each(|cell| self.leave_cell(cell));
                return false;
            };
            promises |= has_promises;
        }
        let is_free = !promises || !self.is_promised(first, blocks);
        if !is_free {
            self.leave(first, blocks);
        }
        is_free
    }

    /// Ends a successful [`try_shared`](Self::try_shared).
    pub(super) fn leave(&self, first: u64, blocks: u64) {
        for cell in in_order(first, blocks) {
            self.leave_cell(cell);
        }
    }

    /// Shares the cells of a range, waiting where one is closed or a block promised.
    pub(super) fn shared(&self, first: u64, blocks: u64) -> Shared<'_> {
        for cell in in_order(first, blocks) {
            self.wait(|| self.try_enter(cell).is_some());
        }
        self.wait(|| !self.is_promised(first, blocks));
        Shared { cells: self, first, blocks }
    }

    /// Takes the cells of a range alone, waiting for everybody in them and for the promised among the blocks.
    pub(super) fn exclusive(&self, first: u64, blocks: u64) -> Exclusive<'_> {
        for cell in in_order(first, blocks) {
            let state = &self.cells[cell];
            self.wait(|| state.fetch_or(CLOSED, Ordering::AcqRel) & CLOSED == 0);
            self.wait(|| state.load(Ordering::Acquire) & SHARERS == 0);
        }
        self.wait(|| !self.is_promised(first, blocks));
        Exclusive { cells: self, first, blocks }
    }

    /// Promises a block, if it is not and nobody is in its cell. On true somebody must call [`redeem`](Self::redeem).
    #[must_use]
    pub(super) fn try_promise(&self, block: u64) -> bool {
        let mut promised = self.promises();
        if promised.contains(&block) {
            return false;
        }
        // Known before the cell says so: whoever enters it after that looks here.
        promised.push(block);
        let promise = |state: u32| (state & (CLOSED | SHARERS) == 0).then_some(state + PROMISE);
        let done = self.cells[cell_of(block)].fetch_update(Ordering::AcqRel, Ordering::Relaxed, promise).is_ok();
        if !done {
            promised.pop();
        }
        done
    }

    /// Ends a promise, on any thread.
    pub(super) fn redeem(&self, block: u64) {
        let mut promised = self.promises();
        let at = promised.iter().position(|&other| other == block).expect("a promise is redeemed once");
        promised.swap_remove(at);
        self.cells[cell_of(block)].fetch_sub(PROMISE, Ordering::Release);
        drop(promised);
        self.wake();
    }

    /// True if a block of the range is promised; all cells stand for all blocks. The caller has entered or closed the
    /// range's cells, so that none is promised afterwards.
    fn is_promised(&self, first: u64, blocks: u64) -> bool {
        let mut cells = in_order(first, blocks);
        cells.any(|cell| self.cells[cell].load(Ordering::Acquire) & PROMISES != 0)
            && self.promises().iter().any(|block| blocks >= CELLS || (first..first + blocks).contains(block))
    }

    fn promises(&self) -> MutexGuard<'_, Vec<u64>> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the cell has promised blocks; `None` if it is closed.
    fn try_enter(&self, cell: usize) -> Option<bool> {
        let enter = |state: u32| (state & CLOSED == 0).then_some(state + 1);
        let before = self.cells[cell].fetch_update(Ordering::Acquire, Ordering::Relaxed, enter).ok()?;
        Some(before & PROMISES != 0)
    }

    fn leave_cell(&self, cell: usize) {
        let before = self.cells[cell].fetch_sub(1, Ordering::Release);
        debug_assert!(before & SHARERS > 0, "cell {cell} was left more often than entered");
        if before & CLOSED != 0 && before & SHARERS == 1 {
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

impl Exclusive<'_> {
    /// Keeps the first block as a promise, which somebody must [`redeem`](Cells::redeem), and lets the cells go.
    pub(super) fn promise(self) {
        self.cells.promises().push(self.first);
        self.cells.cells[cell_of(self.first)].fetch_add(PROMISE, Ordering::Relaxed);
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

fn cell_of(block: u64) -> usize {
    usize::try_from(block % CELLS).expect("a cell number is below 1024")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::{CELLS, Cells, in_order};

    #[test]
    fn a_range_names_each_cell_once_and_in_ascending_order() {
        for (first, blocks) in [(0, 1), (1023, 1), (1023, 2), (5, 1023), (5, 1024), (5, 5000), (3000, 900), (7, 0)] {
            let cells: Vec<usize> = in_order(first, blocks).collect();
            assert!(cells.is_sorted_by(|a, b| a < b), "{first} {blocks}");
            assert_eq!(cells.len() as u64, blocks.min(CELLS));
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
    fn a_promised_block_is_nobody_elses_and_its_neighbours_in_the_cell_are_free() {
        let cells = Cells::new();
        let (block, neighbour) = (5, 5 + CELLS);
        assert!(cells.try_shared(neighbour, 1));
        assert!(!cells.try_promise(block), "somebody is in the cell");
        cells.leave(neighbour, 1);
        assert!(cells.try_promise(block));
        assert!(!cells.try_promise(block) && !cells.try_shared(block, 1) && !cells.try_shared(3, 4));
        assert!(!cells.try_shared(0, CELLS), "all cells stand for all blocks");
        assert!(cells.try_promise(neighbour));
        cells.redeem(neighbour);
        assert!(cells.try_shared(neighbour, 1));
        cells.leave(neighbour, 1);
        // While it is held alone, the neighbour cannot be promised; the promise that is there stays.
        let alone = cells.exclusive(neighbour, 1);
        assert!(!cells.try_promise(neighbour) && !cells.try_promise(neighbour + CELLS));
        alone.promise();
        assert!(!cells.try_shared(neighbour, 1));
        cells.redeem(neighbour);
        std::thread::scope(|scope| {
            let waiting = [
                scope.spawn(|| drop(cells.shared(block, 1))),
                scope.spawn(|| drop(cells.exclusive(block, 1))),
                scope.spawn(|| drop(cells.exclusive(0, CELLS))),
            ];
            cells.redeem(block);
            waiting.into_iter().for_each(|waiting| waiting.join().unwrap());
        });
        assert!(cells.try_shared(0, CELLS), "nothing is left behind");
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
                        match round % 5 {
                            0 => {
                                let _alone = cells.exclusive(first, 2);
                                for block in pair {
                                    assert_eq!(inside[block].fetch_add(loner, Ordering::SeqCst), 0);
                                }
                                for block in pair {
                                    inside[block].fetch_sub(loner, Ordering::SeqCst);
                                }
                            }
                            1 | 2 => {
                                // Its maker is another thread as a rule; here it is the same.
                                let promised = if round % 5 == 1 {
                                    cells.try_promise(first)
                                } else {
                                    cells.exclusive(first, 1).promise();
                                    true
                                };
                                if promised {
                                    assert_eq!(inside[pair[0]].fetch_add(loner, Ordering::SeqCst), 0);
                                    inside[pair[0]].fetch_sub(loner, Ordering::SeqCst);
                                    cells.redeem(first);
                                }
                            }
                            3 => {
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
