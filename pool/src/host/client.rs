//! A pool that lives in another process, as a `ThinPool`.
//!
//! Each call takes a connection of its own for its time, so calls from many threads run side by side. A call that finds
//! no host, or whose connection breaks, waits for the next host and is made again: every call on a pool is harmless to
//! repeat, and the two whose answer would differ (a creation, a step of the transaction id) are judged by what they
//! find.

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
use crate::host::handshake::{Handshake, ending, shake_hands, stranger};
use crate::host::protocol::{ANSWER_MAX, Answer, Call, HostInfo, Outcome, Request, StopOutcome, broken, receive, send};
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
    /// How long a call whose host dies waits for the next one. Zero: it fails at once.
    pub patience: Duration,
}

/// Connections that are open: those that wait for a call, and how many there are in all.
struct Connections {
    idle: Vec<UnixStream>,
    open: usize,
}

/// A connection to a host; calls from many threads run side by side. While it lives the host stays.
pub struct HostClient {
    options: ConnectOptions,
    identity: [u8; 16],
    info: Mutex<HostInfo>,
    connections: Mutex<Connections>,
    freed: Condvar,
    news: Mutex<News>,
    told: Condvar,
}

/// What the keeper of the host tells those who wait for one.
#[derive(Default)]
struct News {
    /// Hosts that came.
    arrivals: u64,
    /// Why none is to be expected soon.
    trouble: Option<String>,
}

/// How a call failed that may be made again.
struct Missed {
    error: Error,
    /// It may have been done.
    sent: bool,
}

/// How often a call that waits for a host tries by itself, if no keeper tells it.
const RETRY: Duration = Duration::from_millis(50);

impl HostClient {
    /// Connects and shakes hands. Errors: `Unavailable` if no host answers at the socket or it speaks another
    /// version of the protocol, `Invalid` if it serves another pool.
    pub fn connect(options: ConnectOptions) -> Result<Self> {
        let (first, info) = match shake_hands(&options)? {
            Handshake::Ready(stream, info) => (stream, info),
            Handshake::Ending(_) => return Err(ending(&options)),
            Handshake::Stranger(version) => return Err(stranger(&options, version)),
        };
        Ok(Self::adopt(options, first, info))
    }

    /// A client that begins with a connection whose hands are shaken.
    pub(super) fn adopt(options: ConnectOptions, first: UnixStream, info: HostInfo) -> Self {
        let connections = Mutex::new(Connections { idle: vec![first], open: 1 });
        Self {
            options,
            identity: info.identity,
            info: Mutex::new(info),
            connections,
            freed: Condvar::new(),
            news: Mutex::default(),
            told: Condvar::new(),
        }
    }

    /// What the host that was last connected to said about itself.
    #[must_use]
    pub fn info(&self) -> HostInfo {
        self.info.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the calls that wait for a host: one has come.
    pub(super) fn host_arrived(&self) {
        let mut news = self.news();
        news.arrivals += 1;
        news.trouble = None;
        drop(news);
        self.told.notify_all();
        match self.lease("greet the new pool host") {
            Ok(lease) => drop(lease),
            Err(missed) => tracing::debug!("{}", missed.error),
        }
    }

    /// From here on calls without a host fail at once, with this text, until one comes.
    pub(super) fn host_in_trouble(&self, why: String) {
        self.news().trouble = Some(why);
        self.told.notify_all();
    }

    /// Returns when the host has done what other clients had asked for before this one came: for one who takes the
    /// place of a dead client, whose last calls may still be on their way. Errors: `Unavailable`.
    pub fn outlast_others(&self) -> Result<()> {
        match self.try_ask("wait for the calls of a dead client", &Request::OutlastOthers).map_err(|m| m.error)?? {
            Answer::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks the host to detach every device that nobody has open and, if none is left, to end.
    pub fn stop_if_idle(&self) -> Result<StopOutcome> {
        match self.try_ask("stop the pool host", &Request::StopIfIdle).map_err(|missed| missed.error)?? {
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
            Err(missed) if missed.error.kind() == ErrorKind::Unavailable => return Ok(true),
            other => other.map_err(|missed| missed.error)?,
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
    fn lease(&self, doing: &str) -> std::result::Result<Lease<'_>, Missed> {
        let missed = |error: Error| Missed { error: error.doing(doing), sent: false };
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
                let options = ConnectOptions { identity: Some(self.identity), ..self.options.clone() };
                match shake_hands(&options).map_err(missed)? {
                    Handshake::Ready(stream, info) => {
                        *self.info.lock().unwrap_or_else(PoisonError::into_inner) = info;
                        lease.stream = Some(stream);
                    }
                    Handshake::Ending(_) => return Err(missed(ending(&options))),
                    Handshake::Stranger(version) => return Err(missed(stranger(&options, version))),
                }
                return Ok(lease);
            }
            connections = self.freed.wait(connections).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Makes a call, again and again while hosts die under it. True: an earlier try may have been done.
    fn call(&self, doing: &str, call: &Call) -> (Result<Answer>, bool) {
        let request = Request::Pool(call.clone());
        let mut deadline = None;
        let mut sent = false;
        loop {
            let arrivals = self.news().arrivals;
            let missed = match self.try_ask(doing, &request) {
                Ok(outcome) => return (outcome, sent),
                Err(missed) => missed,
            };
            sent |= missed.sent;
            if missed.error.kind() != ErrorKind::Unavailable {
                return (Err(missed.error), sent);
            }
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + self.options.patience);
            if let Err(why) = self.wait_for_host(arrivals, deadline) {
                let error = match why {
                    Some(trouble) => missed.error.doing(trouble),
                    None => missed.error,
                };
                return (Err(error), sent);
            }
        }
    }

    /// Waits until a try may be worth it. Errors: none is before `deadline`; the keeper's reason, if it told one.
    fn wait_for_host(&self, arrivals: u64, deadline: Instant) -> std::result::Result<(), Option<String>> {
        let news = self.news();
        let left = deadline.saturating_duration_since(Instant::now());
        if let Some(trouble) = &news.trouble {
            return Err(Some(trouble.clone()));
        }
        if left.is_zero() {
            return Err(None);
        }
        let waiting = |news: &mut News| news.arrivals == arrivals && news.trouble.is_none();
        drop(self.told.wait_timeout_while(news, left.min(RETRY), waiting).unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }

    fn try_ask(&self, doing: &str, request: &Request) -> std::result::Result<Result<Answer>, Missed> {
        let mut lease = self.lease(doing)?;
        let lost = |error| Missed { error, sent: true };
        let Some(mut stream) = lease.stream.take() else { return Err(lost(gone(doing))) };
        send(&mut stream, request).map_err(|e| lost(broken(doing, e)))?;
        let outcome: Option<Outcome> = receive(&mut stream, ANSWER_MAX).map_err(|e| lost(broken(doing, e)))?;
        match outcome {
            Some(Ok(Answer::Ending)) => Err(Missed { error: ending(&self.options).doing(doing), sent: false }),
            Some(outcome) => {
                // Only a connection whose call is complete can carry another one.
                lease.stream = Some(stream);
                Ok(outcome.map_err(Error::from))
            }
            None => Err(lost(gone(doing))),
        }
    }

    fn done(&self, doing: &str, call: &Call) -> Result<()> {
        match self.call(doing, call).0? {
            Answer::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// A creation. Its id belongs to the caller: what an earlier try has made is what was to be made.
    fn create(&self, doing: &str, call: &Call) -> Result<()> {
        match self.call(doing, call) {
            (Ok(Answer::Done), _) => Ok(()),
            (Err(error), true) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            (Ok(other), _) => Err(unexpected(&other)),
            (Err(error), _) => Err(error),
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

impl ThinPool for HostClient {
    fn create_thin(&self, id: DeviceId) -> Result<()> {
        self.create(&format!("create device {id}"), &Call::CreateThin(id))
    }

    fn create_snap(&self, id: DeviceId, origin: DeviceId) -> Result<()> {
        self.create(&format!("create snapshot {id} of {origin}"), &Call::CreateSnap { id, origin })
    }

    fn create_active(
        &self,
        id: DeviceId,
        origin: DeviceId,
        size: ByteCount,
        ahead: ByteCount,
    ) -> Result<Option<PathBuf>> {
        let doing = format!("create snapshot {id} of {origin} and activate it");
        match self.call(&doing, &Call::CreateActive { id, origin, size, ahead }) {
            (Ok(Answer::Path(path)), _) => Ok(path),
            // As in `create`: an earlier try has made it, and perhaps has not come to show it.
            (Err(error), true) if error.kind() == ErrorKind::AlreadyExists => Ok(None),
            (Ok(other), _) => Err(unexpected(&other)),
            (Err(error), _) => Err(error),
        }
    }

    fn delete(&self, id: DeviceId) -> Result<()> {
        self.done(&format!("delete device {id}"), &Call::Delete(id))
    }

    fn activate(&self, id: DeviceId, size: ByteCount, access: Access) -> Result<PathBuf> {
        match self.call(&format!("activate device {id}"), &Call::Activate { id, size, access }).0? {
            Answer::Path(Some(path)) => Ok(path),
            other => Err(unexpected(&other)),
        }
    }

    fn deactivate(&self, id: DeviceId) -> Result<bool> {
        match self.call(&format!("deactivate device {id}"), &Call::Deactivate(id)).0? {
            Answer::Gone(gone) => Ok(gone),
            other => Err(unexpected(&other)),
        }
    }

    fn active_path(&self, id: DeviceId) -> Result<Option<PathBuf>> {
        match self.call(&format!("find device {id}"), &Call::ActivePath(id)).0? {
            Answer::Path(path) => Ok(path),
            other => Err(unexpected(&other)),
        }
    }

    fn flush(&self, id: DeviceId) -> Result<()> {
        self.done(&format!("flush device {id}"), &Call::Flush(id))
    }

    fn usage(&self, id: DeviceId) -> Result<DeviceUsage> {
        match self.call(&format!("measure device {id}"), &Call::Usage(id)).0? {
            Answer::Usage(usage) => Ok(usage),
            other => Err(unexpected(&other)),
        }
    }

    fn written(&self, id: DeviceId) -> Result<ByteCount> {
        match self.call(&format!("measure device {id}"), &Call::Written(id)).0? {
            Answer::Bytes(bytes) => Ok(bytes),
            other => Err(unexpected(&other)),
        }
    }

    fn delta(&self, from: DeviceId, to: DeviceId) -> Result<Vec<ChangedRange>> {
        match self.call(&format!("compare devices {from} and {to}"), &Call::Delta { from, to }).0? {
            Answer::Delta(ranges) => Ok(ranges),
            other => Err(unexpected(&other)),
        }
    }

    fn devices(&self) -> Result<Vec<DeviceId>> {
        match self.call("list the devices", &Call::Devices).0? {
            Answer::Devices(devices) => Ok(devices),
            other => Err(unexpected(&other)),
        }
    }

    fn status(&self) -> Result<PoolStatus> {
        match self.call("ask for the pool's status", &Call::Status).0? {
            Answer::Status(status) => Ok(status),
            other => Err(unexpected(&other)),
        }
    }

    fn set_transaction_id(&self, from: u64, to: u64) -> Result<()> {
        match self.call(&format!("set transaction id {to}"), &Call::SetTransactionId { from, to }) {
            (Ok(Answer::Done), _) => Ok(()),
            // An earlier try may have made the step.
            (Err(_), true) if self.status()?.transaction_id == to => Ok(()),
            (Ok(other), _) => Err(unexpected(&other)),
            (Err(error), _) => Err(error),
        }
    }

    fn grow(&self, data: Option<ByteCount>, metadata: Option<ByteCount>) -> Result<()> {
        self.done("grow the pool", &Call::Grow { data, metadata })
    }

    fn trim(&self) -> Result<ByteCount> {
        match self.call("trim the pool", &Call::Trim).0? {
            Answer::Bytes(bytes) => Ok(bytes),
            other => Err(unexpected(&other)),
        }
    }

    fn set_no_space(&self, policy: NoSpace) -> Result<()> {
        self.done("say what to do with writes that find no room", &Call::SetNoSpace(policy))
    }

    fn wait_status(&self, steady: &Steady, timeout: Duration) -> Result<PoolStatus> {
        match self.call("wait for news of the pool", &Call::WaitStatus { steady: *steady, timeout }).0? {
            Answer::Status(status) => Ok(status),
            other => Err(unexpected(&other)),
        }
    }

    fn interrupt_waits(&self) -> Result<()> {
        self.done("interrupt those who wait for news", &Call::InterruptWaits)
    }

    fn begin_view(&self) -> Result<MetadataView> {
        match self.call("view the metadata", &Call::BeginView).0? {
            Answer::View(view) => Ok(view),
            other => Err(unexpected(&other)),
        }
    }

    fn end_view(&self, number: u64) -> Result<bool> {
        match self.call("end a view of the metadata", &Call::EndView(number)).0? {
            Answer::Whole(whole) => Ok(whole),
            other => Err(unexpected(&other)),
        }
    }
}
