//! A pool's metadata with blocks of anybody's making: superblock, btree nodes, space maps, or edits anywhere.
//!
//! Every changed block is sealed with its checksum again: what a fuzzer shall find lies behind the checksum.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use thinsnap_pool::{
    BlockDevice, DeviceId, DumpSource, Error, ErrorKind, Metadata, OpenMode, Result, VirtualBlock, audit, dump,
};

use crate::block_kind::Kind;

const BLOCK: usize = 4096;
const WHOLE: std::ops::Range<VirtualBlock> = VirtualBlock(0)..VirtualBlock(u64::MAX);

/// Pools made by the kernel: a broken snapshot, counts that overflow, a held metadata snapshot.
const POOLS: [&[u8]; 3] = [
    include_bytes!("../../../pool/tests/golden/03-thin-snapshot-broken-sharing.img.xz"),
    include_bytes!("../../../pool/tests/golden/06-refcounts-overflow.img.xz"),
    include_bytes!("../../../pool/tests/golden/08-held-metadata-snapshot.img.xz"),
];

/// A pool that changes are laid over.
struct Pool {
    image: Vec<u8>,
    /// Blocks that are something, and what.
    blocks: Vec<(usize, Kind)>,
}

fn pool(which: u8) -> &'static Pool {
    static ALL: OnceLock<Vec<Pool>> = OnceLock::new();
    let all = ALL.get_or_init(|| POOLS.iter().map(|packed| unpack(packed)).collect());
    &all[usize::from(which) % all.len()]
}

fn unpack(packed: &[u8]) -> Pool {
    let mut image = Vec::new();
    xz2::read::XzDecoder::new(packed).read_to_end(&mut image).expect("the golden pools are whole");
    let kinds = image.chunks_exact(BLOCK).enumerate();
    let blocks = kinds.filter_map(|(number, block)| Some((number, Kind::of(block)?))).collect();
    Pool { image, blocks }
}

/// A pool's blocks with others laid over them.
struct Overlay {
    below: &'static Pool,
    above: Mutex<BTreeMap<usize, Box<[u8; BLOCK]>>>,
}

impl Overlay {
    fn new(below: &'static Pool) -> Self {
        Self { below, above: Mutex::default() }
    }

    fn above(&self) -> MutexGuard<'_, BTreeMap<usize, Box<[u8; BLOCK]>>> {
        self.above.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes bytes of a block; what reaches past its end is cut.
    fn change(&self, number: usize, at: usize, bytes: &[u8]) {
        let mut above = self.above();
        let block = above.entry(number).or_insert_with(|| self.original(number));
        let at = at.min(BLOCK);
        let len = bytes.len().min(BLOCK - at);
        block[at..at + len].copy_from_slice(&bytes[..len]);
    }

    fn seal(&self, number: usize, kind: Kind) {
        if let Some(block) = self.above().get_mut(&number) {
            let sum = kind.checksum(&block[..]);
            block[..4].copy_from_slice(&sum.to_le_bytes());
        }
    }

    fn original(&self, number: usize) -> Box<[u8; BLOCK]> {
        Box::new(self.below.image[number * BLOCK..][..BLOCK].try_into().expect("a whole block"))
    }

    fn range(&self, offset: u64, len: usize) -> Result<(usize, usize)> {
        let start = usize::try_from(offset).ok();
        let end = start.and_then(|start| start.checked_add(len)).filter(|end| *end <= self.below.image.len());
        start.zip(end).ok_or_else(|| Error::new(ErrorKind::Invalid, format!("{len} bytes at {offset}: past the end")))
    }
}

impl BlockDevice for Overlay {
    fn size(&self) -> u64 {
        self.below.image.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let (start, end) = self.range(offset, buf.len())?;
        buf.copy_from_slice(&self.below.image[start..end]);
        for (number, block) in self.above().range(start / BLOCK..end.div_ceil(BLOCK)) {
            let (from, to) = (start.max(number * BLOCK), end.min((number + 1) * BLOCK));
            buf[from - start..to - start].copy_from_slice(&block[from - number * BLOCK..to - number * BLOCK]);
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let (mut at, end) = self.range(offset, buf.len())?;
        let start = at;
        while at < end {
            let stop = end.min((at / BLOCK + 1) * BLOCK);
            self.change(at / BLOCK, at % BLOCK, &buf[at - start..stop - start]);
            at = stop;
        }
        Ok(())
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        let len = usize::try_from(len).map_err(|_| Error::new(ErrorKind::Invalid, "too many zeroes"))?;
        self.range(offset, len)?;
        self.write_at(&vec![0; len], offset)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

/// Reads a superblock: the bytes stand in its place, behind the checksum.
pub fn superblock(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    let overlay = Overlay::new(pool(*which));
    overlay.change(0, 4, bytes);
    overlay.seal(0, Kind::Superblock);
    exercise(overlay);
}

/// Reads a btree node: the first bytes choose the pool and the node, the rest stands in its place.
pub fn btree_node(bytes: &[u8]) {
    replace(bytes, |kind| kind == Kind::Node);
}

/// Reads an index or a bitmap of a space map: the first bytes choose the pool and the block, the rest stands in its place.
pub fn space_map(bytes: &[u8]) {
    replace(bytes, |kind| matches!(kind, Kind::Index | Kind::Bitmap));
}

fn replace(bytes: &[u8], wanted: impl Fn(Kind) -> bool) {
    let [which, nth, bytes @ ..] = bytes else { return };
    let pool = pool(*which);
    let blocks: Vec<&(usize, Kind)> = pool.blocks.iter().filter(|(_, kind)| wanted(*kind)).collect();
    let (number, kind) = *blocks[usize::from(*nth) % blocks.len()];
    let overlay = Overlay::new(pool);
    overlay.change(number, 4, bytes);
    overlay.seal(number, kind);
    exercise(overlay);
}

/// Reads metadata that was edited in many places. The first byte chooses the pool; an edit is a block's index (1 byte), an
/// offset in it (2), a length (1) and that many bytes.
pub fn metadata_image(bytes: &[u8]) {
    let Some((which, mut rest)) = bytes.split_first() else { return };
    let pool = pool(*which);
    let overlay = Overlay::new(pool);
    while let [nth, low, high, len, edit @ ..] = rest {
        let (number, kind) = pool.blocks[usize::from(*nth) % pool.blocks.len()];
        let (edit, behind) = edit.split_at(usize::from(*len).min(edit.len()));
        overlay.change(number, usize::from(u16::from_le_bytes([*low, *high])) % BLOCK, edit);
        overlay.seal(number, kind);
        rest = behind;
    }
    exercise(overlay);
}

/// Everything that can be asked of metadata and done to it. Errors are fine; but where the audit finds nothing
/// wrong and no change fails, it must find nothing wrong afterwards.
fn exercise(overlay: Overlay) {
    let device = Arc::new(overlay);
    let before = audit(&*device, &|_| ());
    // Errors are answers too; what counts is that one comes.
    drop(dump(&*device, DumpSource::Live, &mut std::io::sink()));
    drop(dump(&*device, DumpSource::Held, &mut std::io::sink()));
    let below = Arc::clone(&device) as Arc<dyn BlockDevice>;
    drop(Metadata::open(Arc::clone(&below), OpenMode::ReadOnly));
    let Ok(mut metadata) = Metadata::open(below, OpenMode::ReadWrite) else { return };
    let changed = change(&mut metadata);
    let Ok(Some(frozen)) = metadata.freeze() else { return };
    if frozen.write(&*device).is_err() {
        return;
    }
    let freed = metadata.committed(frozen);
    metadata.release_data(&freed);
    if before.is_ok_and(|report| report.is_sound()) && changed.is_ok() {
        let after = audit(&*device, &|_| ()).expect("a device in memory is read");
        assert!(after.is_sound(), "sound metadata was changed without an error, and is damaged: {after:?}");
    }
}

fn change(metadata: &mut Metadata) -> Result<()> {
    let ids: Vec<DeviceId> = metadata.devices()?.into_iter().map(|device| device.0).take(4).collect();
    let mut outcome = Ok(());
    let mut note = |step: Result<()>| {
        if outcome.is_ok() {
            outcome = step;
        }
    };
    for (nth, &id) in ids.iter().enumerate() {
        note(metadata.lookup(id, VirtualBlock(3)).map(drop));
        note(metadata.lookup_range(id, WHOLE).map(drop));
        note(metadata.usage(id).map(drop));
        note(metadata.delta(id, ids[(nth + 1) % ids.len()]).map(drop));
        let snapshot = DeviceId::new(1000 + u32::try_from(nth).expect("four at most")).expect("a good id");
        note(metadata.create_snap(snapshot, id));
        match metadata.reserve_data(3) {
            Ok(run) => note(metadata.insert(id, VirtualBlock(2), run)),
            Err(error) => note(Err(error)),
        }
        note(metadata.remove_range(id, VirtualBlock(1)..VirtualBlock(90)).map(drop));
        note(metadata.delete_step(id, 1).map(drop));
    }
    outcome
}
