//! How long I/O stands still around each death: a probe that writes and reads 4 KiB without a pause.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::blocks;
use super::dice::Dice;

/// Operations faster than this are no stall.
const SLOW: Duration = Duration::from_millis(4);
/// Blocks that the probe writes.
const BLOCKS: usize = 1024;

/// The probe and what it saw.
pub(crate) struct Probe {
    slow: Arc<Mutex<Vec<(Instant, Instant)>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Probe {
    /// Probes a file below `dir`.
    pub(crate) fn start(dir: &Path, seed: u64) -> Self {
        let path = dir.join("probe");
        File::create(&path).and_then(|file| file.set_len((BLOCKS * blocks::BLOCK) as u64)).unwrap();
        let file = blocks::open(&path, true).unwrap();
        let (slow, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (slow, stop) = (Arc::clone(&slow), Arc::clone(&stop));
            move || probe(&file, &mut Dice::new(seed), &slow, &stop)
        });
        Self { slow, stop, thread: Some(thread) }
    }

    /// The longest operation under way at some moment after `death` and before `next`.
    pub(crate) fn stall(&self, death: Instant, next: Option<Instant>) -> Duration {
        let slow = self.slow.lock().unwrap();
        let during = slow.iter().filter(|(begun, ended)| *ended > death && next.is_none_or(|next| *begun < next));
        during.map(|(begun, ended)| *ended - *begun).max().unwrap_or(SLOW)
    }

    /// Ends it; how many operations it made.
    pub(crate) fn end(&mut self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().map_or(0, |thread| thread.join().unwrap())
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn probe(file: &File, dice: &mut Dice, slow: &Mutex<Vec<(Instant, Instant)>>, stop: &AtomicBool) -> u64 {
    let mut words = vec![0; BLOCKS];
    let mut operations = 0;
    while !stop.load(Ordering::SeqCst) {
        let (to, from) = (dice.below(BLOCKS), dice.below(BLOCKS));
        words[to] = dice.roll();
        let begun = Instant::now();
        blocks::write(file, to as u64, words[to]).unwrap();
        assert_eq!(blocks::read(file, from as u64).unwrap(), words[from], "block {from} of the probe");
        operations += 2;
        let ended = Instant::now();
        if ended - begun >= SLOW {
            slow.lock().unwrap().push((begun, ended));
        }
    }
    operations
}

/// The value below which `hundredths` of a hundred lie.
pub(crate) fn percentile(stalls: &mut [Duration], hundredths: usize) -> Duration {
    stalls.sort_unstable();
    let place = (stalls.len() * hundredths).div_ceil(100).max(1) - 1;
    stalls.get(place).copied().unwrap_or_default()
}
