//! The kernel as the witness of our flushes: a log of what reached the disk, played again up to any point.
//!
//! Data and metadata of the embedded engine stand on one log-writes target, so that the log knows the order between
//! them. It gives back what a disk with a cache may hold after a power cut: all that was flushed, and of the rest any
//! part.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use thinsnap_pool::{BlockSize, CreateOptions, DeviceId, PoolPaths, create};

use crate::embedded::Embedded;
use crate::kernel::{Loop, Mapped};
use crate::support::judges::assert_thin_check_accepts;
use crate::support::random::Random;
use crate::truth::{BLOCK, DEVICE_SIZE, Player, SECTOR};

const DATA_SIZE: u64 = 16 << 20;
const METADATA_SIZE: u64 = 4 << 20;
const LOG_SIZE: u64 = 512 << 20;
/// Power cuts of a run.
const CUTS: u64 = 40;
const STEPS: u64 = 150;

const LOG_MAGIC: u64 = 0x6a_7366_7773_6872;
/// Flags of an entry, as the target writes them; its data follows it unless it is a discard.
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;

/// What the log holds of one request.
enum Entry {
    /// `flush`: all that was complete before is durable; `through`: so are these bytes.
    Write {
        flush: bool,
        through: bool,
        offset: u64,
        bytes: Vec<u8>,
    },
    Discard {
        offset: u64,
        len: u64,
    },
    /// So many steps of the story had returned.
    Mark(usize),
}

fn words(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
}

fn entries(log: &Path) -> Vec<Entry> {
    let log = File::open(log).unwrap();
    let mut sector = vec![0; usize::try_from(SECTOR).unwrap()];
    log.read_exact_at(&mut sector, 0).unwrap();
    let head = words(&sector);
    assert_eq!((head[0], head[1]), (LOG_MAGIC, 1), "a log of the version that is known here");
    let mut at = SECTOR;
    let mut entries = Vec::new();
    for _ in 0..head[2] {
        log.read_exact_at(&mut sector, at).unwrap();
        let [first, sectors, flags, len] = words(&sector)[..4] else { unreachable!("a sector has more words") };
        at += SECTOR;
        let (offset, size) = (first * SECTOR, sectors * SECTOR);
        if flags & MARK != 0 {
            let text = &sector[32..32 + usize::try_from(len).unwrap()];
            match String::from_utf8_lossy(text).trim_end_matches('\0').parse() {
                Ok(returned) => entries.push(Entry::Mark(returned)),
                // The target's own word when it is taken down.
                Err(_) => break,
            }
        } else if flags & DISCARD != 0 {
            entries.push(Entry::Discard { offset, len: size });
        } else {
            let mut bytes = vec![0; usize::try_from(size).unwrap()];
            log.read_exact_at(&mut bytes, at).unwrap();
            at += size;
            entries.push(Entry::Write { flush: flags & FLUSH != 0, through: flags & FUA != 0, offset, bytes });
        }
    }
    entries
}

/// What a client of the pool did, in the order in which it returned.
enum Step {
    Write { id: DeviceId, offset: u64, bytes: Vec<u8> },
    Flush(DeviceId),
    Snap { id: DeviceId, origin: DeviceId },
}

/// The disk after a cut: `base`, then the log up to `end`; of what no flush covers, each part with even odds.
fn after_cut(base: &[u8], log: &[Entry], end: usize, random: &mut Random) -> Vec<u8> {
    let mut disk = base.to_vec();
    let is_flush = |entry: &Entry| matches!(entry, Entry::Write { flush: true, .. });
    let covered = log[..end].iter().rposition(is_flush).unwrap_or(0);
    for (n, entry) in log[..end].iter().enumerate() {
        let through = matches!(entry, Entry::Write { through: true, .. });
        if n >= covered && !through && random.chance(50) {
            continue;
        }
        match entry {
            Entry::Write { offset, bytes, .. } => {
                disk[usize::try_from(*offset).unwrap()..][..bytes.len()].copy_from_slice(bytes);
            }
            Entry::Discard { offset, len } => {
                disk[usize::try_from(*offset).unwrap()..][..usize::try_from(*len).unwrap()].fill(0);
            }
            Entry::Mark(_) => {}
        }
    }
    disk
}

/// Every sector that a device may hold when the first `returned` steps had returned and any later one may have begun.
fn judge(steps: &[Step], returned: usize, player: &mut dyn Player, story: &str) {
    let first_snap = steps[..returned].iter().filter_map(|step| match step {
        Step::Snap { id, .. } => Some(*id),
        _ => None,
    });
    for id in first_snap.chain([DeviceId::new(1).unwrap()]) {
        let found = player.read(id);
        let (known, newer) = promised(steps, returned, id);
        let sector = usize::try_from(SECTOR).unwrap();
        for start in (0..found.len()).step_by(sector) {
            let found = &found[start..start + sector];
            let mut allowed = newer.iter().filter_map(|(offset, bytes)| {
                let from = start.checked_sub(usize::try_from(*offset).unwrap())?;
                bytes.get(from..from + sector)
            });
            let kept = found == &known[start..start + sector] || allowed.any(|bytes| bytes == found);
            assert!(kept, "{story}: device {id}, byte {start}: neither what was flushed nor anything written later");
        }
    }
}

/// What was flushed of a device, and the writes that no flush covers. A snapshot holds what its origin held.
fn promised(steps: &[Step], returned: usize, id: DeviceId) -> (Vec<u8>, Vec<(u64, &[u8])>) {
    let born = steps.iter().position(|step| matches!(step, Step::Snap { id: of, .. } if *of == id));
    let mut content = vec![0; usize::try_from(DEVICE_SIZE).unwrap()];
    let mut start = 0;
    if let Some(born) = born {
        let Step::Snap { origin, .. } = &steps[born] else { unreachable!("that is how it was found") };
        // A snapshot is durable when it has been made, with all that its origin held.
        let (known, newer) = promised(&steps[..born], born, *origin);
        content = known;
        newer.iter().for_each(|(offset, bytes)| lay(&mut content, *offset, bytes));
        start = born;
    }
    let covers = |step: &Step| match step {
        Step::Flush(of) => *of == id,
        Step::Snap { origin, .. } => *origin == id,
        Step::Write { .. } => false,
    };
    let flushed = steps[..returned].iter().rposition(covers).unwrap_or(start).max(start);
    let mut newer: Vec<(u64, &[u8])> = Vec::new();
    for (n, step) in steps.iter().enumerate().skip(start) {
        if let Step::Write { id: of, offset, bytes } = step
            && *of == id
        {
            if n < flushed {
                lay(&mut content, *offset, bytes);
            } else {
                newer.push((*offset, bytes));
            }
        }
    }
    (content, newer)
}

fn lay(content: &mut [u8], offset: u64, bytes: &[u8]) {
    content[usize::try_from(offset).unwrap()..][..bytes.len()].copy_from_slice(bytes);
}

/// Writes, flushes and snapshots, with a mark in the log after each.
fn tell(player: &mut dyn Player, log: &Mapped, random: &mut Random) -> Vec<Step> {
    let mut ids = vec![DeviceId::new(1).unwrap()];
    let mut steps = Vec::new();
    for token in 1..=STEPS {
        let id = random.pick(&ids);
        let step = match random.below(20) {
            0..14 => {
                let sectors = 1 + random.below(BLOCK / SECTOR);
                let offset = random.below(20 * BLOCK / SECTOR) * SECTOR;
                let words = (0..sectors * SECTOR / 8).map(|n| (token << 32) | n);
                let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
                player.write(id, offset, &bytes);
                Step::Write { id, offset, bytes }
            }
            14..19 => {
                player.flush(id);
                Step::Flush(id)
            }
            _ if ids.len() < 5 => {
                let new = DeviceId::new(u32::try_from(ids.len()).unwrap() + 1).unwrap();
                player.snap(new, id);
                ids.push(new);
                Step::Snap { id: new, origin: id }
            }
            _ => continue,
        };
        let marked = !matches!(step, Step::Write { .. });
        steps.push(step);
        // A mark ends a batch of the log: it must not look like a flush after a mere write.
        if marked {
            log.message(&format!("mark {}", steps.len()));
        }
    }
    steps
}

#[test]
#[ignore = "needs a kernel with dm-thin: make test-kernel"]
fn what_was_flushed_through_the_kernels_block_layer_is_there_after_a_power_cut() {
    let dir = tempfile::tempdir_in(std::env::var_os("TMPDIR").unwrap_or_else(|| "/var/tmp".into())).unwrap();
    let sized = |name: &str, size: u64| {
        let path = dir.path().join(name);
        OpenOptions::new().create_new(true).write(true).open(&path).unwrap().set_len(size).unwrap();
        path
    };
    let (disk, log_file) = (sized("disk", DATA_SIZE + METADATA_SIZE), sized("log", LOG_SIZE));
    // Taken down from the last to the first.
    let (disk_loop, log_loop) = (Loop::attach(&disk), Loop::attach(&log_file));
    let sectors = (DATA_SIZE + METADATA_SIZE) / SECTOR;
    let table = format!("0 {sectors} log-writes {} {}", disk_loop.path.display(), log_loop.path.display());
    let mut random = Random::new(11);
    let steps;
    {
        let log = Mapped::create("log", &table);
        let slice = |kind: &str, start: u64, size: u64| {
            let (size, start) = (size / SECTOR, start / SECTOR);
            Mapped::create(kind, &format!("0 {size} linear {} {start}", log.path().display()))
        };
        let (data, metadata) = (slice("data", 0, DATA_SIZE), slice("metadata", DATA_SIZE, METADATA_SIZE));
        let paths = PoolPaths { metadata: metadata.path(), data: data.path() };
        let block_size = BlockSize::from_bytes(BLOCK).unwrap();
        create(&CreateOptions { paths: paths.clone(), data_size: None, metadata_size: None, block_size }).unwrap();
        let mut player = Box::new(Embedded::open(&paths));
        player.create(DeviceId::new(1).unwrap());
        log.message("mark 0");
        steps = tell(&mut *player, &log, &mut random);
        player.close();
        drop((data, metadata));
    }
    drop((disk_loop, log_loop));

    let log = entries(&log_file);
    let begun = log.iter().position(|entry| matches!(entry, Entry::Mark(0))).unwrap();
    let empty = vec![0; usize::try_from(DATA_SIZE + METADATA_SIZE).unwrap()];
    for cut in 0..CUTS {
        let end = begun + 1 + usize::try_from(random.below((log.len() - begun) as u64)).unwrap();
        let mut marks = log[..end].iter().filter_map(|entry| if let Entry::Mark(n) = entry { Some(*n) } else { None });
        let returned = marks.next_back().unwrap();
        let story = format!("cut {cut} after entry {end} of {}, {returned} steps returned", log.len());
        let image = after_cut(&empty, &log, end, &mut random);
        let (data, metadata) = image.split_at(usize::try_from(DATA_SIZE).unwrap());
        assert_thin_check_accepts(metadata, &story);
        let at = dir.path().join(format!("cut-{cut}"));
        std::fs::create_dir(&at).unwrap();
        let paths = PoolPaths::in_dir(&at);
        std::fs::write(&paths.data, data).unwrap();
        std::fs::write(&paths.metadata, metadata).unwrap();
        let mut player = Box::new(Embedded::open(&paths));
        judge(&steps, returned, &mut *player, &story);
        player.close();
        std::fs::remove_dir_all(&at).unwrap();
    }
    println!("{CUTS} power cuts in a log of {} entries, {} steps", log.len(), steps.len());
}
