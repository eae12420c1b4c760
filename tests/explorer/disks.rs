//! The three disks of a machine on one power supply, and faults on command.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;
use thinsnap_pool::{BlockDevice, DiskImage, Error, PowerCutDevice, PowerSupply, Result};

pub(crate) const DATA: usize = 0;
pub(crate) const METADATA: usize = 1;
pub(crate) const STORE: usize = 2;

pub(crate) fn disk_name(number: usize) -> &'static str {
    ["data", "metadata", "store"][number]
}

/// What is asked of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    Read,
    Write,
    Zero,
    Flush,
    Resize,
}

/// Calls of one sort on one disk that fail: from the `first` on, `count` of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) disk: usize,
    pub(crate) call: Call,
    pub(crate) first: u64,
    pub(crate) count: u64,
    pub(crate) errno: i32,
    /// A write brings its first half down before it fails.
    pub(crate) short: bool,
}

impl Fault {
    pub(crate) fn cause(&self) -> io::Error {
        io::Error::from_raw_os_error(self.errno)
    }
}

#[derive(Default)]
struct FaultState {
    calls: BTreeMap<(usize, Call), u64>,
    fault: Option<Fault>,
    hits: u64,
}

/// The faults of one machine's disks; none unless armed.
#[derive(Default)]
pub(crate) struct Faults(Mutex<FaultState>);

impl Faults {
    fn state(&self) -> MutexGuard<'_, FaultState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on calls are counted, from 0, and those of the fault fail.
    pub(crate) fn arm(&self, fault: Option<Fault>) {
        *self.state() = FaultState { fault, ..FaultState::default() };
    }

    /// The disks work again. Returns how often one failed.
    pub(crate) fn heal(&self) -> u64 {
        let mut state = self.state();
        state.fault = None;
        state.hits
    }

    /// How often a disk failed so far.
    pub(crate) fn hits(&self) -> u64 {
        self.state().hits
    }

    /// Calls since the arming.
    pub(crate) fn calls(&self) -> BTreeMap<(usize, Call), u64> {
        self.state().calls.clone()
    }

    fn next(&self, disk: usize, call: Call) -> Option<Fault> {
        let mut state = self.state();
        let number = state.calls.entry((disk, call)).or_default();
        let now = *number;
        *number += 1;
        let fault = state.fault.filter(|fault| {
            fault.disk == disk && fault.call == call && now >= fault.first && now - fault.first < fault.count
        })?;
        state.hits += 1;
        Some(fault)
    }
}

/// A recorded disk that fails on command.
pub(crate) struct Disk {
    recorded: PowerCutDevice,
    number: usize,
    faults: Arc<Faults>,
}

impl Disk {
    fn ask(&self, call: Call, offset: u64, len: u64) -> Result<()> {
        self.faults.next(self.number, call).map_or(Ok(()), |fault| Err(self.failed(fault, offset, len)))
    }

    fn failed(&self, fault: Fault, offset: u64, len: u64) -> Error {
        let disk = disk_name(self.number);
        Error::io(format!("{:?} the {disk} disk: {len} bytes at offset {offset}", fault.call), fault.cause())
    }
}

impl BlockDevice for Disk {
    fn size(&self) -> u64 {
        self.recorded.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.ask(Call::Read, offset, buf.len() as u64)?;
        self.recorded.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let Some(fault) = self.faults.next(self.number, Call::Write) else {
            return self.recorded.write_at(buf, offset);
        };
        if fault.short {
            self.recorded.write_at(&buf[..buf.len() / 1024 * 512], offset)?;
        }
        Err(self.failed(fault, offset, buf.len() as u64))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.ask(Call::Zero, offset, len)?;
        self.recorded.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.ask(Call::Zero, offset, len)?;
        self.recorded.write_zeroes(offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.ask(Call::Flush, 0, self.size())?;
        self.recorded.flush()
    }

    fn known_zero(&self, offset: u64, len: u64) -> bool {
        self.recorded.known_zero(offset, len)
    }

    fn grow(&self, size: u64) -> Result<()> {
        self.ask(Call::Resize, 0, size)?;
        self.recorded.grow(size)
    }
}

/// The store's disk as redb wants it.
pub(crate) struct StoreDisk(Arc<Disk>);

/// The disks of one machine, in the order of their numbers.
pub(crate) struct Disks {
    pub(crate) supply: Arc<PowerSupply>,
    pub(crate) faults: Arc<Faults>,
    pub(crate) data: Arc<Disk>,
    pub(crate) metadata: Arc<Disk>,
    store: Arc<Disk>,
}

impl Disks {
    pub(crate) fn new(images: Vec<DiskImage>) -> Self {
        let (supply, faults) = (PowerSupply::new(), Arc::new(Faults::default()));
        let [data, metadata, store] = <[DiskImage; 3]>::try_from(images).unwrap();
        let disk = |number, recorded| Arc::new(Disk { recorded, number, faults: faults.clone() });
        let (data, metadata) = (disk(DATA, supply.device(data)), disk(METADATA, supply.device(metadata)));
        let store = disk(STORE, supply.unordered_device(store));
        Self { supply, faults, data, metadata, store }
    }

    pub(crate) fn for_redb(&self) -> StoreDisk {
        StoreDisk(self.store.clone())
    }
}

impl fmt::Debug for StoreDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreDisk")
    }
}

impl StoreDisk {
    /// An error as the system gives it, its number kept.
    fn told(&self, done: Result<()>) -> io::Result<()> {
        done.map_err(|e| match std::error::Error::source(&e).and_then(|cause| cause.downcast_ref::<io::Error>()) {
            Some(cause) => cause.raw_os_error().map_or_else(|| io::Error::other(e), io::Error::from_raw_os_error),
            None => io::Error::from(io::ErrorKind::UnexpectedEof),
        })
    }
}

impl StorageBackend for StoreDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.size())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.told(self.0.read_at(out, offset))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.told(self.0.ask(Call::Resize, 0, len))?;
        self.0.recorded.set_len(len);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.told(self.0.flush())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.told(self.0.write_at(data, offset))
    }
}

/// A disk that is only looked at.
pub(crate) struct Still(pub(crate) DiskImage);

fn refuse<T>() -> Result<T> {
    Err(Error::new(thinsnap_pool::ErrorKind::ReadOnly, "a disk that is only looked at"))
}

impl BlockDevice for Still {
    fn size(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        assert!(offset + buf.len() as u64 <= self.0.len(), "read past the end");
        self.0.read(buf, offset);
        Ok(())
    }

    fn write_at(&self, _buf: &[u8], _offset: u64) -> Result<()> {
        refuse()
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        refuse()
    }

    fn write_zeroes(&self, _offset: u64, _len: u64) -> Result<()> {
        refuse()
    }

    fn flush(&self) -> Result<()> {
        refuse()
    }
}
