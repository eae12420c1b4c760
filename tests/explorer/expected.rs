//! What a cut may leave, derived from the model: which devices, which bytes, which records.

use thinsnap_pool::DeviceId;

use crate::model::{Choice, Known, Model};

/// A device that may be there.
pub(crate) struct ExpectedLife<'a> {
    /// Its place in the model.
    pub(crate) number: usize,
    pub(crate) id: DeviceId,
    /// It must be there.
    pub(crate) must: bool,
    pub(crate) content: Vec<Choice>,
    pub(crate) committed: Option<&'a [Choice]>,
}

/// All that may be found behind one cut, and behind every other between the same two boundaries of operations.
pub(crate) struct Expected<'a> {
    pub(crate) lives: Vec<ExpectedLife<'a>>,
    pub(crate) transactions: Vec<u64>,
    pub(crate) data_blocks: Vec<u64>,
    pub(crate) records: Vec<Known>,
}

impl<'a> Expected<'a> {
    pub(crate) fn at(model: &'a Model, cut: usize) -> Self {
        let durable = model.flushes.iter().filter(|flush| flush.end <= cut).map(|flush| flush.start).max();
        let durable = durable.unwrap_or(0);
        let mut lives = Vec::new();
        for (number, life) in model.lives.iter().enumerate() {
            let may = life.born.start < cut && life.dead.is_none_or(|dead| cut < dead.end);
            let must = life.born.end <= cut && life.dead.is_none_or(|dead| cut <= dead.start);
            if !may {
                continue;
            }
            let mut content = life.base.clone();
            for change in &life.changes {
                let (sure, begun) = (change.span.end <= durable, change.span.start < cut);
                for sector in change.sectors_of(&mut content) {
                    if sure {
                        sector.set(change.token);
                    } else if begun {
                        sector.add(change.token);
                    }
                }
            }
            if life.dead.is_some_and(|dead| dead.start < cut) {
                // Its mappings go a few at a time.
                content.iter_mut().for_each(|sector| sector.add(0));
            }
            lives.push(ExpectedLife { number, id: life.id, must, content, committed: life.committed.as_deref() });
        }
        Self {
            lives,
            transactions: model.transactions.at(cut),
            data_blocks: model.data_blocks.at(cut),
            records: model.records.at(cut),
        }
    }
}

/// Which operations have begun and which have ended at each cut: equal numbers, equal expectations.
pub(crate) struct Boundaries {
    starts: Vec<usize>,
    ends: Vec<usize>,
}

impl Boundaries {
    pub(crate) fn of(model: &Model) -> Self {
        let spans = model.spans();
        let mut starts: Vec<usize> = spans.iter().map(|span| span.start).collect();
        let mut ends: Vec<usize> = spans.iter().map(|span| span.end).collect();
        starts.sort_unstable();
        ends.sort_unstable();
        Self { starts, ends }
    }

    pub(crate) fn signature(&self, cut: usize) -> (usize, usize) {
        (self.starts.partition_point(|&start| start < cut), self.ends.partition_point(|&end| end <= cut))
    }
}
