//! Random operations on thin devices, and what each sector of them must hold after a kill or a power cut.

use std::collections::BTreeMap;
use std::ops::Range;

use thinsnap_pool::{Access, ByteCount, DeviceId, ErrorKind, METADATA_CACHE_DEFAULT, Result, ThinPool};

use crate::ground::{BLOCK, Ground};
use crate::random::Random;

pub(crate) const SECTOR: u64 = 512;
const SECTORS_PER_BLOCK: u64 = BLOCK / SECTOR;
/// Blocks of each device.
const DEVICE_BLOCKS: u64 = 10;
const SECTORS: u64 = DEVICE_BLOCKS * SECTORS_PER_BLOCK;
const SIZE: ByteCount = ByteCount(SECTORS * SECTOR);
const DEVICES_MAX: usize = 5;
/// Four nodes, one segment of mappings, sixteen nodes that may wait for a commit.
const TINY_CACHE: ByteCount = ByteCount(64 << 10);

/// What a sector may hold, as tokens: every sector is written with one of its own throughout, 0 for zeroes.
#[derive(Clone)]
struct Sector {
    /// Flushed last.
    sure: u64,
    /// Acknowledged since, the last one being what a reader sees.
    later: Vec<u64>,
    /// One of these was acknowledged early: only a flush or snapshot of its own device waits for it.
    early: bool,
}

impl Sector {
    fn now(&self) -> u64 {
        self.later.last().copied().unwrap_or(self.sure)
    }
}

/// A call that has not returned.
#[derive(Clone)]
enum Call {
    Change { id: DeviceId, sectors: Range<u64>, token: u64 },
    Create(DeviceId),
    Snapshot { id: DeviceId, origin: DeviceId },
    Delete(DeviceId),
    Flush(DeviceId),
}

/// A story on one ground.
pub(crate) struct Story {
    pub(crate) ground: Ground,
    pub(crate) random: Random,
    devices: BTreeMap<DeviceId, Vec<Sector>>,
    next_token: u64,
    next_id: u32,
    /// Calls that were cut off by a kill.
    pub(crate) cut_off: usize,
    /// Writes that were acknowledged early.
    pub(crate) early: usize,
    pub(crate) full: usize,
}

impl Story {
    pub(crate) fn new(seed: u64, data_blocks: u64, records: u32) -> Self {
        // Every other story is told to engines that remember next to nothing.
        let cache = if seed.is_multiple_of(2) { TINY_CACHE } else { METADATA_CACHE_DEFAULT };
        let ground = Ground::with_cache(data_blocks, records, cache);
        let random = Random::new(seed);
        Self { ground, random, devices: BTreeMap::new(), next_token: 1, next_id: 0, cut_off: 0, early: 0, full: 0 }
    }

    /// One operation. False: the life ended in it, or has ended before.
    pub(crate) fn step(&mut self) -> bool {
        let ids: Vec<DeviceId> = self.devices.keys().copied().collect();
        if ids.is_empty() {
            return self.create();
        }
        let id = self.random.pick(&ids);
        match self.random.below(100) {
            0..56 => self.write(id),
            56..66 => self.discard(id),
            66..74 => self.zero(id),
            74..82 => self.call(Call::Flush(id), |story| story.volume(id)?.flush()),
            82..87 => self.create(),
            87..95 => self.snapshot(id),
            _ => self.delete(id),
        }
    }

    /// Makes the call; if the life ended meanwhile, looks in the next one what came of it.
    fn call(&mut self, call: Call, make: impl FnOnce(&mut Self) -> Result<()>) -> bool {
        let done = make(self);
        if self.ground.is_dead() {
            self.cut_off += 1;
            self.ground.kill_and_start();
            self.verify(Some(&call));
            return false;
        }
        match done {
            Ok(()) => self.acknowledged(call),
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::OutOfDataSpace, "{e}");
                self.full += 1;
                let Call::Change { id, sectors, token } = call else { panic!("{e}") };
                self.settle(id, &sectors, token);
                return self.delete(id);
            }
        }
        true
    }

    fn acknowledged(&mut self, call: Call) {
        match call {
            Call::Change { id, sectors, token } => {
                let device = self.devices.get_mut(&id).unwrap();
                device[range(&sectors)].iter_mut().for_each(|sector| sector.later.push(token));
            }
            Call::Create(_) | Call::Delete(_) => self.all_is_durable(None),
            Call::Snapshot { id, origin } => {
                self.all_is_durable(Some(origin));
                self.all_is_durable(Some(id));
            }
            Call::Flush(id) => self.all_is_durable(Some(id)),
        }
    }

    /// A commit covers all devices; of one it covers what was acknowledged early too.
    fn all_is_durable(&mut self, whole: Option<DeviceId>) {
        for (id, sector) in self.devices.iter_mut().flat_map(|(id, device)| device.iter_mut().map(move |s| (*id, s))) {
            if sector.early && whole != Some(id) {
                continue;
            }
            sector.early = false;
            sector.sure = sector.now();
            sector.later.clear();
        }
    }

    fn volume(&self, id: DeviceId) -> Result<crate::direct_exporter::Opened> {
        self.ground.pool().activate(id, SIZE, Access::ReadWrite)?;
        Ok(self.ground.exporter.open(id))
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    fn some_sectors(&mut self) -> Range<u64> {
        let first = self.random.below(SECTORS);
        let longest = self.random.pick(&[1, 8, 8, 64, 300]);
        first..(first + 1 + self.random.below(longest)).min(SECTORS)
    }

    fn write(&mut self, id: DeviceId) -> bool {
        let (sectors, token) = (self.some_sectors(), self.token());
        let bytes = token.to_le_bytes().repeat(usize::try_from((sectors.end - sectors.start) * SECTOR / 8).unwrap());
        let offset = sectors.start * SECTOR;
        let as_the_host = self.random.chance(70).then(|| self.random.chance(50));
        let call = Call::Change { id, sectors: sectors.clone(), token };
        let mut early = false;
        let alive = self.call(call, |story| {
            let volume = story.volume(id)?;
            match as_the_host {
                Some(may_wait) => volume.write_as_the_host(&bytes, offset, may_wait).map(|taken| early = taken),
                None => volume.write_at(&bytes, offset),
            }
        });
        if early && let Some(device) = self.devices.get_mut(&id) {
            self.early += 1;
            device[range(&sectors)].iter_mut().for_each(|sector| sector.early = true);
        }
        alive
    }

    fn zero(&mut self, id: DeviceId) -> bool {
        let sectors = self.some_sectors();
        let (offset, len) = (sectors.start * SECTOR, (sectors.end - sectors.start) * SECTOR);
        let call = Call::Change { id, sectors, token: 0 };
        self.call(call, |story| story.volume(id)?.write_zeroes(offset, len))
    }

    fn discard(&mut self, id: DeviceId) -> bool {
        let first = self.random.below(DEVICE_BLOCKS);
        let end = first + 1 + self.random.below(DEVICE_BLOCKS - first);
        let sectors = first * SECTORS_PER_BLOCK..end * SECTORS_PER_BLOCK;
        let call = Call::Change { id, sectors, token: 0 };
        self.call(call, |story| story.volume(id)?.discard(first * BLOCK, (end - first) * BLOCK))
    }

    fn new_id(&mut self) -> DeviceId {
        self.next_id += 1;
        DeviceId::new(self.next_id).unwrap()
    }

    fn create(&mut self) -> bool {
        if self.devices.len() >= DEVICES_MAX {
            return true;
        }
        let id = self.new_id();
        let zero = Sector { sure: 0, later: Vec::new(), early: false };
        self.devices.insert(id, vec![zero; usize::try_from(SECTORS).unwrap()]);
        self.call(Call::Create(id), |story| story.ground.pool().create_thin(id))
    }

    fn snapshot(&mut self, origin: DeviceId) -> bool {
        if self.devices.len() >= DEVICES_MAX {
            return self.delete(origin);
        }
        let id = self.new_id();
        self.devices.insert(id, self.devices[&origin].clone());
        self.call(Call::Snapshot { id, origin }, |story| story.ground.pool().create_snap(id, origin))
    }

    fn delete(&mut self, id: DeviceId) -> bool {
        let alive = self.call(Call::Delete(id), |story| story.ground.pool().delete(id));
        if alive {
            self.devices.remove(&id);
        }
        alive
    }

    /// After a kill: whatever was acknowledged is there, and of the call that was cut off any part.
    fn verify(&mut self, cut_off: Option<&Call>) {
        let found = self.ground.pool().devices().unwrap();
        match cut_off {
            Some(Call::Create(id) | Call::Snapshot { id, .. } | Call::Delete(id)) if !found.contains(id) => {
                self.devices.remove(id);
            }
            // Perhaps half of it has gone; recovery deletes such a device.
            Some(Call::Delete(id)) => {
                self.ground.pool().delete(*id).unwrap();
                self.devices.remove(id);
            }
            _ => {}
        }
        let found = self.ground.pool().devices().unwrap();
        assert_eq!(found, self.devices.keys().copied().collect::<Vec<_>>());
        if let Some(Call::Change { id, sectors, token }) = cut_off {
            self.settle(*id, sectors, *token);
        }
        for id in found {
            let tokens = self.tokens(id);
            for (number, (token, sector)) in tokens.iter().zip(&self.devices[&id]).enumerate() {
                assert_eq!(*token, sector.now(), "device {id}: sector {number}: {:?}", sector.later);
            }
        }
    }

    /// A change of which any sector may be done or not: sees which.
    fn settle(&mut self, id: DeviceId, sectors: &Range<u64>, token: u64) {
        let tokens = self.tokens(id);
        let device = self.devices.get_mut(&id).unwrap();
        for (sector, found) in device[range(sectors)].iter_mut().zip(&tokens[range(sectors)]) {
            if *found == token {
                sector.later.push(token);
            }
        }
    }

    /// The token of each sector; panics if a sector does not hold one token throughout.
    fn tokens(&self, id: DeviceId) -> Vec<u64> {
        let mut bytes = vec![0xee; usize::try_from(SECTORS * SECTOR).unwrap()];
        self.volume(id).unwrap().read_at(&mut bytes, 0).unwrap();
        let sectors = bytes.chunks_exact(usize::try_from(SECTOR).unwrap());
        sectors
            .enumerate()
            .map(|(number, sector)| {
                let token: [u8; 8] = sector[..8].try_into().unwrap();
                assert!(sector.chunks_exact(8).all(|word| word == token), "device {id}: sector {number} is mixed");
                u64::from_le_bytes(token)
            })
            .collect()
    }

    /// Kills between two calls: nothing but what was acknowledged may be found.
    pub(crate) fn kill(&mut self) {
        self.ground.kill_and_start();
        self.verify(None);
    }

    /// Cuts the power between two calls: each sector is as flushed, or as acknowledged later.
    pub(crate) fn cut_power(&mut self) {
        let survival = self.random.pick(&[0, 20, 50, 100]);
        self.ground.cut_power(&mut self.random, survival);
        assert_eq!(self.ground.pool().devices().unwrap(), self.devices.keys().copied().collect::<Vec<_>>());
        for id in self.devices.keys().copied().collect::<Vec<_>>() {
            let tokens = self.tokens(id);
            let device = self.devices.get_mut(&id).unwrap();
            for (number, (found, sector)) in tokens.into_iter().zip(device).enumerate() {
                let may = found == sector.sure || sector.later.contains(&found);
                assert!(may, "device {id}: sector {number} holds {found}, flushed was {}", sector.sure);
                *sector = Sector { sure: found, later: Vec::new(), early: false };
            }
        }
    }

    /// Ends the life in order, judges the metadata, and begins the next.
    pub(crate) fn reopen(&mut self) {
        self.ground.close();
        self.ground.assert_sound("after an orderly end", true);
        self.ground.start(None).unwrap();
        for id in self.devices.keys().copied().collect::<Vec<_>>() {
            self.all_is_durable(Some(id));
        }
        self.verify(None);
    }
}

fn range(sectors: &Range<u64>) -> Range<usize> {
    usize::try_from(sectors.start).unwrap()..usize::try_from(sectors.end).unwrap()
}
