//! What a host and its clients say to each other: one frame each way for every call.
//!
//! A frame is a length (32 bits, little endian) and that many bytes of bincode. A connection starts with a
//! hello from the client and a welcome from the host; both begin with the version of the protocol and keep that
//! beginning in every version, so that two programs of different ages understand that they do not understand each
//! other.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind};
use crate::export::NoSpace;
use crate::status::{ChangedRange, DeviceUsage, MetadataView, PoolStatus, Steady};
use crate::thin_pool::Access;
use crate::units::{ByteCount, DeviceId};

/// Changes with every change of a type below.
pub(super) const VERSION: u32 = 4;
/// The first bytes of a hello.
const MAGIC: [u8; 8] = *b"thinpool";
/// Most bytes in a request: the largest has two sizes in it.
pub(super) const REQUEST_MAX: usize = 4096;
/// Most bytes in an answer. The largest is a `delta`: 17 bytes for each run, so 15 million runs.
pub(super) const ANSWER_MAX: usize = 256 << 20;

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

/// The client's first frame: the magic and its version of the protocol; later versions may say more.
pub(super) fn hello() -> [u8; 12] {
    let mut frame = [0; 12];
    frame[..8].copy_from_slice(&MAGIC);
    frame[8..].copy_from_slice(&VERSION.to_le_bytes());
    frame
}

/// The version in a hello; `None` if it is none.
pub(super) fn version_of_hello(frame: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(frame.strip_prefix(&MAGIC)?.get(..4)?.try_into().ok()?))
}

/// The host's first frame: its version and, for a client of the same version, the rest.
pub(super) fn welcome(reply: &Reception) -> io::Result<Vec<u8>> {
    let mut frame = VERSION.to_le_bytes().to_vec();
    bincode::serde::encode_into_std_write(reply, &mut frame, encoding()).map_err(io::Error::other)?;
    Ok(frame)
}

/// Takes a welcome apart; `Err` with the other side's version if it is not ours.
pub(super) fn open_welcome(frame: &[u8]) -> io::Result<std::result::Result<Reception, u32>> {
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "a welcome without a version");
    let (version, rest) = frame.split_first_chunk().ok_or_else(broken)?;
    match u32::from_le_bytes(*version) {
        VERSION => decode(rest).map(Ok),
        other => Ok(Err(other)),
    }
}

/// How a host takes a connection.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(super) enum Reception {
    /// Calls may follow.
    Ready(HostInfo),
    /// The host is ending: the connection closes when its pool is closed.
    Ending,
    /// It serves too many connections.
    Crowded,
}

/// What a client asks.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(super) enum Request {
    Pool(Call),
    StopIfIdle,
    /// Wait for the calls on every connection that is older than this one.
    OutlastOthers,
}

/// A call on the pool.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(super) enum Call {
    CreateThin(DeviceId),
    CreateSnap { id: DeviceId, origin: DeviceId },
    CreateActive { id: DeviceId, origin: DeviceId, size: ByteCount, ahead: ByteCount },
    Delete(DeviceId),
    Activate { id: DeviceId, size: ByteCount, access: Access },
    Deactivate(DeviceId),
    ActivePath(DeviceId),
    Flush(DeviceId),
    Usage(DeviceId),
    Written(DeviceId),
    Delta { from: DeviceId, to: DeviceId },
    Devices,
    Status,
    SetTransactionId { from: u64, to: u64 },
    Grow { data: Option<ByteCount>, metadata: Option<ByteCount> },
    BeginView,
    EndView(u64),
    Trim,
    SetNoSpace(NoSpace),
    WaitStatus { steady: Steady, timeout: Duration },
    InterruptWaits,
}

/// The value that a call gives back.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(super) enum Answer {
    Done,
    Gone(bool),
    Path(Option<PathBuf>),
    Bytes(ByteCount),
    Usage(DeviceUsage),
    Delta(Vec<ChangedRange>),
    Devices(Vec<DeviceId>),
    Status(PoolStatus),
    Stop(StopOutcome),
    View(MetadataView),
    Whole(bool),
    /// Nothing was done: the host is ending, and another one may follow.
    Ending,
}

/// An error on its way to another process: the kind to match on and the text with its causes.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(super) struct Failure {
    kind: ErrorKind,
    text: String,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self { kind: error.kind(), text: error.to_string() }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::new(failure.kind, failure.text)
    }
}

/// What comes back for a [`Request`].
pub(super) type Outcome = std::result::Result<Answer, Failure>;

/// No limit here: the frame's own length is checked before anything is read.
fn encoding() -> Configuration<LittleEndian, Fixint, Limit<ANSWER_MAX>> {
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<ANSWER_MAX>()
}

/// Sends one frame.
pub(super) fn send_frame(to: &mut impl Write, body: &[u8]) -> io::Result<()> {
    if body.len() > ANSWER_MAX {
        let len = body.len();
        return Err(io::Error::other(format!("a message of {len} bytes is above the limit of {ANSWER_MAX}")));
    }
    let len = u32::try_from(body.len()).map_err(io::Error::other)?;
    to.write_all(&[&len.to_le_bytes(), body].concat())
}

/// Sends one message.
pub(super) fn send(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    send_frame(to, &bincode::serde::encode_to_vec(message, encoding()).map_err(io::Error::other)?)
}

/// Receives one frame of at most `max` bytes; `None` if the other side closed the connection between two frames.
pub(super) fn receive_frame(from: &mut impl Read, max: usize) -> io::Result<Option<Vec<u8>>> {
    let mut len = [0; 4];
    let mut have = 0;
    while have < len.len() {
        match from.read(&mut len[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let len = usize::try_from(u32::from_le_bytes(len)).map_err(io::Error::other)?;
    if len > max {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a frame of {len} bytes, at most {max} may come"),
        ));
    }
    // Grows as bytes arrive: a length alone must not reserve memory.
    let mut body = Vec::new();
    from.by_ref().take(len as u64).read_to_end(&mut body)?;
    if body.len() < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(body))
}

/// Receives one message.
pub(super) fn receive<T: DeserializeOwned>(from: &mut impl Read, max: usize) -> io::Result<Option<T>> {
    receive_frame(from, max)?.map(|body| decode(&body)).transpose()
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    let (message, used) = bincode::serde::decode_from_slice(body, encoding())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    if used != body.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame has bytes behind its message"));
    }
    Ok(message)
}

/// The kernel's boot id, or an empty text where /proc does not tell.
pub(super) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// The message with which a side ends a connection that does not follow the protocol.
pub(super) fn broken(doing: &str, error: io::Error) -> Error {
    Error::with_source(ErrorKind::Unavailable, format!("{doing}: the connection to the pool host broke"), error)
}
