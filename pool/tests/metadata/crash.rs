//! A commit that is cut off anywhere: any subset of its blocks, whole or torn, leaves the state before it.

use std::cell::Cell;
use std::sync::{Arc, Mutex};

use crate::judges::assert_sound;
use crate::story::{Model, Sizes, Teller, assert_model, story};
use proptest::prelude::{ProptestConfig, any, proptest};
use thinsnap_pool::{BlockDevice, Frozen, MemoryDevice, Metadata, OpenMode, Result};

/// What a commit does to its device.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    Write(u64, Vec<u8>),
    Flush,
}

/// Remembers, and does nothing.
#[derive(Default)]
struct Recorder {
    events: Mutex<Vec<Event>>,
}

impl BlockDevice for Recorder {
    fn size(&self) -> u64 {
        u64::MAX
    }

    fn read_at(&self, _buf: &mut [u8], _offset: u64) -> Result<()> {
        panic!("a commit reads nothing")
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.events.lock().unwrap().push(Event::Write(offset, buf.to_vec()));
        Ok(())
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        panic!("a commit discards nothing")
    }

    fn write_zeroes(&self, _offset: u64, _len: u64) -> Result<()> {
        panic!("a commit zeroes nothing")
    }

    fn flush(&self) -> Result<()> {
        self.events.lock().unwrap().push(Event::Flush);
        Ok(())
    }
}

/// The sectors that a frozen generation writes before its superblock, and the superblock.
fn sectors(frozen: &Frozen) -> (Vec<(usize, Vec<u8>)>, Vec<u8>) {
    let recorder = Recorder::default();
    frozen.write(&recorder).unwrap();
    let mut events = recorder.events.into_inner().unwrap();
    assert_eq!(events.pop(), Some(Event::Flush), "the superblock is flushed");
    let Some(Event::Write(0, superblock)) = events.pop() else { panic!("the superblock is the last write") };
    assert_eq!(superblock.len(), 4096);
    assert!(superblock[512..].iter().all(|&byte| byte == 0), "all that a superblock says is in its first sector");
    assert_eq!(events.pop(), Some(Event::Flush), "everything else is durable before the superblock");
    let mut sectors = Vec::new();
    let mut end = 4096;
    for event in events {
        let Event::Write(offset, bytes) = event else { panic!("no flush between the blocks") };
        let offset = usize::try_from(offset).unwrap();
        assert!(offset >= end, "blocks are written in ascending order, block 0 is not among them");
        assert!(offset > end || bytes.len() >= 4096, "adjacent blocks are one write");
        end = offset + bytes.len();
        sectors.extend(bytes.chunks(512).enumerate().map(|(nr, sector)| (offset + 512 * nr, sector.to_vec())));
    }
    (sectors, superblock)
}

fn assert_state(image: &[u8], model: &Model, story: &str) {
    assert_sound(image, story);
    let device = Arc::new(MemoryDevice::from_bytes(image.to_vec()));
    assert_model(&Metadata::open(device, OpenMode::ReadWrite).unwrap(), model);
}

/// A small xorshift generator: which sectors survive.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn cut_commits(sizes: Sizes, steps: &[crate::story::Step], seed: u64) {
    let mut random = seed | 1;
    let commits = std::rc::Rc::new(Cell::new(0));
    let seen = std::rc::Rc::clone(&commits);
    let mut teller = Teller::new(sizes);
    teller.watcher = Some(Box::new(move |before, frozen, old, new| {
        seen.set(seen.get() + 1);
        let (sectors, superblock) = sectors(frozen);
        for sixteenths in [4, 8, 15] {
            let mut image = before.to_vec();
            for (offset, sector) in &sectors {
                if next(&mut random) >> 60 < sixteenths {
                    image[*offset..*offset + 512].copy_from_slice(sector);
                }
            }
            assert_state(&image, old, "without the superblock");
            // A torn superblock without its first sector is zeroes over zeroes.
            image[512..4096].copy_from_slice(&superblock[512..]);
            assert_state(&image, old, "with all but the first sector of the superblock");
        }
        let mut image = before.to_vec();
        sectors.iter().for_each(|(offset, sector)| image[*offset..*offset + 512].copy_from_slice(sector));
        assert_state(&image, old, "with everything but the superblock");
        image[..512].copy_from_slice(&superblock[..512]);
        assert_state(&image, new, "with the first sector of the superblock");
    }));
    steps.iter().for_each(|step| teller.tell(step));
    teller.commit();
    assert!(commits.get() > 0 || teller.now == teller.durable);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 500, ..ProptestConfig::default() })]

    #[test]
    fn a_commit_cut_off_anywhere_leaves_the_state_before_it(steps in story(2000, 20..60), seed in any::<u64>()) {
        cut_commits(Sizes { metadata_blocks: 1024, data_blocks: 30_000 }, &steps, seed);
    }
}
