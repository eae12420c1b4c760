//! A pool on devices that can be taken from under it at any event, as a kill takes a process away.
//!
//! Each opening of the pool is a life. When it is killed its devices answer no more, and the log is kept as it stood
//! at that moment; the next life begins with that and with what the devices hold. The devices remember what was
//! flushed over all lives, so that the power can be cut at any time.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use thinsnap_pool::{
    BlockDevice, BlockSize, ByteCount, DiskImage, EmbeddedOptions, EmbeddedPool, Error, ErrorKind, FormatOptions,
    METADATA_CACHE_DEFAULT, Metadata, OpenMode, PowerCutDevice, PowerSupply, Result,
};

use crate::direct_exporter::DirectExporter;
use crate::judges::{assert_sound, assert_thin_check_accepts};
use crate::random::Random;

pub(crate) const BLOCK: u64 = 64 * 1024;

/// What a kill is waiting for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Lives,
    /// Dies instead of the event after this many, or right behind the last of them.
    DiesIn {
        events: usize,
        behind: bool,
    },
    Dead,
}

struct State {
    fate: Fate,
    /// Flushes wait; what changes a device too.
    held: bool,
    all_held: bool,
    waiting: usize,
    log: Vec<u8>,
    early: Vec<u8>,
}

/// One life of the pool.
struct Life {
    state: Mutex<State>,
    changed: Condvar,
    log: PathBuf,
}

impl Life {
    fn die(&self, state: &mut State) {
        state.fate = Fate::Dead;
        // In this order: what goes out of the one is in the other before.
        state.early = std::fs::read(early_beside(&self.log)).unwrap();
        state.log = std::fs::read(&self.log).unwrap();
        self.changed.notify_all();
    }

    fn event<T>(&self, is_flush: bool, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let killed = || Err(Error::new(ErrorKind::Io, "the process was killed"));
        let mut state = self.state.lock().unwrap();
        while (state.held && is_flush || state.all_held) && state.fate != Fate::Dead {
            state.waiting += 1;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap();
            state.waiting -= 1;
        }
        match &mut state.fate {
            Fate::Dead => return killed(),
            Fate::Lives => {}
            Fate::DiesIn { events: 0, .. } => {
                self.die(&mut state);
                return killed();
            }
            Fate::DiesIn { events, .. } => *events -= 1,
        }
        let done = work();
        if state.fate == (Fate::DiesIn { events: 0, behind: true }) {
            self.die(&mut state);
        }
        done
    }
}

struct Mortal {
    device: Arc<PowerCutDevice>,
    life: Arc<Life>,
}

impl BlockDevice for Mortal {
    fn size(&self) -> u64 {
        self.device.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.device.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.life.event(false, || self.device.write_at(buf, offset))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.life.event(false, || self.device.discard(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.life.event(false, || self.device.write_zeroes(offset, len))
    }

    fn flush(&self) -> Result<()> {
        self.life.event(true, || self.device.flush())
    }

    fn known_zero(&self, offset: u64, len: u64) -> bool {
        self.device.known_zero(offset, len)
    }

    fn grow(&self, size: u64) -> Result<()> {
        self.life.event(false, || self.device.grow(size))
    }
}

/// Where the early writes of a life stand.
pub(crate) fn early_beside(log: &Path) -> PathBuf {
    let mut path = log.as_os_str().to_owned();
    path.push(".early");
    path.into()
}

/// The machine: devices, the directory of the log, the life that runs.
pub(crate) struct Ground {
    supply: Arc<PowerSupply>,
    metadata: Arc<PowerCutDevice>,
    data: Arc<PowerCutDevice>,
    records: u32,
    metadata_cache: ByteCount,
    dir: tempfile::TempDir,
    lives: usize,
    /// The early writes that the last life left, and its log.
    early: Vec<u8>,
    log_left: Vec<u8>,
    life: Option<Arc<Life>>,
    pub(crate) exporter: Arc<DirectExporter>,
    pool: Option<Arc<EmbeddedPool>>,
}

impl Ground {
    /// A new pool of `data_blocks`, with a log of `records`.
    pub(crate) fn new(data_blocks: u64, records: u32) -> Self {
        Self::with_cache(data_blocks, records, METADATA_CACHE_DEFAULT)
    }

    /// The same for engines that remember at most so much of the metadata.
    pub(crate) fn with_cache(data_blocks: u64, records: u32, metadata_cache: ByteCount) -> Self {
        let supply = PowerSupply::new();
        let metadata = supply.unordered_device(DiskImage::zeroed(512 * 4096));
        let options =
            FormatOptions { block_size: BlockSize::DEFAULT, data_blocks, metadata_blocks: 512, identity: [7; 16] };
        Metadata::format(&metadata, &options).unwrap();
        // Never zero at the start: whatever reads as zero was zeroed.
        let data = supply.device(vec![0xa5; usize::try_from(data_blocks * BLOCK).unwrap()]);
        let mut ground = Self {
            supply,
            metadata: Arc::new(metadata),
            data: Arc::new(data),
            records,
            metadata_cache,
            dir: tempfile::tempdir().unwrap(),
            lives: 0,
            early: Vec::new(),
            log_left: Vec::new(),
            life: None,
            exporter: DirectExporter::new(),
            pool: None,
        };
        ground.start(None).unwrap();
        ground
    }

    pub(crate) fn pool(&self) -> &Arc<EmbeddedPool> {
        self.pool.as_ref().expect("a life runs")
    }

    fn life(&self) -> &Life {
        self.life.as_ref().expect("a life runs")
    }

    /// The log of the life that runs.
    pub(crate) fn log(&self) -> &Path {
        &self.life().log
    }

    /// The next life, with the log that the last one left.
    pub(crate) fn start(&mut self, log: Option<&[u8]>) -> Result<()> {
        self.lives += 1;
        // A name of its own: the last life still maps its file.
        let path = self.dir.path().join(format!("life-{}", self.lives));
        if let Some(log) = log {
            std::fs::write(&path, log).unwrap();
        }
        let early = std::mem::take(&mut self.early);
        if !early.is_empty() {
            std::fs::write(early_beside(&path), early).unwrap();
        }
        let state =
            State { fate: Fate::Lives, held: false, all_held: false, waiting: 0, log: Vec::new(), early: Vec::new() };
        let life = Arc::new(Life { state: Mutex::new(state), changed: Condvar::new(), log: path.clone() });
        let mortal = |device: &Arc<PowerCutDevice>| {
            Arc::new(Mortal { device: Arc::clone(device), life: Arc::clone(&life) }) as Arc<dyn BlockDevice>
        };
        let (device, data) = (mortal(&self.metadata), mortal(&self.data));
        let options = EmbeddedOptions {
            intent_log: Some(path),
            intent_log_records: Some(self.records),
            metadata_cache: self.metadata_cache,
        };
        self.exporter = DirectExporter::new();
        let metadata = Metadata::open(Arc::clone(&device), OpenMode::ReadWrite)?;
        let pool = EmbeddedPool::with_options(metadata, device, data, Arc::clone(&self.exporter) as _, &options)?;
        self.life = Some(life);
        self.pool = Some(Arc::new(pool));
        Ok(())
    }

    /// The early writes that the last life left, to look at or to change.
    pub(crate) fn early(&mut self) -> &mut Vec<u8> {
        &mut self.early
    }

    /// The log that the last life left.
    pub(crate) fn log_left(&self) -> Vec<u8> {
        self.log_left.clone()
    }

    /// Lets the life die instead of the event after `events` more, or right behind the last of them.
    pub(crate) fn kill_in(&self, events: usize, behind: bool) {
        self.life().state.lock().unwrap().fate = Fate::DiesIn { events, behind };
    }

    /// Makes flushes wait, or lets them go.
    pub(crate) fn hold_flushes(&self, hold: bool) {
        self.life().state.lock().unwrap().held = hold;
        self.life().changed.notify_all();
    }

    /// Makes all wait that changes a device.
    pub(crate) fn hold_all(&self) {
        self.life().state.lock().unwrap().all_held = true;
    }

    /// Returns when somebody waits for a flush that is held.
    pub(crate) fn wait_for_a_held_flush(&self) {
        let life = self.life();
        let mut state = life.state.lock().unwrap();
        while state.waiting == 0 {
            state = life.changed.wait(state).unwrap();
        }
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.life().state.lock().unwrap().fate == Fate::Dead
    }

    /// Ends the life, if it has not ended, where it stands; returns the log.
    pub(crate) fn kill(&mut self) -> Vec<u8> {
        let life = self.life.take().expect("a life runs");
        let log = {
            let mut state = life.state.lock().unwrap();
            if state.fate != Fate::Dead {
                life.die(&mut state);
            }
            self.early.clone_from(&state.early);
            self.log_left.clone_from(&state.log);
            state.log.clone()
        };
        // Its threads find that nothing answers any more.
        self.pool = None;
        log
    }

    /// Kills, and begins the next life with what is left.
    pub(crate) fn kill_and_start(&mut self) {
        let log = self.kill();
        self.start(Some(&log)).unwrap();
    }

    /// Ends the life in order; the log goes with it.
    pub(crate) fn close(&mut self) {
        self.pool().close().unwrap();
        let left = std::fs::read_dir(self.log().parent().unwrap()).unwrap();
        let own =
            left.filter_map(|entry| entry.unwrap().path().file_stem().map(|name| self.log().file_stem() == Some(name)));
        assert_eq!(own.filter(|own| *own).count(), 0, "a log without a purpose stays behind");
        self.pool = None;
        self.life = None;
    }

    /// Cuts the power: of what no flush covers, each sector survives by chance. The next life finds no log, or one
    /// of another boot.
    pub(crate) fn cut_power(&mut self, random: &mut Random, survival: u64) {
        let log = self.kill();
        let cut = self.supply.after(self.supply.events());
        let mask = |random: &mut Random| (0..8).map(|bit| u8::from(random.chance(survival)) << bit).sum();
        let masks: Vec<u8> = cut.pending().iter().map(|_| mask(random)).collect();
        let mut images = cut.images(&masks).into_iter();
        self.supply = PowerSupply::new();
        self.metadata = Arc::new(self.supply.unordered_device(images.next().unwrap()));
        self.data = Arc::new(self.supply.device(images.next().unwrap()));
        let old = random.chance(50).then(|| crate::files::of_another_boot(&log));
        self.early = crate::files::early_of_another_boot(&self.early);
        self.start(old.as_deref()).unwrap();
    }

    /// Panics unless our audit and thin_check accept the metadata as the devices hold it.
    pub(crate) fn assert_sound(&self, story: &str, thoroughly: bool) {
        let image = self.supply.now()[0].to_bytes();
        assert_sound(&image, story);
        if thoroughly {
            assert_thin_check_accepts(&image, story);
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Some(life) = &self.life {
            // Whoever waits for a held flush must not wait for ever when a test fails.
            let mut state = life.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            state.fate = Fate::Dead;
            state.held = false;
            state.all_held = false;
            life.changed.notify_all();
        }
    }
}
