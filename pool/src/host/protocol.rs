//! What a host and its clients say to each other.

use crate::units::DeviceId;

/// What a host tells about itself at the start of every connection.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct HostInfo {
    /// The pool's identity.
    pub identity: [u8; 16],
    /// The kernel's boot id: hosts of an earlier boot cannot be alive.
    pub boot_id: String,
    /// Process id of the host.
    pub pid: u32,
    /// The program's version.
    pub version: String,
}

/// What became of a request to stop.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum StopOutcome {
    /// Nothing was open; the host is going away.
    Stopping,
    /// These devices are open, ascending; the host stays.
    Busy(Vec<DeviceId>),
}
