//! Stories: random operations on a machine, the same for the same seed.

use std::collections::BTreeSet;

use thinsnap::snapshot::{Kind, Labels};
use thinsnap_pool::{Access, ByteCount, DeviceId, ErrorKind, METADATA_CACHE_DEFAULT, Result, ThinPool};

use crate::judge::RAW_IDS;
use crate::machine::{Machine, SNAPSHOT_SIZE, TINY_CACHE, name, space};
use crate::model::{Known, Model, lock};
use crate::random::Random;
use crate::tokens::{BLOCK, SECTORS_PER_BLOCK, TOLD_BLOCKS, TOLD_SECTORS};

/// Two sorts of stories take turns: devices of the pool alone, and the snapshotter over them.
pub(crate) fn has_service(seed: u64) -> bool {
    seed.is_multiple_of(2)
}

/// A machine and what happens to it.
pub(crate) struct Story {
    pub(crate) machine: Machine,
    random: Random,
    /// Each operation and the events before it.
    pub(crate) log: Vec<(usize, String)>,
    /// What failed, in its own words, the advice behind.
    pub(crate) failures: Vec<String>,
    raw: BTreeSet<DeviceId>,
    names: u64,
    metadata_size: u64,
}

impl Story {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        // Sometimes so few that the pool is full for a good part of the story.
        let data_blocks = random.pick(&[14, 24, 40]);
        let metadata_cache = if seed % 4 < 2 { TINY_CACHE } else { METADATA_CACHE_DEFAULT };
        let machine = Machine::new(data_blocks, has_service(seed), metadata_cache);
        Self {
            machine,
            random,
            log: Vec::new(),
            failures: Vec::new(),
            raw: BTreeSet::new(),
            names: 0,
            metadata_size: 2 << 20,
        }
    }

    /// A whole story.
    pub(crate) fn told(seed: u64) -> Self {
        let mut story = Self::new(seed);
        let steps = if has_service(seed) { 46 } else { 80 };
        for _ in 0..steps {
            story.step();
        }
        story
    }

    fn note(&mut self, what: impl Into<String>) {
        self.log.push((self.machine.supply().events(), what.into()));
    }

    /// One operation.
    pub(crate) fn step(&mut self) {
        let service = self.machine.service.is_some();
        match self.random.below(100) {
            0..52 if service => self.verb(),
            0..70 => self.block_work(),
            70..78 => self.create_raw(),
            78..86 => self.snapshot_raw(),
            86..92 => self.delete_raw(),
            92..94 => self.grow(),
            94..96 if !service => self.move_transaction(),
            _ => self.flush(),
        }
    }

    /// Active devices that may be written to.
    fn writable(&self) -> Vec<DeviceId> {
        let mut devices: Vec<DeviceId> = self.raw.iter().copied().collect();
        if let Some(service) = &self.machine.service {
            let all = service.snapshotter.list(&space(), &[]).unwrap_or_default();
            devices.extend(all.into_iter().filter(|s| s.kind == Kind::Active).map(|s| s.device));
        }
        devices.sort_unstable();
        devices
    }

    fn some_device(&mut self) -> Option<DeviceId> {
        let all = self.writable();
        (!all.is_empty()).then(|| self.random.pick(&all))
    }

    /// A write, a discard or a zeroing.
    fn block_work(&mut self) {
        let Some(id) = self.some_device() else { return self.create_raw() };
        let what = self.random.below(10);
        let (first, sectors) = if what < 8 {
            let first = self.random.below(TOLD_SECTORS);
            let longest = self.random.pick(&[1, 8, 8, 64, 300]);
            (first, (1 + self.random.below(longest)).min(TOLD_SECTORS - first))
        } else {
            let block = self.random.below(TOLD_BLOCKS);
            (block * SECTORS_PER_BLOCK, (1 + self.random.below(TOLD_BLOCKS - block)) * SECTORS_PER_BLOCK)
        };
        let verb = ["discard", "zero", "write"][if what == 8 { 0 } else { usize::from(what != 9) + 1 }];
        self.note(format!("{verb} {sectors} sectors from {first} on of device {id}"));
        if !self.activate(id) {
            return;
        }
        let files = self.machine.files.clone();
        let done = match verb {
            "discard" => files.discard(id, first, sectors),
            "zero" => files.zero(id, first, sectors),
            _ => files.write(id, first, sectors),
        };
        if self.failed(done.err()) == Some(ErrorKind::OutOfDataSpace) {
            self.make_room();
        }
    }

    /// A full pool is lived with for a while, grown, or emptied.
    fn make_room(&mut self) {
        match self.random.below(6) {
            0 => self.grow(),
            1..4 => self.delete_raw(),
            _ => {}
        }
    }

    fn activate(&mut self, id: DeviceId) -> bool {
        let pool = self.machine.pool.clone();
        let active = matches!(pool.active_path(id), Ok(Some(_)));
        active || {
            let size = if self.raw.contains(&id) { ByteCount(TOLD_BLOCKS * BLOCK) } else { SNAPSHOT_SIZE };
            let done = pool.activate(id, size, Access::ReadWrite);
            self.failed(done.err()).is_none()
        }
    }

    fn flush(&mut self) {
        let Some(id) = self.some_device() else { return };
        self.note(format!("flush device {id}"));
        let done = self.machine.pool.flush(id);
        self.failed(done.err());
    }

    fn create_raw(&mut self) {
        let Some(id) = self.new_id() else { return };
        self.note(format!("create device {id}"));
        let done = self.machine.pool.create_thin(id);
        self.made(id, done);
    }

    fn snapshot_raw(&mut self) {
        let (Some(origin), Some(id)) = (self.some_device(), self.new_id()) else { return };
        self.note(format!("snapshot device {origin} as {id}"));
        let done = self.machine.pool.create_snap(id, origin);
        self.made(id, done);
    }

    fn made(&mut self, id: DeviceId, done: Result<()>) {
        if self.failed(done.err()).is_none() {
            self.raw.insert(id);
        }
    }

    fn delete_raw(&mut self) {
        let all: Vec<DeviceId> = self.raw.iter().copied().collect();
        if all.is_empty() {
            return;
        }
        let id = self.random.pick(&all);
        self.note(format!("delete device {id}"));
        let done = self.machine.pool.delete(id);
        if self.failed(done.err()).is_none() {
            self.raw.remove(&id);
        }
    }

    /// A fresh id, or one that lived before.
    fn new_id(&mut self) -> Option<DeviceId> {
        let id = DeviceId::new(RAW_IDS + u32::try_from(self.random.below(12)).unwrap()).unwrap();
        (!self.raw.contains(&id)).then_some(id)
    }

    fn grow(&mut self) {
        let blocks = *lock(&self.machine.model).data_blocks.last() + self.random.below(3);
        if self.random.chance(50) {
            self.metadata_size += 4096 * (1 + self.random.below(9));
        }
        self.note(format!("grow to {blocks} data blocks and {} bytes of metadata", self.metadata_size));
        let done = self.machine.pool.grow(Some(ByteCount(blocks * BLOCK)), Some(ByteCount(self.metadata_size)));
        self.failed(done.err());
    }

    fn move_transaction(&mut self) {
        let Ok(status) = self.machine.pool.status() else { return };
        self.note(format!("move the transaction id on from {}", status.transaction_id));
        let done = self.machine.pool.set_transaction_id(status.transaction_id, status.transaction_id + 1);
        self.failed(done.err());
    }

    /// A verb of the snapshotter, or the mounting of what it made.
    fn verb(&mut self) {
        let known = lock(&self.machine.model).records.last().clone();
        let of = |kind: Kind| -> Vec<String> {
            known.iter().filter(|(_, other, _)| *other == kind as u8).map(|(name, ..)| name.clone()).collect()
        };
        let (active, committed) = (of(Kind::Active), of(Kind::Committed));
        let parent = (!committed.is_empty() && self.random.chance(75))
            .then(|| committed[usize::try_from(self.random.below(committed.len() as u64)).unwrap()].clone());
        match self.random.below(20) {
            0..5 => self.prepare(&known, parent.as_deref(), Kind::Active),
            5..7 => self.prepare(&known, parent.as_deref(), Kind::View),
            7..11 => self.commit(&known, &active),
            11..14 => self.remove(&known),
            14 => self.cleanup(),
            15..18 => self.mount(&active),
            _ => self.unmount(&active),
        }
    }

    /// Runs a verb after which the client knows `after`.
    fn run(&mut self, what: String, after: Known, work: impl FnOnce(&Machine) -> thinsnap::error::Result<()>) -> bool {
        self.note(what);
        let supply = self.machine.supply().clone();
        let (done, span) = Model::timed(&supply, false, || work(&self.machine));
        lock(&self.machine.model).records.push(span, after);
        self.refused(done.err())
    }

    /// Notes a failed verb. True: it did not fail.
    fn refused(&mut self, error: Option<thinsnap::error::Error>) -> bool {
        let Some(error) = error else { return true };
        let advice = error.advice().unwrap_or("nothing");
        self.failures.push(format!("{:?}: {error} (advice: {advice})", error.kind()));
        self.note(format!("  failed: {error}"));
        false
    }

    /// Stops in order and starts again, with nothing of the metadata in memory. False: it does not start.
    pub(crate) fn restart(&mut self) -> bool {
        self.note("restart");
        match self.machine.restart() {
            Ok(()) => true,
            Err(e) => {
                self.failures.push(format!("Start: {e}"));
                false
            }
        }
    }

    fn prepare(&mut self, known: &Known, parent: Option<&str>, kind: Kind) {
        self.names += 1;
        let key = format!("{kind:?}{}", self.names);
        let mut after = known.clone();
        after.insert((key.clone(), kind as u8, parent.map(str::to_owned)));
        let parent = parent.map(name);
        self.run(format!("make {key} of {parent:?}"), after, |machine| {
            let snapshotter = &machine.service.as_ref().unwrap().snapshotter;
            match kind {
                Kind::View => snapshotter.view(&space(), &name(&key), parent.as_ref(), Labels::new()).map(drop),
                _ => snapshotter.prepare(&space(), &name(&key), parent.as_ref(), Labels::new()).map(drop),
            }
        });
    }

    fn commit(&mut self, known: &Known, active: &[String]) {
        let Some(key) = self.random_of(active) else { return };
        self.names += 1;
        let to = format!("Committed{}", self.names);
        let mut after = known.clone();
        let old = known.iter().find(|(name, ..)| *name == key).unwrap().clone();
        after.remove(&old);
        after.insert((to.clone(), Kind::Committed as u8, old.2));
        let done = self.run(format!("commit {key} as {to}"), after, |machine| {
            let snapshotter = &machine.service.as_ref().unwrap().snapshotter;
            snapshotter.commit(&space(), &name(&to), &name(&key), Labels::new(), None)
        });
        if done {
            let snapshotter = &self.machine.service.as_ref().unwrap().snapshotter;
            let device = snapshotter.stat(&space(), &name(&to)).unwrap().device;
            let mut model = lock(&self.machine.model);
            if let Some(life) = model.alive(device) {
                life.committed = Some(life.now());
            }
        }
    }

    fn remove(&mut self, known: &Known) {
        let is_parent = |name: &String| known.iter().any(|(_, _, parent)| parent.as_ref() == Some(name));
        let leaves: Vec<String> = known.iter().filter(|(name, ..)| !is_parent(name)).map(|(n, ..)| n.clone()).collect();
        let Some(key) = self.random_of(&leaves) else { return };
        let after = known.iter().filter(|(name, ..)| *name != key).cloned().collect();
        self.run(format!("remove {key}"), after, |machine| {
            machine.service.as_ref().unwrap().snapshotter.remove(&space(), &name(&key))
        });
    }

    fn cleanup(&mut self) {
        self.note("clean up");
        let done = self.machine.service.as_ref().unwrap().snapshotter.cleanup();
        self.refused(done.err());
    }

    fn mount(&mut self, active: &[String]) {
        let Some(device) = self.random_of(active).and_then(|key| self.device_of(&key)) else { return };
        if self.activate(device) && !self.machine.files.is_mounted(device) {
            self.note(format!("mount device {device}"));
            self.machine.files.mount(device);
        }
    }

    fn unmount(&mut self, active: &[String]) {
        let Some(device) = self.random_of(active).and_then(|key| self.device_of(&key)) else { return };
        if self.machine.files.is_mounted(device) {
            let in_order = self.random.chance(70);
            self.note(format!("unmount device {device}, in order: {in_order}"));
            let done = self.machine.files.unmount(device, in_order);
            self.failed(done.err());
        }
    }

    fn device_of(&self, key: &str) -> Option<DeviceId> {
        let snapshotter = &self.machine.service.as_ref()?.snapshotter;
        snapshotter.stat(&space(), &name(key)).ok().map(|snapshot| snapshot.device)
    }

    fn random_of(&mut self, names: &[String]) -> Option<String> {
        (!names.is_empty()).then(|| names[usize::try_from(self.random.below(names.len() as u64)).unwrap()].clone())
    }

    /// Notes a failure; the kind, if there was one.
    fn failed(&mut self, error: Option<thinsnap_pool::Error>) -> Option<ErrorKind> {
        let error = error?;
        self.failures.push(format!("{:?}: {error}", error.kind()));
        self.note(format!("  failed: {error}"));
        Some(error.kind())
    }
}
