//! The pool as a device of device-mapper: messages, status, tables.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use crate::error::{Error, ErrorKind, Result};
use crate::kernel::control::Control;
use crate::kernel::device_number::DeviceNumber;
use crate::kernel::orphan::Watcher;
use crate::kernel::removals::Removals;
use crate::kernel::status_line::{PoolLine, PoolReport};
use crate::kernel::table::PoolTable;
use crate::status::PoolMode;

/// A running pool.
pub(super) struct PoolDevice {
    pub(super) control: Arc<Control>,
    pub(super) name: String,
    pub(super) number: DeviceNumber,
    /// Held for writing while the pool is suspended: the kernel refuses to set a thin device up then, and it would take
    /// messages, which change what somebody stopped the pool to read.
    pub(super) running: RwLock<()>,
    pub(super) removals: Removals,
    /// See [`Watcher`].
    pub(super) watcher: Option<PathBuf>,
}

impl PoolDevice {
    pub(super) fn new(control: Arc<Control>, name: String, number: DeviceNumber) -> Self {
        Self { control, name, number, running: RwLock::default(), removals: Removals::default(), watcher: None }
    }

    /// The pool's state. With `commit` everything that was done is durable first.
    pub(super) fn line(&self, commit: bool) -> Result<PoolLine> {
        PoolLine::parse(&self.control.status(&self.name, commit)?)
    }

    /// The pool's state, if it works at all. Errors: `Io` if it does not.
    pub(super) fn report(&self, commit: bool) -> Result<PoolReport> {
        match self.line(commit)? {
            PoolLine::Working(report) => Ok(report),
            PoolLine::Failed => Err(Error::new(
                ErrorKind::Io,
                format!("the pool {} has failed: its metadata device gives errors, or is gone", self.name),
            )),
            PoolLine::Unknown => {
                Err(Error::new(ErrorKind::Io, format!("the kernel cannot tell the state of the pool {}", self.name)))
            }
        }
    }

    /// Makes all that was done durable. Errors: `ReadOnly` if the pool takes no changes, so that nobody knows.
    pub(super) fn commit(&self) -> Result<PoolReport> {
        // A pool that is being stopped answers before it has committed.
        let _running = self.keep_running();
        let report = self.report(true)?;
        check_mode(&report)?;
        Ok(report)
    }

    /// Sends a message that changes the pool, when nobody has it stopped.
    pub(super) fn message(&self, words: &str) -> Result<PoolReport> {
        let _running = self.keep_running();
        self.send(words)
    }

    /// Sends a message for a caller who [keeps the pool running](Self::keep_running), or has [stopped](Self::stopped)
    /// it. The kernel answers success when the change is made in memory, and commits after that: so the state that
    /// follows tells whether it is there.
    pub(super) fn send(&self, words: &str) -> Result<PoolReport> {
        if let Err(e) = self.control.message(&self.name, words) {
            // The kernel says only that it takes no changes; why, is in its status.
            return Err(if e.kind() == ErrorKind::ReadOnly {
                self.report(false).and_then(|r| check_mode(&r)).err()
            } else {
                None
            }
            .unwrap_or(e));
        }
        let report = self.report(false)?;
        check_mode(&report).map_err(|e| e.doing(format_args!("`{words}` was taken, and its commit failed")))?;
        Ok(report)
    }

    /// The table in place. Errors: `Invalid` if it is not that of a pool.
    pub(super) fn table(&self) -> Result<PoolTable> {
        PoolTable::parse(&self.control.table(&self.name)?)
            .map_err(|e| e.doing(format_args!("the device {}", self.name)))
    }

    /// Keeps the pool from being suspended, for as long as a thin device is set up or a message is on its way. Not to be
    /// asked for twice by one caller: between the two somebody may be waiting to stop the pool.
    pub(super) fn keep_running(&self) -> RwLockReadGuard<'_, ()> {
        self.running.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts another table in place; active devices wait for it. After an error the old one is in place.
    pub(super) fn reload(&self, table: &PoolTable) -> Result<()> {
        let _stopping = self.running.write().unwrap_or_else(PoisonError::into_inner);
        let old = self.table()?;
        self.control.load(&self.name, &table.line(), table.read_only)?;
        let Err(e) = self.control.resume(&self.name) else { return Ok(()) };
        // The exchange may have got as far as a stopped pool with the table that does not work.
        let back =
            self.control.load(&self.name, &old.line(), old.read_only).and_then(|()| self.control.resume(&self.name));
        if let Err(back) = back {
            tracing::error!("the pool {} did not take its old table back either: {back}", self.name);
        }
        Err(e)
    }

    /// Runs `work` while the pool and all its devices hold their requests back, with everything committed; the metadata
    /// changes by nothing but what `work` [sends](Self::send).
    pub(super) fn stopped<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let _stopping = self.running.write().unwrap_or_else(PoisonError::into_inner);
        // Ended last.
        let _watcher = Watcher::start(self.watcher.as_deref(), &self.name);
        self.control.suspend(&self.name)?;
        let _resume = Resume { control: &self.control, name: &self.name };
        work()
    }
}

/// Resumes a device when dropped, however its user ends: one that stays suspended hangs all who touch it.
pub(super) struct Resume<'a> {
    pub(super) control: &'a Control,
    pub(super) name: &'a str,
}

impl Drop for Resume<'_> {
    fn drop(&mut self) {
        if let Err(e) = self.control.resume(self.name) {
            tracing::error!("{} stays suspended: {e}; try `dmsetup resume {}`", self.name, self.name);
        }
    }
}

/// Errors with `OutOfMetadataSpace`, `NeedsCheck` or `ReadOnly` unless the pool takes changes.
pub(super) fn check_mode(report: &PoolReport) -> Result<()> {
    match (report.mode, why(report)) {
        (PoolMode::Write | PoolMode::OutOfDataSpace, _) | (_, None) => Ok(()),
        (_, Some((kind, why))) => Err(Error::new(kind, why)),
    }
}

/// Why the pool does not do everything; `None` if it does.
pub(super) fn why(report: &PoolReport) -> Option<(ErrorKind, &'static str)> {
    match report.mode {
        PoolMode::Write => None,
        PoolMode::OutOfDataSpace if report.fails_without_space => {
            Some((ErrorKind::OutOfDataSpace, "no data block is free: writes that need one fail"))
        }
        PoolMode::OutOfDataSpace => {
            Some((ErrorKind::OutOfDataSpace, "no data block is free: writes that need one wait for the pool to grow"))
        }
        _ if report.needs_check => Some((
            ErrorKind::NeedsCheck,
            "a change of the metadata failed: the kernel went back to the last commit and takes no more changes until the \
             metadata was checked",
        )),
        _ if report.metadata_full() => {
            Some((ErrorKind::OutOfMetadataSpace, "the metadata is full: the kernel takes no more changes"))
        }
        _ => Some((ErrorKind::ReadOnly, "the kernel takes no changes of the metadata")),
    }
}
