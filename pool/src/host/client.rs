//! A pool that lives in another process, as a `ThinPool`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::host::protocol::{HostInfo, StopOutcome};
use crate::status::{ChangedRange, DeviceUsage, PoolStatus};
use crate::thin_pool::{Access, ThinPool};
use crate::units::{ByteCount, DeviceId};

/// How to reach a host.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// The host's unix socket.
    pub socket: PathBuf,
    /// The identity that the pool must have; `None` accepts any.
    pub identity: Option<[u8; 16]>,
    /// Longest wait for the handshake.
    pub handshake_timeout: Duration,
}

/// A connection to a host; calls from many threads run side by side.
pub struct HostClient {}

impl HostClient {
    /// Connects and shakes hands. Errors: `Unavailable` if no host answers at the socket or it speaks another
    /// version of the protocol, `Invalid` if it serves another pool.
    pub fn connect(_options: ConnectOptions) -> Result<Self> {
        todo!()
    }

    /// What the host said about itself.
    #[must_use]
    pub fn info(&self) -> &HostInfo {
        todo!()
    }

    /// Asks the host to detach every device that nobody has open and, if none is left, to end.
    pub fn stop_if_idle(&self) -> Result<StopOutcome> {
        todo!()
    }

    /// Waits until the host's process is gone. False: it was not at `deadline`.
    pub fn wait_gone(&self, _deadline: Instant) -> Result<bool> {
        todo!()
    }
}

impl ThinPool for HostClient {
    fn create_thin(&self, _id: DeviceId) -> Result<()> {
        todo!()
    }
    fn create_snap(&self, _id: DeviceId, _origin: DeviceId) -> Result<()> {
        todo!()
    }
    fn delete(&self, _id: DeviceId) -> Result<()> {
        todo!()
    }
    fn activate(&self, _id: DeviceId, _size: ByteCount, _access: Access) -> Result<PathBuf> {
        todo!()
    }
    fn deactivate(&self, _id: DeviceId) -> Result<bool> {
        todo!()
    }
    fn active_path(&self, _id: DeviceId) -> Result<Option<PathBuf>> {
        todo!()
    }
    fn flush(&self, _id: DeviceId) -> Result<()> {
        todo!()
    }
    fn usage(&self, _id: DeviceId) -> Result<DeviceUsage> {
        todo!()
    }
    fn written(&self, _id: DeviceId) -> Result<ByteCount> {
        todo!()
    }
    fn delta(&self, _from: DeviceId, _to: DeviceId) -> Result<Vec<ChangedRange>> {
        todo!()
    }
    fn devices(&self) -> Result<Vec<DeviceId>> {
        todo!()
    }
    fn status(&self) -> Result<PoolStatus> {
        todo!()
    }
    fn set_transaction_id(&self, _from: u64, _to: u64) -> Result<()> {
        todo!()
    }
    fn grow(&self, _data: Option<ByteCount>, _metadata: Option<ByteCount>) -> Result<()> {
        todo!()
    }
}
