//! Commands to the ublk driver: add, start, stop, delete and recover devices, and what the driver says about them.
//!
//! A command is one entry in an io_uring of its own kind, and is waited for. Rings are kept for the next command; each
//! has the lock of the living in its table, so that a successor waits also for a command that a killed process began.

use std::fs::{File, OpenOptions, read_dir};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use io_uring::types::Fd;
use io_uring::{IoUring, cqueue, opcode, squeue};

use crate::error::{Error, ErrorKind, Result};
use crate::export::alive::Alive;
use crate::export::ublk::wire::{
    ADD_DEV, ControlCommand, DEL_DEV, DEL_DEV_ASYNC, DeviceInfo, END_USER_RECOVERY, GET_DEV_INFO, GET_FEATURES,
    GET_PARAMS, NEEDED, Params, QUIESCE, SET_PARAMS, START_DEV, START_USER_RECOVERY, STOP_DEV, UPDATE_SIZE,
    UPDATE_SIZE_DEV,
};

const CONTROL: &str = "/dev/ublk-control";
/// The driver's devices, living or not.
const DEVICES: &str = "/sys/class/ublk-char";
/// Commands in a ring at once.
const ENTRIES: u32 = 2;

type ControlRing = IoUring<squeue::Entry128, cqueue::Entry>;

/// The way to the driver.
pub(in crate::export) struct Control {
    file: File,
    features: u64,
    alive: Option<Arc<Alive>>,
    idle: Mutex<Vec<ControlRing>>,
}

impl Control {
    /// Errors: `Unsupported` if this kernel has no ublk, or one that cannot go on after a death; `Denied`.
    pub(in crate::export) fn open() -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(CONTROL).map_err(|e| match e.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Error::with_source(
                ErrorKind::Unsupported,
                format!("open {CONTROL}: this kernel has no ublk (modprobe ublk_drv, Linux 6.5 or newer)"),
                e,
            ),
            _ => Error::io(format!("open {CONTROL}"), e),
        })?;
        let mut control = Self { file, features: 0, alive: None, idle: Mutex::default() };
        let mut features = 0_u64;
        control.call(GET_FEATURES, 0, &mut features, 0).map_err(|e| match e.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Error::io("ask ublk for its features", e),
            _ => Error::with_source(
                ErrorKind::Unsupported,
                "ask ublk for its features: this kernel's is too old, or io_uring is switched off (Linux 6.5 or newer)",
                e,
            ),
        })?;
        if features & NEEDED != NEEDED {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "this kernel's ublk cannot go on after a death: it has features {features:#x}, not {NEEDED:#x}"
                ),
            ));
        }
        control.features = features;
        Ok(control)
    }

    /// From here on commands hold the lock of the living.
    pub(in crate::export) fn hold(mut self, alive: Arc<Alive>) -> Self {
        self.alive = Some(alive);
        self.idle.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        self
    }

    /// True if a device in use can grow.
    pub(in crate::export) fn can_grow(&self) -> bool {
        self.features & UPDATE_SIZE != 0
    }

    /// True if a server that dies or is replaced while requests come is surely followed by the next one.
    pub(in crate::export) fn hands_over(&self) -> bool {
        self.features & QUIESCE != 0
    }

    /// Adds a device with these marks; its number.
    pub(in crate::export) fn add(&self, marks: u64) -> io::Result<u32> {
        let mut info = DeviceInfo::new(marks);
        self.call(ADD_DEV, u32::MAX, &mut info, 0)?;
        Ok(info.device)
    }

    pub(in crate::export) fn set_params(&self, device: u32, params: &Params) -> io::Result<()> {
        let mut params = *params;
        self.call(SET_PARAMS, device, &mut params, 0)
    }

    pub(in crate::export) fn params(&self, device: u32) -> io::Result<Params> {
        let mut params = Params::unknown();
        self.call(GET_PARAMS, device, &mut params, 0)?;
        Ok(params)
    }

    /// Errors: `ENODEV` if there is no such device.
    pub(in crate::export) fn info(&self, device: u32) -> io::Result<DeviceInfo> {
        let mut info = DeviceInfo::default();
        self.call(GET_DEV_INFO, device, &mut info, 0)?;
        Ok(info)
    }

    /// Shows the block device; its queue must be served.
    pub(in crate::export) fn start(&self, device: u32) -> io::Result<()> {
        self.call(START_DEV, device, &mut (), u64::from(std::process::id()))
    }

    /// Takes the block device away; whoever has it open sees errors.
    pub(in crate::export) fn stop(&self, device: u32) -> io::Result<()> {
        self.call(STOP_DEV, device, &mut (), 0)
    }

    /// Forgets the device, stopped or not. Its number is free when its last user has closed it, which is not waited for
    /// where the kernel can do without.
    pub(in crate::export) fn delete(&self, device: u32) -> io::Result<()> {
        match self.call(DEL_DEV_ASYNC, device, &mut (), 0) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => {
                self.call(DEL_DEV, device, &mut (), 0)
            }
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    /// Lets a new process serve. Errors: `EBUSY` while the dead one is not wholly gone; `EINVAL` if a process has begun
    /// and not finished that.
    pub(in crate::export) fn start_recovery(&self, device: u32) -> io::Result<()> {
        self.call(START_USER_RECOVERY, device, &mut (), 0)
    }

    /// Lets the requests come; the queue must be served.
    pub(in crate::export) fn end_recovery(&self, device: u32) -> io::Result<()> {
        self.call(END_USER_RECOVERY, device, &mut (), u64::from(std::process::id()))
    }

    /// Tells the host a larger size, in bytes.
    pub(in crate::export) fn grow(&self, device: u32, size: u64) -> io::Result<()> {
        self.call(UPDATE_SIZE_DEV, device, &mut (), size >> 9)
    }

    /// Gives the driver a command and waits for its end; `buffer` is what it reads or fills.
    fn call<T: Copy>(&self, code: u32, device: u32, buffer: &mut T, data: u64) -> io::Result<()> {
        let len = u16::try_from(size_of::<T>()).map_err(io::Error::other)?;
        let address = std::ptr::from_mut(buffer).expose_provenance() as u64;
        let buffer = (len > 0).then_some((address, len));
        let command = ControlCommand { device, buffer, data };
        let entry = opcode::UringCmd80::new(Fd(self.file.as_raw_fd()), code).cmd(command.encode()).build();
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut ring = idle.map_or_else(|| self.build_ring(), Ok)?;
        // SAFETY: the buffer is a live value of plain numbers (the callers' structs of the kernel's interface, or
        // nothing) that outlives the operation, because its completion is waited for below.
        unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
        let result = loop {
            match ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
                Err(error) => return Err(error),
            }
            if let Some(entry) = ring.completion().next() {
                break entry.result();
            }
        };
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(ring);
        if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
    }

    fn build_ring(&self) -> io::Result<ControlRing> {
        let ring = ControlRing::builder().build(ENTRIES)?;
        if let Some(alive) = &self.alive {
            ring.submitter().register_files(&[alive.raw_fd()])?;
        }
        Ok(ring)
    }
}

/// The numbers of the driver's devices, whoever serves them.
pub(in crate::export) fn device_numbers() -> io::Result<Vec<u32>> {
    let entries = match read_dir(DEVICES) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut numbers: Vec<u32> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("ublkc")?.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}
