//! What metadata and store say on a disk, read without starting an engine, and remembered by content.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;

use thinsnap::snapshot::Kind;
use thinsnap::store::{Records, Rows, Store, Table};
use thinsnap_pool::{DeviceId, DiskImage, Metadata, OpenMode, VirtualBlock, audit};

use crate::disks::{Disks, Still};
use crate::machine::space;
use crate::model::Known;
use crate::tokens::TOLD_SLOTS;

/// Any block beyond these is mapped by nobody.
const BLOCKS_LOOKED_AT: u64 = 1 << 20;

/// Data blocks of the blocks that stories write to.
pub(crate) type Mappings = [Option<u64>; TOLD_SLOTS];

pub(crate) struct MetadataView {
    pub(crate) devices: BTreeMap<DeviceId, Mappings>,
    pub(crate) transaction_id: u64,
    pub(crate) data_blocks: u64,
}

#[derive(Default)]
pub(crate) struct StoreView {
    pub(crate) records: Known,
    /// Devices of committed snapshots.
    pub(crate) committed: BTreeSet<DeviceId>,
    pub(crate) owned: BTreeSet<DeviceId>,
    pub(crate) limbo: BTreeSet<DeviceId>,
    pub(crate) transaction_id: u64,
    /// It was never used with a pool.
    pub(crate) is_new: bool,
}

/// After a failed commit the metadata carries a flag that asks for a check before they are changed again.
fn read_suspect(image: &DiskImage) -> Result<MetadataView, String> {
    read_metadata_for(image, OpenMode::ReadOnly)
}

fn read_metadata(image: &DiskImage) -> Result<MetadataView, String> {
    read_metadata_for(image, OpenMode::ReadWrite)
}

fn read_metadata_for(image: &DiskImage, mode: OpenMode) -> Result<MetadataView, String> {
    let device = Arc::new(Still(image.clone()));
    let report = audit(&*device, &|_| ()).map_err(|e| format!("audit: {e}"))?;
    if !report.is_sound() || report.incomplete {
        let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
        return Err(format!("audit: {findings:?}"));
    }
    let metadata = Metadata::open(device, mode).map_err(|e| e.to_string())?;
    let mut devices = BTreeMap::new();
    for (id, _) in metadata.devices().map_err(|e| e.to_string())? {
        let mut mappings: Mappings = [None; TOLD_SLOTS];
        let runs = metadata.lookup_range(id, VirtualBlock(0)..VirtualBlock(BLOCKS_LOOKED_AT));
        for run in runs.map_err(|e| e.to_string())? {
            for i in 0..run.len {
                let slot = usize::try_from(run.start.0 + i).ok().and_then(|block| mappings.get_mut(block));
                let Some(slot) = slot else {
                    return Err(format!("device {id} maps block {}, which nobody wrote", run.start.0 + i));
                };
                *slot = Some(run.mapping.block.0 + i);
            }
        }
        devices.insert(id, mappings);
    }
    let (transaction_id, data_blocks) = (metadata.transaction_id(), metadata.data_space().total);
    Ok(MetadataView { devices, transaction_id, data_blocks })
}

fn read_store(image: &DiskImage) -> Result<StoreView, String> {
    let disks = Disks::new(vec![DiskImage::default(), DiskImage::default(), image.clone()]);
    let store = Store::with_backend(disks.for_redb()).map_err(|e| format!("open the store: {e}"))?;
    let told = |e: thinsnap::error::Error| format!("read the store: {e}");
    let reader = store.read().map_err(told)?;
    let mut view = StoreView {
        owned: reader.owned_devices().map_err(told)?,
        transaction_id: reader.transaction_id().map_err(told)?.unwrap_or(0),
        is_new: reader.identity().map_err(told)?.is_none(),
        ..StoreView::default()
    };
    let add = &mut |snapshot: thinsnap::snapshot::Snapshot| {
        let parent = snapshot.parent.map(|parent| parent.as_str().to_owned());
        view.records.insert((snapshot.name.as_str().to_owned(), snapshot.kind as u8, parent));
        if snapshot.kind == Kind::Committed {
            view.committed.insert(snapshot.device);
        }
    };
    reader.snapshots(&space(), add).map_err(told)?;
    let limbo = &mut view.limbo;
    let walked = reader.walk(Table::new("limbo"), &[], &mut |key, _| {
        limbo.insert(DeviceId::new(u32::from_be_bytes(key.try_into().unwrap())).unwrap());
        Ok(ControlFlow::Continue(()))
    });
    walked.map_err(told)?;
    Ok(view)
}

/// Calls it once for each content.
struct Remembered<T> {
    known: HashMap<u64, Rc<Result<T, String>>>,
    read: fn(&DiskImage) -> Result<T, String>,
    reads: u64,
}

impl<T> Remembered<T> {
    fn new(read: fn(&DiskImage) -> Result<T, String>) -> Self {
        Self { known: HashMap::new(), read, reads: 0 }
    }

    fn of(&mut self, image: &DiskImage) -> Rc<Result<T, String>> {
        let read = self.read;
        let reads = &mut self.reads;
        let known = self.known.entry(image.fingerprint()).or_insert_with(|| {
            *reads += 1;
            Rc::new(catch_unwind(AssertUnwindSafe(|| read(image))).unwrap_or_else(|_| Err("it panics".into())))
        });
        known.clone()
    }
}

/// All views of one story.
pub(crate) struct Views {
    metadata: Remembered<MetadataView>,
    store: Remembered<StoreView>,
}

impl Views {
    pub(crate) fn new() -> Self {
        Self { metadata: Remembered::new(read_metadata), store: Remembered::new(read_store) }
    }

    /// Of disks that failed.
    pub(crate) fn suspect() -> Self {
        Self { metadata: Remembered::new(read_suspect), ..Self::new() }
    }

    pub(crate) fn metadata(&mut self, image: &DiskImage) -> Rc<Result<MetadataView, String>> {
        self.metadata.of(image)
    }

    pub(crate) fn store(&mut self, image: &DiskImage) -> Rc<Result<StoreView, String>> {
        self.store.of(image)
    }

    /// Metadata and stores that were opened.
    pub(crate) fn reads(&self) -> (u64, u64) {
        (self.metadata.reads, self.store.reads)
    }
}
