//! Finds the living host of a pool, or starts one that outlives its starter.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, read_to_string, rename};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;

use crate::error::{Error, ErrorKind, Result};
use crate::host::client::{ConnectOptions, HostClient};
use crate::host::descriptors::send_descriptors;
use crate::host::handshake::{Handshake, shake_hands, stranger};
use crate::host::protocol::{REQUEST_MAX, VERSION, receive};
use crate::host::readiness::Report;

/// A log above this size is set aside at the next start, so that the two together stay bounded between starts.
const LOG_MAX: u64 = 4 << 20;
/// Lines of the log that an error quotes.
const LOG_LINES: usize = 5;

/// How to start a host where none lives.
#[derive(Debug, Clone)]
pub struct SpawnOptions {
    /// How to reach the host, living or started.
    pub connect: ConnectOptions,
    /// The program, normally `/proc/self/exe`'s target; it must call [`run_host`](crate::host::run) with `supervised`.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// A directory of this pool for `host.lock` and `host.log`; it must exist.
    pub run_dir: PathBuf,
    /// Longest wait for a start.
    pub start_timeout: Duration,
}

/// Connects to the living host, or starts one and connects to it; of several callers at once one starts it.
/// The started process has its own session and its output in `host.log`; neither the death of this process nor a
/// ctrl-C in its terminal ends it. Errors: those that the host met while opening the pool; `Unavailable` if it died
/// or was not ready in time (with the last lines of the log).
pub fn connect_or_spawn(options: &SpawnOptions) -> Result<HostClient> {
    if let Living::Here(client) = look_for(options)? {
        return Ok(*client);
    }
    // Whoever holds the lock is bounded by its own deadline, so this wait is bounded too.
    let _lock = lock_start(&options.run_dir)?;
    if let Living::Here(client) = look_for(options)? {
        return Ok(*client);
    }
    start(options, &options.program, &[])?;
    HostClient::connect(options.connect.clone())
}

/// A host that was looked for.
pub(super) enum Living {
    /// It lives, and this speaks to it.
    Here(Box<HostClient>),
    /// It lives, and speaks another version of the protocol.
    Stranger,
    /// There is none.
    Nowhere,
}

/// As [`look_for_any`]; a host of another version is an error.
fn look_for(options: &SpawnOptions) -> Result<Living> {
    match look_for_any(options)? {
        (Living::Stranger, version) => Err(stranger(&options.connect, version)),
        (living, _) => Ok(living),
    }
}

/// The living host, waiting for one that is just ending; and its version of the protocol, if it is not ours.
pub(super) fn look_for_any(options: &SpawnOptions) -> Result<(Living, u32)> {
    match shake_hands(&options.connect) {
        Ok(Handshake::Ready(stream, info)) => {
            Ok((Living::Here(Box::new(HostClient::adopt(options.connect.clone(), stream, info))), VERSION))
        }
        Ok(Handshake::Stranger(version)) => Ok((Living::Stranger, version)),
        Ok(Handshake::Ending(stream)) => {
            if wait_readable(&stream, Instant::now() + options.start_timeout)? {
                Ok((Living::Nowhere, VERSION))
            } else {
                Err(Error::new(ErrorKind::Unavailable, "wait for the former pool host to end: it took too long"))
            }
        }
        Err(error) if is_absence(&error) => Ok((Living::Nowhere, VERSION)),
        Err(error) => Err(error),
    }
}

/// Starts a host and waits until it is ready, or another one is; with `descriptors` it takes over what they belong to.
/// Returns the process id of the one that serves.
pub(super) fn start(options: &SpawnOptions, program: &Path, descriptors: &[OwnedFd]) -> Result<u32> {
    Starting::begin(options, program, descriptors)?.finish(options)
}

/// How often a starter looks whether a host that somebody else started is ready first: a starter that was killed may
/// have left one on its way.
const OTHER_LOOK: Duration = Duration::from_millis(100);

/// True if nobody listens at the socket, as opposed to somebody whom we do not understand.
fn is_absence(error: &Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| {
        matches!(
            cause.kind(),
            io::ErrorKind::NotFound
                | io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof
        )
    })
}

pub(super) fn lock_start(run_dir: &Path) -> Result<Flock<File>> {
    let path = run_dir.join("host.lock");
    let fail = |e: io::Error| Error::io(format!("lock {}", path.display()), e);
    let file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .map_err(fail)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| fail(errno.into()))
}

/// A host that is starting, and the pipe through which it tells how that went. Dropped before it is ready, it is killed.
pub(super) struct Starting {
    process: Option<Child>,
    report: OwnedFd,
    log: PathBuf,
    deadline: Instant,
}

impl Starting {
    /// Starts the process. With descriptors it returns when they have arrived: from there on the process holds what
    /// they belong to, and waits until the host before it is gone.
    pub(super) fn begin(options: &SpawnOptions, program: &Path, descriptors: &[OwnedFd]) -> Result<Self> {
        let fail = |e: io::Error| Error::io(format!("start the pool host {}", program.display()), e);
        let (report, stdout) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| fail(errno.into()))?;
        let log = options.run_dir.join("host.log");
        // Through a socket and not by number: another thread that starts a program would pass them on to it.
        let passing = if descriptors.is_empty() { None } else { Some(UnixStream::pair().map_err(fail)?) };
        let stdin = match &passing {
            Some((near, far)) => {
                send_descriptors(near, descriptors).map_err(fail)?;
                Stdio::from(OwnedFd::from(far.try_clone().map_err(fail)?))
            }
            None => Stdio::null(),
        };
        let process = Command::new(program)
            .args(&options.args)
            .current_dir("/")
            .env_remove("NOTIFY_SOCKET")
            .env_remove("LISTEN_FDS")
            .stdin(stdin)
            .stdout(stdout)
            .stderr(open_log(&log)?)
            .spawn()
            .map_err(fail)?;
        let deadline = Instant::now() + options.start_timeout;
        let starting = Self { process: Some(process), report, log, deadline };
        if let Some((near, far)) = passing {
            drop(far);
            starting.wait_arrived(near)?;
        }
        Ok(starting)
    }

    fn wait_arrived(&self, mut near: UnixStream) -> Result<()> {
        let doing = "hand descriptors to a new pool host";
        if !wait_readable(&near, self.deadline)? {
            return Err(Error::new(ErrorKind::Unavailable, format!("{doing}: it did not take them in time")));
        }
        match near.read(&mut [0]) {
            Ok(1) => Ok(()),
            Ok(_) => Err(Error::new(ErrorKind::Unavailable, format!("{doing}: it died at once{}", quote(&self.log)))),
            Err(error) => Err(Error::io(doing, error)),
        }
    }

    /// Waits until it is ready, or another host is and this one is not needed; returns the process id of the one that
    /// serves.
    pub(super) fn finish(mut self, options: &SpawnOptions) -> Result<u32> {
        let own = self.process.as_ref().map_or(0, Child::id);
        while Instant::now() < self.deadline && !wait_readable(&self.report, Instant::now() + OTHER_LOOK)? {
            match shake_hands(&options.connect) {
                Ok(Handshake::Ready(_, info)) if info.pid != own => return Ok(info.pid),
                _ => {}
            }
        }
        self.wait_ready()?;
        let Some(process) = self.process.take() else { return Ok(0) };
        let pid = process.id();
        reap_later(process);
        Ok(pid)
    }

    fn wait_ready(&self) -> Result<()> {
        let fail =
            |what: &str| Error::new(ErrorKind::Unavailable, format!("start the pool host: {what}{}", quote(&self.log)));
        if !wait_readable(&self.report, self.deadline)? {
            return Err(fail("it was not ready in time"));
        }
        let pipe = self.report.try_clone().map_err(|e| Error::io("read the pool host's report", e))?;
        match receive::<Report>(&mut File::from(pipe), REQUEST_MAX) {
            Ok(Some(report)) => report.map_err(|failure| Error::from(failure).doing("start the pool host")),
            Ok(None) => Err(fail("it died at once")),
            Err(error) => {
                let text = format!("start the pool host: its report is broken{}", quote(&self.log));
                Err(Error::with_source(ErrorKind::Unavailable, text, error))
            }
        }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        // It may hang anywhere; it serves nobody yet.
        if let Err(error) = process.kill() {
            tracing::debug!("end a host that did not start: {error}");
        }
        reap_later(process);
    }
}

fn open_log(path: &Path) -> Result<File> {
    let fail = |e: io::Error| Error::io(format!("open {}", path.display()), e);
    if path.metadata().is_ok_and(|file| file.len() > LOG_MAX) {
        rename(path, path.with_extension("log.old")).map_err(fail)?;
    }
    OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path).map_err(fail)
}

/// True: there is something to read, the end included. False: not before `deadline`.
fn wait_readable(fd: &impl AsFd, deadline: Instant) -> Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(Error::io("wait for the pool host", errno.into())),
        }
    }
}

/// The last lines of a log, for a message.
pub(super) fn quote(log: &Path) -> String {
    let Ok(text) = read_to_string(log) else { return String::new() };
    let lines: Vec<&str> = text.lines().rev().take(LOG_LINES).collect();
    lines.iter().rev().fold(format!("; {} ends with:", log.display()), |all, line| all + "\n  " + line)
}

/// Takes the exit status of the host when it ends, so that it does not stay as a zombie while we live. The thread
/// holds nothing but the process's number and ends with it or with us.
fn reap_later(mut process: Child) {
    let waiter = std::thread::Builder::new().name("pool-host-wait".into()).spawn(move || match process.wait() {
        Ok(status) => tracing::info!("the pool host ended: {status}"),
        Err(error) => tracing::warn!("wait for the pool host: {error}"),
    });
    if let Err(error) = waiter {
        tracing::warn!("nobody waits for the end of the pool host: {error}");
    }
}
