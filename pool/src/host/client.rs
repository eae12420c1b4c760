//! A pool that lives in another process, as a `ThinPool`.
//!
//! Each call takes a connection of its own for its time, so calls from many threads run side by side. A call whose
//! connection breaks is not repeated: it may have been done. A later call connects anew, if a host is there and
//! serves the same pool.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};

use crate::error::{Error, ErrorKind, Result};
use crate::export::NoSpace;
use crate::host::protocol::{
    ANSWER_MAX, Answer, Call, HostInfo, Outcome, REQUEST_MAX, Reception, Request, StopOutcome, VERSION, broken, hello,
    open_welcome, receive, receive_frame, send, send_frame,
};
use crate::status::{ChangedRange, DeviceUsage, MetadataView, PoolStatus, Steady};
use crate::thin_pool::{Access, ThinPool};
use crate::units::{ByteCount, DeviceId};

/// Connections of one client; more calls at a time wait for one. Far below what a host takes, so that several
/// clients fit.
const CONNECTIONS_MAX: usize = 32;

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

/// Connections that are open: those that wait for a call, and how many there are in all.
struct Connections {
    idle: Vec<UnixStream>,
    open: usize,
}

/// A connection to a host; calls from many threads run side by side. While it lives the host stays.
pub struct HostClient {
    options: ConnectOptions,
    info: HostInfo,
    connections: Mutex<Connections>,
    freed: Condvar,
}

impl HostClient {
    /// Connects and shakes hands. Errors: `Unavailable` if no host answers at the socket or it speaks another
    /// version of the protocol, `Invalid` if it serves another pool.
    pub fn connect(options: ConnectOptions) -> Result<Self> {
        let (first, info) = match shake_hands(&options)? {
            Handshake::Ready(stream, info) => (stream, info),
            Handshake::Ending(_) => return Err(ending(&options)),
        };
        Ok(Self::adopt(options, first, info))
    }

    /// A client that begins with a connection whose hands are shaken.
    pub(super) fn adopt(options: ConnectOptions, first: UnixStream, info: HostInfo) -> Self {
        let connections = Mutex::new(Connections { idle: vec![first], open: 1 });
        Self { options, info, connections, freed: Condvar::new() }
    }

    /// What the host said about itself.
    #[must_use]
    pub fn info(&self) -> &HostInfo {
        &self.info
    }

    /// Asks the host to detach every device that nobody has open and, if none is left, to end.
    pub fn stop_if_idle(&self) -> Result<StopOutcome> {
        match self.ask("stop the pool host", &Request::StopIfIdle)? {
            Answer::Stop(outcome) => Ok(outcome),
            other => Err(unexpected(&other)),
        }
    }

    /// Waits until the host has closed its pool and gone. False: it had not at `deadline`. Later calls need a new
    /// host.
    pub fn wait_gone(&self, deadline: Instant) -> Result<bool> {
        let doing = "wait for the pool host to end";
        // A connection that carries no call becomes readable exactly when the other side closes it, which a host
        // does last of all.
        let mut lease = match self.lease(doing) {
            Err(error) if error.kind() == ErrorKind::Unavailable => return Ok(true),
            other => other?,
        };
        loop {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return Ok(false) };
            let Some(stream) = &lease.stream else { return Ok(true) };
            let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => lease.stream = None,
                Err(errno) => return Err(Error::io(doing, errno.into())),
            }
        }
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection for one call: an idle one, a new one, or the next that is freed.
    fn lease(&self, doing: &str) -> Result<Lease<'_>> {
        let mut connections = self.connections();
        loop {
            while let Some(stream) = connections.idle.pop() {
                if is_quiet(&stream) {
                    return Ok(Lease { client: self, stream: Some(stream) });
                }
                connections.open -= 1;
            }
            if connections.open < CONNECTIONS_MAX {
                connections.open += 1;
                drop(connections);
                let mut lease = Lease { client: self, stream: None };
                let options = ConnectOptions { identity: Some(self.info.identity), ..self.options.clone() };
                match shake_hands(&options).map_err(|e| e.doing(doing))? {
                    Handshake::Ready(stream, _) => lease.stream = Some(stream),
                    Handshake::Ending(_) => return Err(ending(&options).doing(doing)),
                }
                return Ok(lease);
            }
            connections = self.freed.wait(connections).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn call(&self, doing: &str, call: &Call) -> Result<Answer> {
        self.ask(doing, &Request::Pool(call.clone()))
    }

    fn ask(&self, doing: &str, request: &Request) -> Result<Answer> {
        let mut lease = self.lease(doing)?;
        let Some(mut stream) = lease.stream.take() else { return Err(gone(doing)) };
        send(&mut stream, request).map_err(|e| broken(doing, e))?;
        let outcome: Option<Outcome> = receive(&mut stream, ANSWER_MAX).map_err(|e| broken(doing, e))?;
        // Only a connection whose call is complete can carry another one.
        lease.stream = Some(stream);
        match outcome {
            Some(outcome) => outcome.map_err(Error::from),
            None => {
                lease.stream = None;
                Err(gone(doing))
            }
        }
    }

    fn done(&self, doing: &str, call: &Call) -> Result<()> {
        match self.call(doing, call)? {
            Answer::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }
}

/// A connection taken for one call; goes back, or is given up if it was taken out.
struct Lease<'a> {
    client: &'a HostClient,
    stream: Option<UnixStream>,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut connections = self.client.connections();
        match self.stream.take() {
            Some(stream) => connections.idle.push(stream),
            None => connections.open -= 1,
        }
        drop(connections);
        self.client.freed.notify_one();
    }
}

/// True while nothing, not even the end, can be read.
fn is_quiet(stream: &UnixStream) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    recv(stream.as_raw_fd(), &mut [0], flags) == Err(Errno::EAGAIN)
}

fn gone(doing: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("{doing}: the pool host has gone"))
}

fn unexpected(answer: &Answer) -> Error {
    Error::new(ErrorKind::Unavailable, format!("the pool host answered another question: {answer:?}"))
}

fn ending(options: &ConnectOptions) -> Error {
    Error::new(ErrorKind::Unavailable, format!("the pool host at {} is ending", options.socket.display()))
}

/// How far a host let us in.
pub(super) enum Handshake {
    /// Calls may follow.
    Ready(UnixStream, HostInfo),
    /// The host is ending; the connection closes when its pool is closed.
    Ending(UnixStream),
}

/// Connects. Errors as [`HostClient::connect`], `InUse` if the host serves too many connections.
pub(super) fn shake_hands(options: &ConnectOptions) -> Result<Handshake> {
    let doing = format!("connect to the pool host at {}", options.socket.display());
    let mut stream = UnixStream::connect(&options.socket)
        .map_err(|e| Error::with_source(ErrorKind::Unavailable, doing.clone(), e))?;
    let talk = |stream: &mut UnixStream| -> io::Result<Option<Vec<u8>>> {
        stream.set_read_timeout(Some(options.handshake_timeout))?;
        stream.set_write_timeout(Some(options.handshake_timeout))?;
        send_frame(stream, &hello())?;
        let welcome = receive_frame(stream, REQUEST_MAX)?;
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        Ok(welcome)
    };
    let frame = talk(&mut stream)
        .and_then(|frame| frame.ok_or_else(|| io::ErrorKind::UnexpectedEof.into()))
        .map_err(|e| broken(&doing, e))?;
    let info = match open_welcome(&frame).map_err(|e| broken(&doing, e))? {
        Ok(Reception::Ready(info)) => info,
        Ok(Reception::Ending) => return Ok(Handshake::Ending(stream)),
        Ok(Reception::Crowded) => {
            return Err(Error::new(ErrorKind::InUse, format!("{doing}: it serves too many connections")));
        }
        Err(version) => {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "{doing}: it speaks version {version} of the protocol, this program {VERSION}; unmount its \
                     devices, stop it and start again"
                ),
            ));
        }
    };
    match options.identity {
        Some(identity) if identity != info.identity => {
            Err(Error::new(ErrorKind::Invalid, format!("{doing}: it serves another pool")))
        }
        _ => Ok(Handshake::Ready(stream, info)),
    }
}

impl ThinPool for HostClient {
    fn create_thin(&self, id: DeviceId) -> Result<()> {
        self.done(&format!("create device {id}"), &Call::CreateThin(id))
    }

    fn create_snap(&self, id: DeviceId, origin: DeviceId) -> Result<()> {
        self.done(&format!("create snapshot {id} of {origin}"), &Call::CreateSnap { id, origin })
    }

    fn delete(&self, id: DeviceId) -> Result<()> {
        self.done(&format!("delete device {id}"), &Call::Delete(id))
    }

    fn activate(&self, id: DeviceId, size: ByteCount, access: Access) -> Result<PathBuf> {
        match self.call(&format!("activate device {id}"), &Call::Activate { id, size, access })? {
            Answer::Path(Some(path)) => Ok(path),
            other => Err(unexpected(&other)),
        }
    }

    fn deactivate(&self, id: DeviceId) -> Result<bool> {
        match self.call(&format!("deactivate device {id}"), &Call::Deactivate(id))? {
            Answer::Gone(gone) => Ok(gone),
            other => Err(unexpected(&other)),
        }
    }

    fn active_path(&self, id: DeviceId) -> Result<Option<PathBuf>> {
        match self.call(&format!("find device {id}"), &Call::ActivePath(id))? {
            Answer::Path(path) => Ok(path),
            other => Err(unexpected(&other)),
        }
    }

    fn flush(&self, id: DeviceId) -> Result<()> {
        self.done(&format!("flush device {id}"), &Call::Flush(id))
    }

    fn usage(&self, id: DeviceId) -> Result<DeviceUsage> {
        match self.call(&format!("measure device {id}"), &Call::Usage(id))? {
            Answer::Usage(usage) => Ok(usage),
            other => Err(unexpected(&other)),
        }
    }

    fn written(&self, id: DeviceId) -> Result<ByteCount> {
        match self.call(&format!("measure device {id}"), &Call::Written(id))? {
            Answer::Bytes(bytes) => Ok(bytes),
            other => Err(unexpected(&other)),
        }
    }

    fn delta(&self, from: DeviceId, to: DeviceId) -> Result<Vec<ChangedRange>> {
        match self.call(&format!("compare devices {from} and {to}"), &Call::Delta { from, to })? {
            Answer::Delta(ranges) => Ok(ranges),
            other => Err(unexpected(&other)),
        }
    }

    fn devices(&self) -> Result<Vec<DeviceId>> {
        match self.call("list the devices", &Call::Devices)? {
            Answer::Devices(devices) => Ok(devices),
            other => Err(unexpected(&other)),
        }
    }

    fn status(&self) -> Result<PoolStatus> {
        match self.call("ask for the pool's status", &Call::Status)? {
            Answer::Status(status) => Ok(status),
            other => Err(unexpected(&other)),
        }
    }

    fn set_transaction_id(&self, from: u64, to: u64) -> Result<()> {
        self.done(&format!("set transaction id {to}"), &Call::SetTransactionId { from, to })
    }

    fn grow(&self, data: Option<ByteCount>, metadata: Option<ByteCount>) -> Result<()> {
        self.done("grow the pool", &Call::Grow { data, metadata })
    }

    fn trim(&self) -> Result<ByteCount> {
        match self.call("trim the pool", &Call::Trim)? {
            Answer::Bytes(bytes) => Ok(bytes),
            other => Err(unexpected(&other)),
        }
    }

    fn set_no_space(&self, policy: NoSpace) -> Result<()> {
        self.done("say what to do with writes that find no room", &Call::SetNoSpace(policy))
    }

    fn wait_status(&self, steady: &Steady, timeout: Duration) -> Result<PoolStatus> {
        match self.call("wait for news of the pool", &Call::WaitStatus { steady: *steady, timeout })? {
            Answer::Status(status) => Ok(status),
            other => Err(unexpected(&other)),
        }
    }

    fn interrupt_waits(&self) -> Result<()> {
        self.done("interrupt those who wait for news", &Call::InterruptWaits)
    }

    fn begin_view(&self) -> Result<MetadataView> {
        match self.call("view the metadata", &Call::BeginView)? {
            Answer::View(view) => Ok(view),
            other => Err(unexpected(&other)),
        }
    }

    fn end_view(&self, number: u64) -> Result<bool> {
        match self.call("end a view of the metadata", &Call::EndView(number))? {
            Answer::Whole(whole) => Ok(whole),
            other => Err(unexpected(&other)),
        }
    }
}
