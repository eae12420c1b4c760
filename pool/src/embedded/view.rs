//! Begins a view of the metadata: a committed state that others may read from the disk while writes go on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::device::{AlignedBuffer, BlockDevice};
use crate::embedded::backing::Backing;
use crate::error::{ErrorKind, Result};
use crate::meta::{check_superblock, without_log};
use crate::status::MetadataView;
use crate::units::METADATA_BLOCK_SIZE;

/// Reads of the superblock, at most: a read may meet a commit's write half-way, and several in a row do not.
const ATTEMPTS: u32 = 20;

/// Commits, and reads the superblock with everything kept that it reaches. The order is the argument: from the
/// first step on nothing that is freed is handed out again, so whichever superblock is found afterwards is whole.
pub(super) fn begin(backing: &Arc<Backing>) -> Result<MetadataView> {
    let number = next_number();
    backing.metadata()?.begin_view(number);
    let superblock = match backing.flush() {
        // What was committed last can be looked at all the same.
        Err(e) if backing.mode.check_changes().is_ok() => Err(e),
        _ => read_superblock(&*backing.metadata_device),
    };
    superblock.map(|superblock| MetadataView { number, superblock, copies: BTreeMap::new() }).inspect_err(|_| {
        if let Ok(mut metadata) = backing.metadata() {
            metadata.end_view(number);
        }
    })
}

fn read_superblock(device: &dyn BlockDevice) -> Result<Vec<u8>> {
    let mut block = AlignedBuffer::zeroed(METADATA_BLOCK_SIZE);
    let mut attempt = 1;
    loop {
        device.read_at(&mut block, 0)?;
        match check_superblock(&block) {
            Err(e) if e.kind() == ErrorKind::Corrupt && attempt < ATTEMPTS => attempt += 1,
            // What is kept has nothing to do with the log, which goes on without it.
            checked => return checked.and_then(|()| without_log(&block)),
        }
    }
}

/// No number is used twice, also not by the host that follows a dead one: it starts from the clock.
fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos());
    let now = u64::try_from(now).unwrap_or(u64::MAX / 2);
    let before = NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(now.max(last + 1)));
    now.max(before.unwrap_or(0) + 1)
}
