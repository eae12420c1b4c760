//! A pool goes from the embedded engine to the kernel and back, again and again, and each of them dies now and then.

mod killed;
mod model;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc;
use std::time::Instant;

use thinsnap_pool::{
    Access, BlockDevice, DeviceId, ErrorKind, FileDevice, KernelPool, PoolMode, ThinPool, ViewDevice, audit,
    clear_needs_check, open_embedded, open_kernel,
};

use crate::host_tools::run;
use crate::kernel_story::disks::{Disks, Which};
use crate::support::direct_exporter::{DirectExporter, Opened};
use crate::support::disk::Disk;
use crate::support::judges::{assert_sound, assert_thin_check_accepts, without_needs_check};
use crate::support::random::Random;
use crate::support::stage::{BLOCK, OpenDisk};
use crate::turn;
use killed::kill_in_a_storm;
use model::{Model, Op, Open, Progress, SIZE, Storm};

const DATA_BLOCKS: u64 = 360;
const METADATA_BLOCKS: u64 = 512;
/// Pages of a storm.
const STORM: u64 = 40;

/// A device of the embedded engine in this process.
struct Direct(Opened);

impl OpenDisk for Direct {
    fn read(&self, buf: &mut [u8], offset: u64) {
        self.0.read_at(buf, offset).unwrap();
    }

    fn write(&self, buf: &[u8], offset: u64) {
        self.0.write_at(buf, offset).unwrap();
    }

    fn discard(&self, offset: u64, len: u64) {
        self.0.discard(offset, len).unwrap();
    }

    fn zero(&self, offset: u64, len: u64) {
        self.0.write_zeroes(offset, len).unwrap();
    }

    fn flush(&self) {
        self.0.flush().unwrap();
    }
}

/// How a turn ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// In good order.
    Closed,
    /// In good order, with a metadata snapshot that nobody released.
    Held,
    /// Its process is killed: the next one finds what it left.
    Killed,
    /// The power goes in the middle of writes.
    PowerCut,
    /// The metadata takes no writes any more, and a commit fails.
    NeedsCheck,
}

/// What both engines must say of a pool that nobody has changed in between.
#[derive(Debug, PartialEq, Eq)]
struct Counts {
    transaction: u64,
    data_used: u64,
    data_total: u64,
    metadata_total: u64,
    mapped: BTreeMap<DeviceId, u64>,
}

struct Story {
    disks: Disks,
    model: Model,
    random: Random,
    identity: [u8; 16],
    /// Of the last turn, if it ended in good order.
    counts: Option<Counts>,
    /// A storm that broke off, and how many of its pages must be there.
    pending: Option<(Storm, usize)>,
    ends: BTreeMap<String, u32>,
}

impl Story {
    fn new(seed: u64) -> Self {
        let disks = Disks::new(DATA_BLOCKS, METADATA_BLOCKS);
        let pool = open_kernel(&disks.paths(), &disks.kernel_options()).unwrap();
        let identity = pool.status().unwrap().identity;
        pool.close().unwrap();
        Self {
            disks,
            model: Model::new(DATA_BLOCKS, METADATA_BLOCKS),
            random: Random::new(seed),
            identity,
            counts: None,
            pending: None,
            ends: BTreeMap::new(),
        }
    }

    /// Everything is as the model says, byte for byte, and as the engine before counted it.
    fn verify(&mut self, pool: &dyn ThinPool, open: Open<'_>, story: &str) {
        assert_eq!(pool.devices().unwrap(), self.model.ids(), "{story}");
        for id in self.model.ids() {
            let path = pool.activate(id, SIZE, Access::ReadOnly).unwrap();
            let mut bytes = vec![0xee; usize::try_from(SIZE.0).unwrap()];
            open(id, &path).read(&mut bytes, 0);
            assert!(pool.deactivate(id).unwrap(), "{story}");
            if let Some((storm, sure)) = self.pending.take_if(|(storm, _)| storm.id == id) {
                self.model.settle(&storm, sure, &bytes, story);
            }
            assert!(bytes == self.model.bytes(id), "{story}: device {id} differs");
        }
        if let Some(before) = self.counts.take() {
            assert_eq!(self.count(pool, story), before, "{story}: the engines count differently");
        }
    }

    fn count(&self, pool: &dyn ThinPool, story: &str) -> Counts {
        let status = pool.status().unwrap();
        assert_eq!((status.identity, status.mode), (self.identity, PoolMode::Write), "{story}");
        assert_eq!(status.transaction_id, self.model.transaction, "{story}");
        assert_eq!(status.data.total.0, self.model.data_blocks * BLOCK, "{story}");
        assert_eq!(status.metadata.total.0, self.model.metadata_blocks * 4096, "{story}");
        let mapped = |id: &DeviceId| pool.usage(*id).unwrap().mapped.0 / BLOCK;
        Counts {
            transaction: status.transaction_id,
            data_used: status.data.used.0 / BLOCK,
            data_total: status.data.total.0 / BLOCK,
            metadata_total: status.metadata.total.0 / 4096,
            mapped: self.model.ids().iter().map(|id| (*id, mapped(id))).collect(),
        }
    }

    fn perform(&mut self, pool: &dyn ThinPool, open: Open<'_>, ops: &[Op]) {
        for op in ops {
            if let Op::Grow { data, metadata } = *op {
                self.disks.grow(data, metadata);
            }
            op.perform(pool, open);
        }
    }

    /// Works while somebody reads the metadata beside the pool.
    fn work(&mut self, pool: &dyn ThinPool, open: Open<'_>, ops: &[Op], story: &str) {
        if !self.random.chance(30) {
            return self.perform(pool, open, ops);
        }
        let devices = pool.devices().unwrap().len() as u64;
        let view = pool.begin_view().unwrap();
        self.perform(pool, open, ops);
        let device = ViewDevice::open(&self.disks.paths().metadata, &view).unwrap();
        let report = audit(&device, &|_| ()).unwrap();
        assert!(report.is_sound() && !report.incomplete, "{story}: a view shows {:?}", report.findings);
        assert_eq!(report.devices, devices, "{story}: a view shows another moment");
        assert!(pool.end_view(view.number).unwrap(), "{story}: a view was given up");
    }

    /// Judges the disk, and remembers what was counted, after a turn that ended in good order.
    fn closed(&mut self, counts: Counts, story: &str) {
        let image = self.disks.image();
        assert!(!is_marked(&image), "{story}: the mark of the kernel stays");
        let report = audit(&thinsnap_pool::MemoryDevice::from_bytes(image), &|_| ()).unwrap();
        assert_eq!(report.data_used, counts.data_used, "{story}");
        assert_eq!(report.devices, self.model.devices.len() as u64, "{story}");
        self.counts = Some(counts);
    }

    fn embedded(&mut self, end: End, story: &str) {
        let exporter = DirectExporter::new();
        let shown: std::sync::Arc<dyn thinsnap_pool::Exporter> = std::sync::Arc::clone(&exporter) as _;
        let pool =
            open_embedded(&self.disks.paths(), std::sync::Arc::clone(&shown), &self.disks.embedded_options()).unwrap();
        let open = |id: DeviceId, _: &Path| Box::new(Direct(exporter.open(id))) as Box<dyn OpenDisk>;
        let held = self.disks.image()[56..64] != [0; 8];
        assert_eq!(pool.status().unwrap().metadata_snapshot, held, "{story}: what is held stays so");
        self.verify(&*pool, &open, story);
        let ops = self.model.story(&mut self.random, 5);
        self.work(&*pool, &open, &ops, story);
        let storm =
            if matches!(end, End::Closed | End::Held) { None } else { self.model.storm(&mut self.random, STORM) };
        let Some(storm) = storm else {
            let counts = self.count(&*pool, story);
            pool.close().unwrap();
            return self.closed(counts, story);
        };
        if end == End::NeedsCheck {
            // Its commit fails, the mark for a check is written when the disk is well again: never, in this process.
            pool.activate(storm.id, SIZE, Access::ReadWrite).unwrap();
            let device = exporter.open(storm.id);
            let progress = std::cell::Cell::new(Progress::default());
            let half = storm.pages.len() / 2;
            storm.run(
                &|bytes, offset| {
                    if progress.get().acknowledged == half {
                        self.disks.fail_writes(Which::Metadata);
                    }
                    device.write_at(bytes, offset).is_ok()
                },
                &|| BlockDevice::flush(&*device).is_ok(),
                &mut |now| progress.set(now),
            );
            drop(device);
            let done = progress.get();
            pool.close().ok();
            drop(pool);
            self.disks.mend();
            // Nothing but the log has what came after the last commit that succeeded.
            self.pending = Some((storm, done.acknowledged));
            return;
        }
        pool.close().unwrap();
        drop(pool);
        let ops = self.model.story(&mut self.random, 3);
        // An operation of these may have deleted the last device; then there is nothing to be killed in.
        let Some(storm) = self.model.storm(&mut self.random, STORM) else {
            let pool = open_embedded(&self.disks.paths(), shown, &self.disks.embedded_options()).unwrap();
            self.perform(&*pool, &open, &ops);
            return pool.close().unwrap();
        };
        for op in &ops {
            if let Op::Grow { data, metadata } = *op {
                self.disks.grow(data, metadata);
            }
        }
        let pages = 1 + usize::try_from(self.random.below(storm.pages.len() as u64)).unwrap();
        let progress = kill_in_a_storm(&self.disks, &ops, &storm, pages);
        if end == End::PowerCut {
            std::fs::remove_file(self.disks.log()).unwrap();
            self.pending = Some((storm, progress.flushed));
        } else {
            self.pending = Some((storm, progress.acknowledged));
        }
    }

    fn kernel(&mut self, end: End, story: &str) {
        let held = self.disks.image()[56..64] != [0; 8];
        if held {
            // It goes when the kernel starts the pool, and with it blocks that it alone kept.
            self.counts = None;
        }
        let pool = open_kernel(&self.disks.paths(), &self.disks.kernel_options()).unwrap();
        let open = |_: DeviceId, path: &Path| Box::new(Disk::open(path)) as Box<dyn OpenDisk>;
        assert!(!pool.status().unwrap().metadata_snapshot, "{story}: somebody is taken for a reader");
        self.verify(&*pool, &open, story);
        let ops = self.model.story(&mut self.random, 5);
        self.work(&*pool, &open, &ops, story);
        match end {
            End::Closed => {
                let counts = self.count(&*pool, story);
                pool.close().unwrap();
                self.closed(counts, story);
            }
            End::Held => {
                pool.reserve_metadata_snapshot().unwrap();
                let more = self.model.story(&mut self.random, 3);
                self.perform(&*pool, &open, &more);
                pool.close().unwrap();
            }
            End::Killed => self.leave(pool, story),
            End::PowerCut | End::NeedsCheck => {
                let Some(storm) = self.model.storm(&mut self.random, STORM) else {
                    return pool.close().unwrap();
                };
                let progress = self.break_in(&pool, &storm, end);
                pool.close().ok();
                drop(pool);
                self.disks.mend();
                let sure = progress.flushed;
                self.pending = Some((storm, sure));
                assert!(is_marked(&self.disks.image()), "{story}: nobody would look for blocks that the kernel lost");
            }
        }
        assert!(!run("dmsetup", ["ls"]).contains("-pool"), "{story}: the kernel still has the pool");
    }

    /// The process ends in the middle of verbs; the next one finds all of it, and goes on.
    fn leave(&mut self, pool: std::sync::Arc<KernelPool>, story: &str) {
        let Some(&id) = self.model.ids().first() else { return pool.close().unwrap() };
        let path = pool.activate(id, SIZE, Access::ReadWrite).unwrap();
        let name = Path::new("/sys/dev/block").join(number_of(&path)).join("dm/name");
        let name = std::fs::read_to_string(name).unwrap().trim().to_owned();
        drop(pool.begin_view().unwrap());
        drop(pool);
        run("dmsetup", ["suspend", "--noflush", "--nolockfs", &name]);
        let pool = open_kernel(&self.disks.paths(), &self.disks.kernel_options()).unwrap();
        assert!(!pool.status().unwrap().metadata_snapshot, "{story}: the view of a dead process is held");
        assert!(pool.deactivate(id).unwrap());
        let counts = self.count(&*pool, story);
        pool.close().unwrap();
        self.closed(counts, story);
    }

    /// Writes to a device in a thread; in the midst of it the disks vanish, or the metadata refuses to be written.
    fn break_in(&mut self, pool: &KernelPool, storm: &Storm, end: End) -> Progress {
        let path = pool.activate(storm.id, SIZE, Access::ReadWrite).unwrap();
        let pages = 1 + usize::try_from(self.random.below(storm.pages.len() as u64)).unwrap();
        let (tell, heard) = mpsc::channel();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let tell = tell;
                let device =
                    OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
                let mut last = Progress::default();
                storm.run(
                    &|bytes, offset| {
                        let memory = vec![bytes[0]; bytes.len() + 4096];
                        let start = memory.as_ptr().align_offset(4096);
                        device.write_all_at(&memory[start..start + bytes.len()], offset).is_ok()
                    },
                    &|| device.sync_all().is_ok(),
                    &mut |progress| {
                        last = progress;
                        tell.send(progress).ok();
                    },
                );
                last
            });
            heard.iter().take_while(|progress| progress.acknowledged < pages).for_each(drop);
            match end {
                End::NeedsCheck => self.disks.fail_writes(Which::Metadata),
                _ => self.disks.vanish(),
            }
            writer.join().unwrap()
        })
    }

    /// A pool that carries the flag is refused by both engines until it was checked.
    fn check_if_needed(&mut self, story: &str) {
        let image = self.disks.image();
        if image[4] & 1 == 0 {
            return;
        }
        *self.ends.entry("refused for needs_check".to_owned()).or_default() += 1;
        let paths = self.disks.paths();
        let refused = open_kernel(&paths, &self.disks.kernel_options()).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::NeedsCheck, "{story}: {refused}");
        let refused = open_embedded(&paths, DirectExporter::new(), &self.disks.embedded_options()).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::NeedsCheck, "{story}: {refused}");
        if self.random.chance(50) {
            assert!(clear_needs_check(&FileDevice::open(&paths.metadata).unwrap()).unwrap(), "{story}");
        } else {
            self.disks.put_image(&without_needs_check(&image));
        }
    }
}

/// True if the superblock says that a kernel was given the pool: bit 24 of compat_flags.
fn is_marked(image: &[u8]) -> bool {
    image[355] & 1 == 1
}

/// `MAJOR:MINOR` of a block device.
fn number_of(path: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let number = std::fs::metadata(path).unwrap().rdev();
    format!("{}:{}", nix::sys::stat::major(number), nix::sys::stat::minor(number))
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_a_pool_goes_from_engine_to_engine_and_loses_nothing() {
    let Some(_turn) = turn() else { return };
    let rounds: u64 = std::env::var("THINSNAP_HANDOVERS").map_or(100, |rounds| rounds.parse().unwrap());
    let seed = std::env::var("THINSNAP_SEED").map_or(1, |seed| seed.parse().unwrap());
    let begun = Instant::now();
    let mut story = Story::new(seed);
    for round in 0..rounds {
        let end = match story.random.below(20) {
            0..2 => End::Held,
            2..5 => End::Killed,
            5..7 => End::PowerCut,
            7..9 => End::NeedsCheck,
            _ => End::Closed,
        };
        let kernel = round % 2 == 1;
        let who = if kernel { "the kernel" } else { "the embedded engine" };
        let words = format!("seed {seed}, handover {round}, {who}, {end:?}");
        *story.ends.entry(format!("{who}: {end:?}")).or_default() += 1;
        if kernel {
            story.kernel(end, &words)
        } else {
            story.embedded(end, &words)
        }
        story.check_if_needed(&words);
        let image = story.disks.image();
        assert_sound(&image, &words);
        assert_thin_check_accepts(&image, &words);
        let logged = image[359] & 1 == 1;
        let expected = story.disks.log().exists();
        assert!(logged || !expected, "{words}: a log is there and the kernel would not know");
        if (round + 1) % 100 == 0 {
            println!("{} handovers in {:.0} s", round + 1, begun.elapsed().as_secs_f64());
        }
    }
    println!("{rounds} handovers with seed {seed} in {:.0} s: {:?}", begun.elapsed().as_secs_f64(), story.ends);
}
