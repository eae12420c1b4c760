//! Answers calls on the pool, and decides whether the host may end.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::{Error, ErrorKind, Result};
use crate::export::Exporter;
use crate::host::control::Controlled;
use crate::host::protocol::{Answer, Call, Failure, HostInfo, Outcome, Request, StopOutcome, boot_id};
use crate::thin_pool::ThinPool;
use crate::units::DeviceId;

/// Longest wait for news in one call; the client asks again.
const WAIT_STATUS_MAX: Duration = Duration::from_secs(60);

/// Longest wait of a host that handed over for the last answer to be on its way.
const PARTING_WAIT: Duration = Duration::from_secs(5);

/// The pool as the connections' threads see it.
pub(super) struct Service {
    pool: Arc<dyn ThinPool>,
    exporter: Arc<dyn Exporter>,
    info: HostInfo,
    /// Rung when the accepting thread has something to look at.
    bell: EventFd,
    /// True once no device is left and no call is taken any more. Held for reading during each call, for writing
    /// while the host tries to stop: the two never overlap.
    stopping: RwLock<bool>,
    /// The devices are left to a successor.
    handed_over: AtomicBool,
    /// True once who asked for that knows that it is done.
    parted: Mutex<bool>,
    parting: Condvar,
}

impl Service {
    pub(super) fn new(pool: Arc<dyn ThinPool>, exporter: Arc<dyn Exporter>) -> Result<Self> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|e| Error::io("make a wake-up for the pool host", e.into()))?;
        let info = HostInfo {
            identity: pool.status()?.identity,
            boot_id: boot_id(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        Ok(Self {
            pool,
            exporter,
            info,
            bell,
            stopping: RwLock::new(false),
            handed_over: AtomicBool::new(false),
            parted: Mutex::new(false),
            parting: Condvar::new(),
        })
    }

    pub(super) fn info(&self) -> &HostInfo {
        &self.info
    }

    pub(super) fn bell(&self) -> &EventFd {
        &self.bell
    }

    pub(super) fn is_stopping(&self) -> bool {
        *self.stopping.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the accepting thread.
    pub(super) fn ring(&self) {
        // Full means rung already.
        if let Err(errno) = self.bell.write(1) {
            tracing::debug!("the bell of the pool host: {errno}");
        }
    }

    /// Detaches what nobody has open; stops if that is all.
    pub(super) fn stop_if_idle(&self) -> Result<StopOutcome> {
        let mut stopping = self.stopping.write().unwrap_or_else(PoisonError::into_inner);
        if *stopping {
            return Ok(StopOutcome::Stopping);
        }
        // First look at all, then touch: a host that stays leaves its devices as they are.
        let shown = self.exporter.attached();
        let busy: Vec<DeviceId> = shown.iter().filter(|(_, open)| *open).map(|(id, _)| *id).collect();
        if !busy.is_empty() {
            return Ok(StopOutcome::Busy(busy));
        }
        let mut busy = Vec::new();
        for (id, _) in shown {
            if !self.pool.deactivate(id)? {
                busy.push(id);
            }
        }
        if busy.is_empty() {
            *stopping = true;
            self.pool.interrupt_waits()?;
            self.ring();
            return Ok(StopOutcome::Stopping);
        }
        Ok(StopOutcome::Busy(busy))
    }

    /// True if the devices were handed over: the process is to end, and to leave everything as it is. Waits until who
    /// asked for that has its answer.
    pub(super) fn is_handed_over(&self) -> bool {
        if !self.handed_over.load(Ordering::SeqCst) {
            return false;
        }
        let parted = self.parted.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.parting.wait_timeout_while(parted, PARTING_WAIT, |parted| !*parted));
        true
    }

    /// Takes down what stands behind the devices, of which none is left.
    pub(super) fn close(&self) -> Result<()> {
        self.exporter.shutdown()
    }

    /// Ends a view whose reader has gone.
    pub(super) fn end_view(&self, number: u64) {
        if let Err(error) = self.pool.end_view(number) {
            tracing::warn!("end a view of the metadata: {error}");
        }
    }

    pub(super) fn answer(&self, request: Request) -> Outcome {
        let result = match request {
            Request::StopIfIdle => self.stop_if_idle().map(Answer::Stop),
            // Waited for where the connections are known.
            Request::OutlastOthers => Ok(Answer::Done),
            // These last: the end of the host does not wait for them, it interrupts them.
            Request::Pool(call @ (Call::WaitStatus { .. } | Call::Trim)) if !self.is_stopping() => {
                perform(self.pool.as_ref(), call)
            }
            Request::Pool(call) => {
                let stopping = self.stopping.read().unwrap_or_else(PoisonError::into_inner);
                if *stopping { Ok(Answer::Ending) } else { perform(self.pool.as_ref(), call) }
            }
        };
        result.map_err(|error| Failure::from(&error))
    }
}

impl Controlled for Service {
    fn descriptors(&self) -> Result<Vec<OwnedFd>> {
        self.exporter.descriptors()
    }

    fn hand_over(&self) -> Result<()> {
        let mut stopping = self.stopping.write().unwrap_or_else(PoisonError::into_inner);
        if *stopping {
            return Err(Error::new(ErrorKind::Unavailable, "hand over: the pool host is ending"));
        }
        let shown = self.exporter.attached();
        self.exporter.hand_over()?;
        // From here on requests wait for the successor: this process must end, whatever happens.
        self.handed_over.store(true, Ordering::SeqCst);
        *stopping = true;
        if let Err(error) = self.pool.interrupt_waits() {
            tracing::warn!("end what waits for news of the pool: {error}");
        }
        // A courtesy: what is not committed stands in the intent log.
        for (id, _) in shown {
            if let Err(error) = self.pool.flush(id) {
                tracing::warn!("commit before handing over: {error}");
            }
        }
        tracing::info!("handed over: the pool host ends");
        Ok(())
    }

    fn part(&self) {
        *self.parted.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.parting.notify_all();
        self.ring();
    }
}

fn perform(pool: &dyn ThinPool, call: Call) -> Result<Answer> {
    Ok(match call {
        Call::CreateThin(id) => pool.create_thin(id).map(|()| Answer::Done)?,
        Call::CreateSnap { id, origin } => pool.create_snap(id, origin).map(|()| Answer::Done)?,
        Call::CreateActive { id, origin, size, ahead } => Answer::Path(pool.create_active(id, origin, size, ahead)?),
        Call::Delete(id) => pool.delete(id).map(|()| Answer::Done)?,
        Call::Activate { id, size, access } => Answer::Path(Some(pool.activate(id, size, access)?)),
        Call::Deactivate(id) => Answer::Gone(pool.deactivate(id)?),
        Call::ActivePath(id) => Answer::Path(pool.active_path(id)?),
        Call::Flush(id) => pool.flush(id).map(|()| Answer::Done)?,
        Call::Usage(id) => Answer::Usage(pool.usage(id)?),
        Call::Written(id) => Answer::Bytes(pool.written(id)?),
        Call::Delta { from, to } => Answer::Delta(pool.delta(from, to)?),
        Call::Devices => Answer::Devices(pool.devices()?),
        Call::Status => Answer::Status(pool.status()?),
        Call::SetTransactionId { from, to } => pool.set_transaction_id(from, to).map(|()| Answer::Done)?,
        Call::Grow { data, metadata } => pool.grow(data, metadata).map(|()| Answer::Done)?,
        Call::BeginView => Answer::View(pool.begin_view()?),
        Call::EndView(number) => Answer::Whole(pool.end_view(number)?),
        Call::Trim => Answer::Bytes(pool.trim()?),
        Call::SetNoSpace(policy) => pool.set_no_space(policy).map(|()| Answer::Done)?,
        Call::WaitStatus { steady, timeout } => {
            Answer::Status(pool.wait_status(&steady, timeout.min(WAIT_STATUS_MAX))?)
        }
        Call::InterruptWaits => pool.interrupt_waits().map(|()| Answer::Done)?,
    })
}
