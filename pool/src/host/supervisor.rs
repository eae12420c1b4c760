//! Finds the living host of a pool, or starts one that outlives its starter.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, read_to_string, rename};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;

use crate::error::{Error, ErrorKind, Result};
use crate::host::client::{ConnectOptions, Handshake, HostClient, shake_hands};
use crate::host::protocol::{REQUEST_MAX, receive};
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
    /// When to give up waiting for the start.
    pub deadline: Instant,
}

/// Connects to the living host, or starts one and connects to it; of several callers at once one starts it.
/// The started process has its own session and its output in `host.log`; neither the death of this process nor a
/// ctrl-C in its terminal ends it. Errors: those that the host met while opening the pool; `Unavailable` if it died
/// or was not ready in time (with the last lines of the log).
pub fn connect_or_spawn(options: &SpawnOptions) -> Result<HostClient> {
    if let Some(client) = adopt(options)? {
        return Ok(client);
    }
    // Whoever holds the lock is bounded by its own deadline, so this wait is bounded too.
    let _lock = lock_start(&options.run_dir)?;
    if let Some(client) = adopt(options)? {
        return Ok(client);
    }
    let mut child = spawn(options)?;
    let started = wait_ready(&mut child, options);
    reap_later(child.process);
    started?;
    HostClient::connect(options.connect.clone())
}

/// The living host, waiting for one that is just ending. `None`: there is none.
fn adopt(options: &SpawnOptions) -> Result<Option<HostClient>> {
    match shake_hands(&options.connect) {
        Ok(Handshake::Ready(stream, info)) => Ok(Some(HostClient::adopt(options.connect.clone(), stream, info))),
        Ok(Handshake::Ending(stream)) => {
            if wait_readable(&stream, options.deadline)? {
                Ok(None)
            } else {
                Err(Error::new(ErrorKind::Unavailable, "wait for the former pool host to end: it took too long"))
            }
        }
        Err(error) if is_absence(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

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

fn lock_start(run_dir: &Path) -> Result<Flock<File>> {
    let path = run_dir.join("host.lock");
    let fail = |e: io::Error| Error::io(format!("lock {}", path.display()), e);
    let file = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(&path).map_err(fail)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| fail(errno.into()))
}

/// A host that is starting, and the pipe through which it tells how that went.
struct Starting {
    process: Child,
    report: OwnedFd,
    log: PathBuf,
}

fn spawn(options: &SpawnOptions) -> Result<Starting> {
    let fail = |e: io::Error| Error::io(format!("start the pool host {}", options.program.display()), e);
    let (report, stdout) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| fail(errno.into()))?;
    let log = options.run_dir.join("host.log");
    let process = Command::new(&options.program)
        .args(&options.args)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(open_log(&log)?)
        .spawn()
        .map_err(fail)?;
    Ok(Starting { process, report, log })
}

fn open_log(path: &Path) -> Result<File> {
    let fail = |e: io::Error| Error::io(format!("open {}", path.display()), e);
    if path.metadata().is_ok_and(|file| file.len() > LOG_MAX) {
        rename(path, path.with_extension("log.old")).map_err(fail)?;
    }
    OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(fail)
}

fn wait_ready(starting: &mut Starting, options: &SpawnOptions) -> Result<()> {
    let end = |starting: &mut Starting| {
        // It may hang anywhere; it serves nobody yet.
        if let Err(error) = starting.process.kill() {
            tracing::debug!("end a host that did not start: {error}");
        }
    };
    if !wait_readable(&starting.report, options.deadline)? {
        end(starting);
        let text = format!("start the pool host: it was not ready in time{}", quote(&starting.log));
        return Err(Error::new(ErrorKind::Unavailable, text));
    }
    let pipe = starting.report.try_clone().map_err(|e| Error::io("read the pool host's report", e))?;
    match receive::<Report>(&mut File::from(pipe), REQUEST_MAX) {
        Ok(Some(report)) => report.map_err(|failure| Error::from(failure).doing("start the pool host")),
        Ok(None) => {
            let text = format!("start the pool host: it died at once{}", quote(&starting.log));
            Err(Error::new(ErrorKind::Unavailable, text))
        }
        Err(error) => {
            end(starting);
            let text = format!("start the pool host: its report is broken{}", quote(&starting.log));
            Err(Error::with_source(ErrorKind::Unavailable, text, error))
        }
    }
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
fn quote(log: &Path) -> String {
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
