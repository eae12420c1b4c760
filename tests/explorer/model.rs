//! What happened: each device's life in tokens, what made it durable, and the records of the snapshotter.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thinsnap_pool::{DeviceId, PowerSupply};

use crate::tokens::{TOLD_SECTORS, Token, index};

/// The end of an operation that failed: nothing was promised.
pub(crate) const NEVER: usize = usize::MAX;

/// When an operation was called and when it returned, in events of the power supply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// What a sector may hold: one token, or after failures one of several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Choice {
    sure: Token,
    more: Vec<Token>,
}

impl Choice {
    pub(crate) fn allows(&self, token: Token) -> bool {
        self.sure == token || self.more.contains(&token)
    }

    pub(crate) fn set(&mut self, token: Token) {
        self.sure = token;
        self.more.clear();
    }

    pub(crate) fn add(&mut self, token: Token) {
        if !self.allows(token) {
            self.more.push(token);
        }
    }
}

/// One write or discard of a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    pub(crate) span: Span,
    pub(crate) first: u64,
    pub(crate) sectors: u64,
    pub(crate) token: Token,
}

impl Change {
    pub(crate) fn sectors_of<'a>(&self, content: &'a mut [Choice]) -> &'a mut [Choice] {
        &mut content[index(self.first)..index(self.first + self.sectors)]
    }
}

/// A device from its creation to its deletion; its id may live again.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) id: DeviceId,
    pub(crate) born: Span,
    pub(crate) dead: Option<Span>,
    pub(crate) base: Vec<Choice>,
    pub(crate) changes: Vec<Change>,
    /// What it holds for good once its snapshot is committed.
    pub(crate) committed: Option<Vec<Choice>>,
}

impl Life {
    /// What a reader sees.
    pub(crate) fn now(&self) -> Vec<Choice> {
        let mut content = self.base.clone();
        for change in &self.changes {
            let certain = change.span.end != NEVER;
            for sector in change.sectors_of(&mut content) {
                if certain { sector.set(change.token) } else { sector.add(change.token) }
            }
        }
        content
    }
}

/// A value that operations changed one after the other.
#[derive(Debug, Default)]
pub(crate) struct Timeline<T> {
    first: T,
    later: Vec<(Span, T)>,
}

impl<T: Clone + PartialEq> Timeline<T> {
    pub(crate) fn new(first: T) -> Self {
        Self { first, later: Vec::new() }
    }

    pub(crate) fn push(&mut self, span: Span, value: T) {
        self.later.push((span, value));
    }

    pub(crate) fn last(&self) -> &T {
        self.later.iter().rev().find(|(span, _)| span.end != NEVER).map_or(&self.first, |(_, value)| value)
    }

    /// The values that a cut may find: the last that an operation had returned, and those on their way.
    pub(crate) fn at(&self, cut: usize) -> Vec<T> {
        let done = self.later.iter().rposition(|(span, _)| span.end <= cut);
        let sure = done.map_or(&self.first, |at| &self.later[at].1);
        let begun = self.later[done.map_or(0, |at| at + 1)..].iter().filter(|(span, _)| span.start < cut);
        std::iter::once(sure).chain(begun.map(|(_, value)| value)).cloned().collect()
    }

    fn spans(&self) -> impl Iterator<Item = Span> {
        self.later.iter().map(|(span, _)| *span)
    }
}

/// A snapshot as a client knows it: name, kind, parent.
pub(crate) type Known = BTreeSet<(String, u8, Option<String>)>;

/// What happened to a machine since it was started on empty disks.
pub(crate) struct Model {
    supply: Arc<PowerSupply>,
    pub(crate) lives: Vec<Life>,
    /// The operations that make durable what returned before them.
    pub(crate) flushes: Vec<Span>,
    pub(crate) transactions: Timeline<u64>,
    pub(crate) data_blocks: Timeline<u64>,
    pub(crate) records: Timeline<Known>,
    tokens: Token,
}

impl Model {
    pub(crate) fn new(supply: Arc<PowerSupply>, data_blocks: u64) -> Self {
        Self {
            supply,
            lives: Vec::new(),
            flushes: Vec::new(),
            transactions: Timeline::new(0),
            data_blocks: Timeline::new(data_blocks),
            records: Timeline::default(),
            tokens: 0,
        }
    }

    pub(crate) fn next_token(&mut self) -> Token {
        self.tokens += 1;
        // Far from small numbers and from pages of one byte.
        self.tokens << 20 | 0x7_0b5e
    }

    /// The life that an id has at the moment.
    pub(crate) fn alive(&mut self, id: DeviceId) -> Option<&mut Life> {
        self.lives.iter_mut().rev().find(|life| life.id == id && life.dead.is_none_or(|dead| dead.end == NEVER))
    }

    /// A device was created, as a snapshot of `origin` if there is one; that made everything durable.
    pub(crate) fn born(&mut self, id: DeviceId, origin: Option<DeviceId>, span: Span) {
        let empty = || vec![Choice::default(); index(TOLD_SECTORS)];
        let base = origin.map_or_else(empty, |origin| self.alive(origin).map_or_else(empty, |life| life.now()));
        self.lives.push(Life { id, born: span, dead: None, base, changes: Vec::new(), committed: None });
        self.flushed(span);
    }

    pub(crate) fn died(&mut self, id: DeviceId, span: Span) {
        if let Some(life) = self.alive(id) {
            // An earlier try that failed may have begun it.
            let start = life.dead.map_or(span.start, |dead| dead.start);
            life.dead = Some(Span { start, end: span.end });
        }
        self.flushed(span);
    }

    pub(crate) fn flushed(&mut self, span: Span) {
        if span.end != NEVER {
            self.flushes.push(span);
        }
    }

    pub(crate) fn changed(&mut self, id: DeviceId, change: Change) {
        if let Some(life) = self.alive(id) {
            life.changes.push(change);
        }
    }

    /// Runs `work`, and says when it began and ended. What only ends with a flush ends there: the blocks that it
    /// freed are emptied in the background.
    pub(crate) fn timed<T, E>(
        supply: &PowerSupply,
        ends_with_flush: bool,
        work: impl FnOnce() -> Result<T, E>,
    ) -> (Result<T, E>, Span) {
        let start = supply.events();
        let done = work();
        let end = match &done {
            Ok(_) if ends_with_flush => supply.flushed().max(start),
            Ok(_) => supply.events(),
            Err(_) => NEVER,
        };
        (done, Span { start, end })
    }

    pub(crate) fn supply(&self) -> &Arc<PowerSupply> {
        &self.supply
    }

    /// The spans of everything that a judgement depends on.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let lives = self.lives.iter().flat_map(|life| {
            [Some(life.born), life.dead].into_iter().flatten().chain(life.changes.iter().map(|change| change.span))
        });
        lives
            .chain(self.flushes.iter().copied())
            .chain(self.transactions.spans())
            .chain(self.data_blocks.spans())
            .chain(self.records.spans())
            .collect()
    }
}

pub(crate) type SharedModel = Arc<Mutex<Model>>;

pub(crate) fn lock(model: &SharedModel) -> MutexGuard<'_, Model> {
    model.lock().unwrap_or_else(PoisonError::into_inner)
}
