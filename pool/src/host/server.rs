//! The host's side: serves one pool to many connections until nobody needs it.
//!
//! A host ends in one way only: every device that nobody has open is detached, and none is left. Asked by a client or
//! by `SIGTERM` it tries that once and stays if a device is open; with no client for a while it tries it by itself.
//! So a mounted filesystem never loses the process behind it to a polite request; only SIGKILL does that.

use std::fs::{Permissions, remove_file, set_permissions};
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::setsid;

use crate::error::{Error, ErrorKind, Result};
use crate::export::{Exporter, keep_resident};
use crate::host::connections::{Connections, Place, lock};
use crate::host::control::{is_control, serve_control};
use crate::host::peer::check_peer;
use crate::host::protocol::{
    Answer, Call, REQUEST_MAX, Reception, Request, StopOutcome, VERSION, receive, receive_frame, send, send_frame,
    version_of_hello, welcome,
};
use crate::host::readiness::{Readiness, receive_inheritance};
use crate::host::service::Service;
use crate::thin_pool::ThinPool;

/// Connections at a time; each has a thread.
const CONNECTIONS_MAX: usize = 256;
/// Longest time for a client to say hello.
const HELLO_WAIT: Duration = Duration::from_secs(5);

/// How a host process behaves.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// The unix socket to serve on, at most 107 bytes, mode 0600.
    pub socket: PathBuf,
    /// With no client connected and no device open for this long, the host ends by itself.
    pub idle_after: Duration,
    /// True if a supervisor reads readiness or the start error from standard output.
    pub supervised: bool,
}

/// The whole life of a host process: leaves the caller's session, opens the pool with `open`, says that it is
/// ready, serves, and returns when it was asked to stop (`SIGTERM`, [`StopOutcome`]) or nobody was left, with no
/// device open, or when it handed its devices over. `open` gets the descriptors of a dead host's exporter
/// ([`Exporter::descriptors`]), if there is one to take over from. Call it first thing in a process of one thread.
///
/// Errors: those of `open`; `InUse` if another host serves the socket.
pub fn run(
    options: &HostOptions,
    open: impl FnOnce(Vec<OwnedFd>) -> Result<(Arc<dyn ThinPool>, Arc<dyn Exporter>)>,
) -> Result<()> {
    let readiness = Readiness::new(options.supervised)?;
    let started = if options.supervised { receive_inheritance() } else { Ok(Vec::new()) };
    match started.and_then(|inherited| start(options, || open(inherited))) {
        Ok(server) => {
            readiness.ready();
            server.serve()
        }
        Err(error) => {
            readiness.failed(&error);
            Err(error)
        }
    }
}

fn start(
    options: &HostOptions,
    open: impl FnOnce() -> Result<(Arc<dyn ThinPool>, Arc<dyn Exporter>)>,
) -> Result<Server> {
    // Refused to the first process of a terminal's job, which then lives and ends with that terminal by its
    // user's wish.
    if let Err(errno) = setsid() {
        tracing::debug!("stays in the session of its starter: {errno}");
    }
    // Before any thread is started: all of them inherit it, and the signal is read from a descriptor only. A write
    // beyond a limit on file sizes is then an error of that write, and not the end of the process.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGXFSZ] {
        signals.add(signal);
    }
    signals.thread_block().map_err(|e| Error::io("block signals", e.into()))?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(|e| Error::io("listen for signals", e.into()))?;
    keep_resident();
    let (pool, exporter) = open()?;
    // After the pool is open: its lock makes this the only host, so a socket in the way is a dead one's.
    let listener = listen(&options.socket)?;
    let service = Arc::new(Service::new(pool, exporter)?);
    let connections = Arc::new(Mutex::new(Connections::new()));
    let socket = SocketFile { path: options.socket.clone() };
    Ok(Server { service, connections, listener, signals, socket, idle_after: options.idle_after })
}

fn listen(socket: &Path) -> Result<UnixListener> {
    let fail = |e: io::Error| Error::io(format!("listen on {}", socket.display()), e);
    if UnixStream::connect(socket).is_ok() {
        return Err(Error::new(ErrorKind::InUse, format!("listen on {}: another host does", socket.display())));
    }
    match remove_file(socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(fail(e)),
        _ => {}
    }
    // Bound under another name and moved: at its own name the socket has its final mode from the first moment.
    let young = socket.with_extension("new");
    match remove_file(&young) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(fail(e)),
        _ => {}
    }
    let listener = UnixListener::bind(&young).map_err(fail)?;
    set_permissions(&young, Permissions::from_mode(0o600)).map_err(fail)?;
    std::fs::rename(&young, socket).map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    Ok(listener)
}

/// The socket's name; removed when dropped.
struct SocketFile {
    path: PathBuf,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = remove_file(&self.path) {
            tracing::warn!("remove {}: {error}", self.path.display());
        }
    }
}

/// A host that is ready.
struct Server {
    service: Arc<Service>,
    connections: Arc<Mutex<Connections>>,
    listener: UnixListener,
    signals: SignalFd,
    socket: SocketFile,
    idle_after: Duration,
}

impl Server {
    /// Serves until the host may end, then closes the pool and, last, the connections: a client that sees the end of
    /// its connection may open the pool.
    fn serve(self) -> Result<()> {
        while !self.service.is_stopping() {
            self.wait()?;
            self.accept();
            self.obey_signals()?;
            self.end_if_alone();
            self.join_ended();
        }
        if self.service.is_handed_over() {
            // Calls that are still under way would keep the devices waiting. The process ends now, and its threads with
            // it: what they have begun is as if it had been killed.
            return Ok(());
        }
        let parting = std::mem::take(&mut lock(&self.connections).streams);
        let mut streams = Vec::new();
        for (stream, thread) in parting.into_values() {
            // The thread finds the end of its connection after the answer it is giving.
            if let Err(error) = stream.shutdown(Shutdown::Read) {
                tracing::debug!("end a connection: {error}");
            }
            streams.push(stream);
            join(thread);
        }
        for thread in std::mem::take(&mut lock(&self.connections).ended) {
            join(thread);
        }
        let closed = self.service.close();
        drop(self.service);
        // Only after the pool: until here a newcomer waits at the socket instead of finding the pool locked.
        drop(self.socket);
        drop(self.listener);
        drop(streams);
        closed
    }

    /// Waits for a connection, a signal, the bell, or the end of the time without clients.
    fn wait(&self) -> Result<()> {
        let timeout = {
            let connections = lock(&self.connections);
            if connections.streams.is_empty() {
                let left = self.idle_after.saturating_sub(connections.idle_since.elapsed());
                // Rounded up: a wake-up a moment too early would spin.
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            } else {
                PollTimeout::NONE
            }
        };
        let mut fds = [
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.service.bell().as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::io("wait for clients of the pool host", errno.into())),
        }
        match self.service.bell().read() {
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(errno) => Err(Error::io("silence the bell of the pool host", errno.into())),
        }
    }

    fn accept(&self) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if let Err(error) = check_peer(&stream) {
                        tracing::warn!("a client was turned away: {error}");
                        continue;
                    }
                    if let Err(error) = self.start_connection(stream) {
                        tracing::warn!("a client was turned away: {error}");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Out of descriptors, for instance: the client waits until one is free.
                Err(error) => {
                    tracing::warn!("cannot take a client: {error}");
                    return;
                }
            }
        }
    }

    fn start_connection(&self, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        let stream = Arc::new(stream);
        let (service, own) = (Arc::clone(&self.service), Arc::clone(&stream));
        let table = Arc::clone(&self.connections);
        let mut connections = lock(&self.connections);
        let number = connections.next;
        connections.next += 1;
        let crowded = connections.streams.len() >= CONNECTIONS_MAX;
        // The thread leaves the table through the same lock, so it cannot leave before it stands there.
        let thread = std::thread::Builder::new().name(format!("pool-call-{number}")).spawn(move || {
            let place = Place { number, connections: Arc::clone(&table) };
            if let Err(error) = converse(&service, &own, crowded, &place) {
                tracing::debug!("a connection broke: {error}");
            }
            let mut connections = lock(&table);
            if let Some((_, thread)) = connections.streams.remove(&number) {
                connections.ended.push(thread);
            }
            connections.idle_since = Instant::now();
            connections.changed.notify_all();
            drop(connections);
            service.ring();
        })?;
        connections.streams.insert(number, (stream, thread));
        Ok(())
    }

    fn obey_signals(&self) -> Result<()> {
        loop {
            let signal = match self.signals.read_signal() {
                Ok(Some(info)) => i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok()),
                Ok(None) => return Ok(()),
                Err(errno) => return Err(Error::io("read a signal", errno.into())),
            };
            if matches!(signal, Some(Signal::SIGTERM | Signal::SIGINT)) {
                self.try_to_stop("a signal asks to stop");
            }
        }
    }

    fn end_if_alone(&self) {
        let alone = {
            let mut connections = lock(&self.connections);
            let alone = connections.streams.is_empty() && connections.idle_since.elapsed() >= self.idle_after;
            if alone {
                // The next try, if this one fails.
                connections.idle_since = Instant::now();
            }
            alone
        };
        if alone {
            self.try_to_stop("no client is left");
        }
    }

    fn try_to_stop(&self, why: &str) {
        match self.service.stop_if_idle() {
            Ok(StopOutcome::Stopping) => tracing::info!("{why}: the pool host ends"),
            Ok(StopOutcome::Busy(devices)) => {
                let list: Vec<String> = devices.iter().map(ToString::to_string).collect();
                tracing::warn!("{why}, but devices {} are open: the pool host stays", list.join(", "));
            }
            Err(error) => tracing::error!("{why}, but a device cannot be taken away: {error}"),
        }
    }

    fn join_ended(&self) {
        let ended = std::mem::take(&mut lock(&self.connections).ended);
        for thread in ended {
            join(thread);
        }
    }
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!("a thread of the pool host panicked");
    }
}

/// One connection: the hello, then calls until its end.
fn converse(service: &Service, stream: &UnixStream, crowded: bool, place: &Place) -> io::Result<()> {
    let mut stream = stream;
    stream.set_read_timeout(Some(HELLO_WAIT))?;
    let Some(frame) = receive_frame(&mut stream, REQUEST_MAX)? else { return Ok(()) };
    if version_of_hello(&frame).is_none() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not begin with a hello"));
    }
    stream.set_read_timeout(None)?;
    if is_control(&frame) {
        return serve_control(stream, VERSION, service);
    }
    let reception = match service.is_stopping() {
        true => Reception::Ending,
        false if crowded => Reception::Crowded,
        false => Reception::Ready(service.info().clone()),
    };
    // A client of another version reads our version in it and leaves.
    send_frame(&mut stream, &welcome(&reception)?)?;
    // A view lives as long as the connection that asked for it: a reader that dies leaves none behind.
    let mut views = Views { service, numbers: Vec::new() };
    while let Some(request) = receive(&mut stream, REQUEST_MAX)? {
        let outcome = match request {
            Request::OutlastOthers => Ok(place.outlast_others()),
            Request::Pool(Call::WaitStatus { .. } | Call::Trim) => place.lasting(|| service.answer(request)),
            Request::Pool(_) | Request::StopIfIdle => service.answer(request),
        };
        if let Ok(Answer::View(view)) = &outcome {
            views.numbers.push(view.number);
        }
        send(&mut stream, &outcome)?;
    }
    Ok(())
}

/// Views of the metadata that were begun on one connection.
struct Views<'a> {
    service: &'a Service,
    numbers: Vec<u64>,
}

impl Drop for Views<'_> {
    fn drop(&mut self) {
        self.numbers.iter().for_each(|&number| self.service.end_view(number));
    }
}
