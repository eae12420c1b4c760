//! The contract of a pool, verb by verb: which messages and tables make each of them, and what of it a kill leaves.
//!
//! Every message is durable when the kernel answers, provided that the state that follows says so
//! ([`PoolDevice::message`](crate::kernel::pool_device::PoolDevice::message)). What a kill in the middle of a verb
//! leaves (a suspended origin, a device without a table) is put right at the next opening.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::export::NoSpace;
use crate::format::Superblock;
use crate::kernel::device_number::DeviceNumber;
use crate::kernel::kernel_pool::KernelPool;
use crate::kernel::news::{LETTING_GO, News, OFTEN, SELDOM};
use crate::kernel::options::{PoolFeatures, WhenFull};
use crate::kernel::pool_device::why;
use crate::kernel::status_line::{PoolLine, PoolReport};
use crate::kernel::table::{PoolTable, ThinTable};
use crate::kernel::thin_device::check_size;
use crate::meta::Metadata;
use crate::status::{ChangedRange, DeviceUsage, MetadataView, PoolMode, PoolStatus, Room, Space, Steady};
use crate::thin_pool::{Access, ThinPool};
use crate::units::{ByteCount, DeviceId, METADATA_BLOCK_SIZE, METADATA_BLOCKS_MAX, TIME_MAX};

const METADATA_BLOCK: u64 = METADATA_BLOCK_SIZE as u64;
/// Longest wait for another reader of the metadata to be done.
const VIEW_WAIT: Duration = Duration::from_secs(30);

impl KernelPool {
    /// [`activate`](ThinPool::activate) over `external`, a block device that nobody changes: what is read where the thin
    /// device has no block. Every snapshot of the thin device needs the same device below it. Errors: also `NotFound`
    /// and `Invalid` for `external`.
    pub fn activate_over(&self, id: DeviceId, size: ByteCount, access: Access, external: &Path) -> Result<PathBuf> {
        self.show(id, size, access, Some(external)).map_err(|e| e.doing(format_args!("activate device {id}")))
    }

    fn show(&self, id: DeviceId, size: ByteCount, access: Access, external: Option<&Path>) -> Result<PathBuf> {
        check_size(size)?;
        if access == Access::ReadWrite {
            self.check_changes()?;
        }
        let _claim = self.claims.claim(&[id]);
        let origin = external.map(DeviceNumber::of).transpose()?;
        let wanted = ThinTable { size, pool: self.pool.number, id, origin };
        let devices = self.devices_shown();
        match devices.state(id)? {
            Some(state) if state.has_table => devices.again(&state, &wanted, access),
            Some(_) => {
                devices.hide(id)?;
                devices.show(&wanted, access)
            }
            None => devices.show(&wanted, access),
        }
    }

    /// Errors with `Unsupported` if the clock has no tick left: the kernel packs it into 24 bits and does not look
    /// whether it fits; the next bit is the data block's.
    ///
    /// Nobody else moves the clock of a pool that is ours alone, and a snapshot moves it by one: it is read once, and
    /// the ticks are counted.
    fn check_clock(&self) -> Result<()> {
        let mut left = self.ticks_left.lock().unwrap_or_else(PoisonError::into_inner);
        if self.below.is_none() || *left == 0 {
            *left = TIME_MAX.saturating_sub(self.live.superblock()?.time);
        }
        match left.checked_sub(1) {
            Some(then) => *left = then,
            None => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("the snapshot clock is at {TIME_MAX}, its end"),
                ));
            }
        }
        Ok(())
    }

    fn grow_data(&self, size: ByteCount) -> Result<()> {
        let Some([_, data]) = &self.below else { return Err(not_ours()) };
        let table = self.pool.table()?;
        let blocks = size.0 / self.block_size.bytes();
        let bytes = blocks.saturating_mul(self.block_size.bytes());
        check_growth("data", bytes, table.data_size.0)?;
        if bytes > table.data_size.0 {
            data.grow(bytes, false)?;
            self.pool.reload(&PoolTable { data_size: ByteCount(bytes), ..table })?;
        }
        Ok(())
    }

    fn grow_metadata(&self, size: ByteCount) -> Result<()> {
        let Some([metadata, _]) = &self.below else { return Err(not_ours()) };
        let blocks = size.0 / METADATA_BLOCK;
        let total = self.pool.report(false)?.metadata_total;
        check_growth("metadata", blocks * METADATA_BLOCK, total * METADATA_BLOCK)?;
        if blocks > METADATA_BLOCKS_MAX {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("grow the metadata to {blocks} blocks: the format ends at {METADATA_BLOCKS_MAX}"),
            ));
        }
        if blocks > total {
            metadata.grow(blocks * METADATA_BLOCK, true)?;
            // The kernel takes the new size over when the pool is resumed.
            self.pool.reload(&self.pool.table()?)?;
        }
        Ok(())
    }

    fn count_devices(&self) -> Result<u64> {
        if self.below.is_some() {
            return Ok(self.device_count.load(Ordering::Relaxed));
        }
        self.live.untouched(Metadata::device_count)
    }

    fn describe(&self, report: &PoolReport, superblock: &Superblock) -> Result<PoolStatus> {
        let blocks = |count: u64| ByteCount(count.saturating_mul(self.block_size.bytes()));
        let metadata = |count: u64| ByteCount(count.saturating_mul(METADATA_BLOCK));
        Ok(PoolStatus {
            identity: superblock.identity,
            engine: "kernel".to_owned(),
            mode: report.mode,
            reason: why(report).map(|(_, why)| why.to_owned()),
            block_size: self.block_size,
            data: Space { used: blocks(report.data_used), total: blocks(report.data_total) },
            metadata: Space { used: metadata(report.metadata_counted()), total: metadata(report.metadata_total) },
            metadata_reserve: metadata(report.reserve()),
            transaction_id: report.transaction_id,
            time: superblock.time,
            devices: self.count_devices()?,
            active_devices: self.devices_shown().active()?.len() as u64,
            metadata_snapshot: report.held_root.is_some(),
            room: self.room(report),
        })
    }

    fn tell(&self, line: &PoolLine, superblock: impl FnOnce() -> Result<Superblock>) -> Result<PoolStatus> {
        match line {
            PoolLine::Working(report) => self.describe(report, &superblock()?),
            PoolLine::Failed | PoolLine::Unknown => self.describe_failed(),
        }
    }

    /// What the file below the data may still take.
    fn room(&self, report: &PoolReport) -> Room {
        let below = self.below.as_ref().and_then(|[_, data]| data.room());
        let used = report.data_used.saturating_mul(self.block_size.bytes());
        Room {
            below: below.map(|room| Space {
                used: ByteCount(room.total.saturating_sub(room.free)),
                total: ByteCount(room.total),
            }),
            unpunched: ByteCount(below.map_or(0, |room| room.allocated).saturating_sub(used)),
            ..Room::default()
        }
    }

    /// What can be said of a pool that does nothing any more.
    fn describe_failed(&self) -> Result<PoolStatus> {
        let table = self.pool.table()?;
        let none = Space { used: ByteCount(0), total: ByteCount(0) };
        Ok(PoolStatus {
            identity: [0; 16],
            engine: "kernel".to_owned(),
            mode: PoolMode::Fail,
            reason: Some(
                "its metadata device gives errors, or is gone (see dmesg): stop the service, see to the device, start again"
                    .to_owned(),
            ),
            block_size: table.block_size,
            data: Space { used: ByteCount(0), total: table.data_size },
            metadata: none,
            metadata_reserve: ByteCount(0),
            transaction_id: 0,
            time: 0,
            devices: self.device_count.load(Ordering::Relaxed),
            active_devices: self.devices_shown().active()?.len() as u64,
            metadata_snapshot: false,
            room: Room::default(),
        })
    }
}

impl ThinPool for KernelPool {
    fn create_thin(&self, id: DeviceId) -> Result<()> {
        let doing = |e: Error| e.doing(format_args!("create device {id}"));
        self.check_changes().map_err(doing)?;
        let _claim = self.claims.claim(&[id]);
        self.pool.message(&format!("create_thin {id}")).map_err(doing)?;
        self.device_count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn create_snap(&self, id: DeviceId, origin: DeviceId) -> Result<()> {
        let doing = |e: Error| e.doing(format_args!("create snapshot {id} of {origin}"));
        self.check_changes().and_then(|()| self.check_clock()).map_err(doing)?;
        let _claim = self.claims.claim(&[id, origin]);
        // Before the origin is stopped, so that it waits for nobody's stop of the pool.
        let _running = self.pool.keep_running();
        // The kernel leaves it to the caller that no write is on its way that found a block unshared.
        self.devices_shown()
            .quiesced(origin, || self.pool.send(&format!("create_snap {id} {origin}")))
            .map_err(doing)?;
        self.device_count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn delete(&self, id: DeviceId) -> Result<()> {
        let doing = |e: Error| e.doing(format_args!("delete device {id}"));
        let in_use = || Error::new(ErrorKind::InUse, format!("delete device {id}: somebody has it open"));
        self.check_changes().map_err(doing)?;
        let _claim = self.claims.claim(&[id]);
        let devices = self.devices_shown();
        if let Some(state) = devices.state(id).map_err(doing)? {
            if state.openers > 0 {
                return Err(in_use());
            }
            if !devices.hide(id).map_err(doing)? {
                // Opened since the look at it.
                self.pool.control.keep(&self.names.thin_name(id)).map_err(doing)?;
                return Err(in_use());
            }
        }
        // The kernel complains in its log of each try at one that it still takes apart.
        self.pool.removals.finish(&self.names.thin_name(id));
        // A device that its last opener closed a moment ago is out of sight before the pool has let it go.
        let delete = || match self.pool.message(&format!("delete {id}")) {
            Err(e) if e.kind() == ErrorKind::InUse => Ok(ControlFlow::Continue(Err(e))),
            done => Ok(ControlFlow::Break(done)),
        };
        match News::default().wait(LETTING_GO, OFTEN, delete)? {
            Ok(_) => {
                self.device_count.fetch_sub(1, Ordering::Relaxed);
                Ok(())
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(doing(e)),
        }
    }

    fn activate(&self, id: DeviceId, size: ByteCount, access: Access) -> Result<PathBuf> {
        self.show(id, size, access, None).map_err(|e| e.doing(format_args!("activate device {id}")))
    }

    fn deactivate(&self, id: DeviceId) -> Result<bool> {
        let doing = |e: Error| e.doing(format_args!("deactivate device {id}"));
        let _claim = self.claims.claim(&[id]);
        let devices = self.devices_shown();
        let Some(state) = devices.state(id).map_err(doing)? else {
            // Its last opener may have closed it a moment ago: what that wrote is made durable here.
            return self.settle().map(|()| true).map_err(doing);
        };
        let in_use = state.openers > 0;
        let written = match state.has_table {
            false => Ok(()),
            true if in_use => devices.flush(&state),
            // One commit is enough: the one that follows, when nobody can write any more.
            true => devices.write_back(&state),
        };
        // Its last opener closed it a moment ago, which wrote back what it had: it goes by itself.
        let written = written.or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(()) } else { Err(e) });
        let gone = devices.hide(id).map_err(doing)?;
        written.map_err(doing)?;
        if gone || !in_use {
            self.settle().map_err(doing)?;
        }
        Ok(gone)
    }

    /// An inactive device is committed, and read without another commit.
    fn put_away(&self, id: DeviceId) -> Result<Option<ByteCount>> {
        if !self.deactivate(id)? {
            return Ok(None);
        }
        self.written_by_then(id).map(Some)
    }

    fn active_path(&self, id: DeviceId) -> Result<Option<PathBuf>> {
        let devices = self.devices_shown();
        devices.state(id)?.filter(|state| state.has_table).map(|state| devices.path(&state)).transpose()
    }

    fn flush(&self, id: DeviceId) -> Result<()> {
        let devices = self.devices_shown();
        devices.state(id)?.filter(|state| state.has_table).map_or(Ok(()), |state| devices.flush(&state))
    }

    fn usage(&self, id: DeviceId) -> Result<DeviceUsage> {
        self.read(|metadata| metadata.usage(id))
    }

    fn written(&self, id: DeviceId) -> Result<ByteCount> {
        if self.devices_shown().state(id)?.is_some() {
            self.settle()?;
        }
        self.written_by_then(id)
    }

    fn delta(&self, from: DeviceId, to: DeviceId) -> Result<Vec<ChangedRange>> {
        self.read(|metadata| metadata.delta(from, to))
    }

    fn devices(&self) -> Result<Vec<DeviceId>> {
        self.read(|metadata| Ok(metadata.devices()?.into_iter().map(|(id, _)| id).collect()))
    }

    fn status(&self) -> Result<PoolStatus> {
        let doing = |e: Error| e.doing("ask for the pool's status");
        self.pool
            .line(self.check_changes().is_ok())
            .and_then(|line| self.tell(&line, || self.live.superblock()))
            .map_err(doing)
    }

    /// Without a commit the kernel counts what was allocated since the last one, and not what was freed.
    fn glance(&self) -> Result<PoolStatus> {
        let doing = |e: Error| e.doing("look at the pool's state");
        self.pool.line(false).and_then(|line| self.tell(&line, || self.live.superblock_seen())).map_err(doing)
    }

    fn set_transaction_id(&self, from: u64, to: u64) -> Result<()> {
        let doing = |e: Error| e.doing(format_args!("set the transaction id from {from} to {to}"));
        self.check_changes().map_err(doing)?;
        let stands_at = |now: u64| {
            let how = if now > from { "ahead of" } else { "behind" };
            Error::new(ErrorKind::Invalid, format!("the pool stands at {now}, {how} what was expected"))
        };
        let now = self.pool.report(false).map_err(doing)?.transaction_id;
        if now != from {
            return Err(doing(stands_at(now)));
        }
        let after = self.pool.message(&format!("set_transaction_id {from} {to}")).map_err(doing)?.transaction_id;
        if after == to { Ok(()) } else { Err(doing(stands_at(after))) }
    }

    fn grow(&self, data: Option<ByteCount>, metadata: Option<ByteCount>) -> Result<()> {
        let doing = |e: Error| e.doing("grow the pool");
        self.check_changes().map_err(doing)?;
        let _one = self.one_table();
        // Metadata first: a larger data space needs more of it.
        metadata.map_or(Ok(()), |size| self.grow_metadata(size)).map_err(doing)?;
        data.map_or(Ok(()), |size| self.grow_data(size)).map_err(doing)?;
        self.settle().map_err(doing)
    }

    /// The kernel knows no bound but its own: a write that waits does so for at most `no_space_timeout` seconds.
    fn set_no_space(&self, policy: NoSpace) -> Result<()> {
        let when_full = if policy.wait.is_zero() { WhenFull::Fail } else { WhenFull::Wait };
        let features = self.pool.table()?.features;
        if features.when_full == when_full {
            return Ok(());
        }
        self.set_features(PoolFeatures { when_full, ..features })
    }

    fn wait_status(&self, steady: &Steady, timeout: Duration) -> Result<PoolStatus> {
        self.have_told(steady)?;
        self.news.wait_for_events(timeout, || {
            let status = self.glance()?;
            Ok(if steady.holds(&status) { ControlFlow::Continue(status) } else { ControlFlow::Break(status) })
        })
    }

    fn interrupt_waits(&self) -> Result<()> {
        self.news.interrupt();
        Ok(())
    }

    fn trim(&self) -> Result<ByteCount> {
        self.trim_free().map_err(|e| e.doing("trim the pool"))
    }

    /// One at a time, as the kernel has one metadata snapshot: who comes later waits for [`VIEW_WAIT`].
    fn begin_view(&self) -> Result<MetadataView> {
        let doing = |e: Error| e.doing("view the metadata");
        let free = || Ok(if self.live.is_viewed() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) });
        self.news.wait(VIEW_WAIT, SELDOM, free)?;
        let number = self.views.fetch_add(1, Ordering::Relaxed);
        self.live.begin_view(&self.pool, number, self.check_changes().is_err()).map_err(doing)
    }

    fn end_view(&self, number: u64) -> Result<bool> {
        self.live.end_view(&self.pool, number).map_err(|e| e.doing("end a view of the metadata"))
    }
}

impl KernelPool {
    /// Has the kernel raise an event when the free data falls below what `steady` bears. It does so by itself for other
    /// modes and for metadata that runs short; another program's pool is left as it is.
    fn have_told(&self, steady: &Steady) -> Result<()> {
        // The kernel counts before it takes a block.
        let low_water = steady.data_room.0.0.div_ceil(self.block_size.bytes());
        if low_water == 0 || self.below.is_none() || self.pool.report(false)?.mode != PoolMode::Write {
            return Ok(());
        }
        let _one = self.one_table();
        let table = self.pool.table()?;
        if table.features.low_water == low_water {
            return Ok(());
        }
        self.pool.reload(&PoolTable { features: PoolFeatures { low_water, ..table.features }, ..table })
    }

    /// What a device has written by the last commit.
    fn written_by_then(&self, id: DeviceId) -> Result<ByteCount> {
        match self.live.written(id) {
            Err(e) if e.kind() == ErrorKind::InUse => self.usage(id).map(|usage| usage.written),
            done => done.map_err(|e| e.doing(format_args!("measure what device {id} has written"))),
        }
    }

    /// Commits, in a pool that may be changed.
    fn settle(&self) -> Result<()> {
        if self.check_changes().is_err() {
            return Ok(());
        }
        self.pool.commit().map(drop)
    }
}

pub(super) fn not_ours() -> Error {
    Error::new(ErrorKind::Unsupported, "another program started the pool, and only that one changes what it stands on")
}

fn check_growth(what: &str, bytes: u64, total: u64) -> Result<()> {
    if bytes < total {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("the {what} is to have {bytes} bytes and has {total}: dm-thin's format cannot shrink"),
        ));
    }
    Ok(())
}
