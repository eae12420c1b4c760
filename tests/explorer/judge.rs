//! Judges the disks that a cut left: metadata, bytes and records against what was promised.

use std::collections::{BTreeSet, HashSet};

use thinsnap_pool::{DeviceId, DiskImage};

use crate::disks::{DATA, METADATA, STORE};
use crate::expected::{Expected, ExpectedLife};
use crate::model::Choice;
use crate::tokens::{BLOCK, PAGES_PER_BLOCK, PageName, PageReader, SECTORS_PER_BLOCK, SECTORS_PER_PAGE, index};
use crate::views::{Mappings, MetadataView, StoreView, Views};

/// Devices with this id or a higher one were made beside the snapshotter.
pub(crate) const RAW_IDS: u32 = 1_000_000;

pub(crate) fn is_raw(id: DeviceId) -> bool {
    id.get() >= RAW_IDS
}

/// What the cut interrupted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum During {
    Story,
    /// The recovery from an earlier cut: what was in limbo may be gone, and the transaction id has moved on.
    Recovery,
}

/// Judges the disks of one story.
pub(crate) struct Judge {
    pub(crate) views: Views,
    pages: PageReader,
    /// Pages that were found right in their place, since the expectation changed.
    right: HashSet<(usize, usize, PageName)>,
    signature: Option<(usize, usize)>,
    with_service: bool,
}

impl Judge {
    pub(crate) fn new(with_service: bool) -> Self {
        Self::with_views(with_service, Views::new())
    }

    /// Of disks that failed.
    pub(crate) fn suspect(with_service: bool) -> Self {
        Self::with_views(with_service, Views::suspect())
    }

    fn with_views(with_service: bool, views: Views) -> Self {
        Self { views, pages: PageReader::default(), right: HashSet::new(), signature: None, with_service }
    }

    /// Says that expectations of another signature follow.
    pub(crate) fn turn_to(&mut self, signature: (usize, usize)) {
        if self.signature.replace(signature) != Some(signature) {
            self.right.clear();
        }
    }

    /// Errors with the first thing that is not as it must be.
    pub(crate) fn judge(
        &mut self,
        images: &[DiskImage],
        expected: &Expected<'_>,
        during: During,
    ) -> Result<(), String> {
        let metadata = self.views.metadata(&images[METADATA]);
        let metadata = metadata.as_ref().as_ref().map_err(|e| format!("metadata: {e}"))?;
        if !expected.data_blocks.contains(&metadata.data_blocks) {
            return Err(format!("the pool has {} data blocks", metadata.data_blocks));
        }
        if images[DATA].len() < metadata.data_blocks * BLOCK {
            return Err(format!("the data disk has {} bytes only", images[DATA].len()));
        }
        if during == During::Story && !expected.transactions.contains(&metadata.transaction_id) {
            return Err(format!(
                "the transaction id is {}, promised was one of {:?}",
                metadata.transaction_id, expected.transactions
            ));
        }
        let store = self.with_service.then(|| self.views.store(&images[STORE]));
        let store = match &store {
            Some(read) => Some(read.as_ref().as_ref().map_err(Clone::clone)?),
            None => None,
        };
        if let Some(store) = store {
            fits(metadata, store, expected)?;
        }
        self.devices(images, metadata, store, expected, during)
    }

    fn devices(
        &mut self,
        images: &[DiskImage],
        metadata: &MetadataView,
        store: Option<&StoreView>,
        expected: &Expected<'_>,
        during: During,
    ) -> Result<(), String> {
        for life in expected.lives.iter().filter(|life| life.must) {
            let drained = during == During::Recovery && !is_raw(life.id);
            if !drained && !metadata.devices.contains_key(&life.id) {
                return Err(format!("device {} is gone", life.id));
            }
        }
        for (id, mappings) in &metadata.devices {
            let committed = store.is_some_and(|store| store.committed.contains(id));
            let mut lives = expected.lives.iter().filter(|life| life.id == *id).peekable();
            if lives.peek().is_none() {
                return Err(format!("device {id} is there, which is not yet or no longer"));
            }
            // An id that lived twice fits one of its lives.
            let mut wrong = None;
            for life in lives {
                let content = if committed { life.committed.unwrap_or(&life.content) } else { &life.content };
                wrong = self.content(images, life, mappings, content, committed).err();
                if wrong.is_none() {
                    break;
                }
            }
            if let Some(wrong) = wrong {
                return Err(format!("device {id}: {wrong}"));
            }
        }
        Ok(())
    }

    fn content(
        &mut self,
        images: &[DiskImage],
        life: &ExpectedLife<'_>,
        mappings: &Mappings,
        content: &[Choice],
        committed: bool,
    ) -> Result<(), String> {
        let holes = DiskImage::default();
        let (pages_per_block, first_half) = (index(PAGES_PER_BLOCK), usize::from(committed) << 40);
        for (block, place) in mappings.iter().enumerate() {
            for page in 0..pages_per_block {
                let (image, at) = match place {
                    Some(place) => (&images[DATA], place * PAGES_PER_BLOCK + page as u64),
                    None => (&holes, 0),
                };
                let number = block * pages_per_block + page;
                let seen = (life.number, number | first_half, self.pages.name(image, at));
                if self.right.contains(&seen) {
                    continue;
                }
                let tokens = self.pages.tokens(image, at).map_err(|e| format!("page {number}: {e}"))?;
                let first = number * SECTORS_PER_PAGE;
                for (token, (sector, choice)) in tokens.iter().zip(content.iter().enumerate().skip(first)) {
                    if !choice.allows(*token) {
                        return Err(wrong_sector(sector, *token, choice, *place, committed));
                    }
                }
                self.right.insert(seen);
            }
        }
        Ok(())
    }
}

pub(crate) fn wrong_sector(sector: usize, token: u64, choice: &Choice, place: Option<u64>, committed: bool) -> String {
    let whose = if committed { "committed" } else { "promised" };
    let block = sector as u64 / SECTORS_PER_BLOCK;
    format!("sector {sector} (block {block}, on data block {place:?}) holds {token:#x}, {whose} was {choice:x?}")
}

/// Records and pool.
fn fits(metadata: &MetadataView, store: &StoreView, expected: &Expected<'_>) -> Result<(), String> {
    if !expected.records.contains(&store.records) {
        return Err(format!("the store knows {:?}, promised was one of {:?}", store.records, expected.records));
    }
    let there: BTreeSet<DeviceId> = metadata.devices.keys().copied().collect();
    if let Some(lost) = store.owned.difference(&there).next() {
        return Err(format!("a record needs device {lost}, which the pool lacks"));
    }
    let orphan = there.iter().find(|id| !is_raw(**id) && !store.owned.contains(id) && !store.limbo.contains(id));
    if let Some(orphan) = orphan {
        return Err(format!("device {orphan} has neither a record nor a place in limbo"));
    }
    if let Some(both) = store.owned.intersection(&store.limbo).next() {
        return Err(format!("device {both} has a record and stands in limbo"));
    }
    let copy = store.transaction_id;
    if !store.is_new && !(copy..=copy + 1).contains(&metadata.transaction_id) {
        return Err(format!("the tripwire: the pool stands at {}, the store at {copy}", metadata.transaction_id));
    }
    Ok(())
}
