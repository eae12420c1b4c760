//! Programs that the end-to-end tests run: each with a time limit, and all its output in the failure.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longest time that any single program of a test may take: nothing hangs, on the slowest machine.
const LIMIT_SECS: &str = "300";

/// The engine that the services and command lines of these tests are told to use: `kernel` needs a kernel with dm-thin.
pub(crate) fn engine() -> String {
    std::env::var("THINSNAP_TEST_ENGINE").unwrap_or_else(|_| "embedded".to_owned())
}

/// A command that is killed when it runs longer than the limit of the tests.
pub(crate) fn program(name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", LIMIT_SECS]).arg(name).env("THINSNAP_ENGINE", engine());
    command
}

/// Runs to the end; panics with everything it said if it cannot be run or fails. Returns its stdout.
pub(crate) fn must(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    assert!(output.status.success(), "{}", told(command, &output));
    output.stdout
}

/// As [`must`], its stdout as text.
pub(crate) fn must_say(command: &mut Command) -> String {
    String::from_utf8(must(command)).expect("the program's output is text")
}

/// What was run, how it ended, and all that it said.
pub(crate) fn told(command: &Command, output: &Output) -> String {
    format!(
        "{command:?}: {}\nstdout: {}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Asks again and again until it is so; for states of other programs that no event tells.
pub(crate) fn wait_until(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited {limit:?} in vain for: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// The socket on which a daemon says that it is ready (sd_notify's protocol).
pub(crate) struct ReadySocket {
    socket: UnixDatagram,
}

impl ReadySocket {
    /// Binds the socket and names it in the environment of the daemon to be started.
    pub(crate) fn bind(path: &Path, daemon: &mut Command) -> Self {
        let _ = fs::remove_file(path);
        let socket = UnixDatagram::bind(path).expect("the notify socket can be bound");
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a socket takes a timeout");
        daemon.env("NOTIFY_SOCKET", path);
        Self { socket }
    }

    /// Waits until the daemon is ready; panics with its log if it dies first or takes too long.
    pub(crate) fn wait(&self, daemon: &mut Child, log: &Path) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut message = [0; 4096];
        loop {
            if let Ok(len) = self.socket.recv(&mut message)
                && String::from_utf8_lossy(&message[..len]).lines().any(|line| line == "READY=1")
            {
                return;
            }
            let ended = daemon.try_wait().expect("a child can be waited for");
            assert!(ended.is_none(), "the daemon ended ({ended:?}) before it was ready:\n{}", tail(log));
            assert!(Instant::now() < deadline, "the daemon was not ready in 60 s:\n{}", tail(log));
        }
    }
}

/// The last part of a log, for a failure's text.
pub(crate) fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_else(|e| format!("({}: {e})", log.display()));
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// Processes whose command line holds `text`, other than this one.
pub(crate) fn processes_naming(text: &str) -> Vec<Pid> {
    let me = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| u32::try_from(*pid) != Ok(me))
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(text)
        })
        .map(Pid::from_raw)
        .collect()
}

/// Kills the processes whose command line holds `text`, and waits until they are gone.
pub(crate) fn kill_naming(text: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let left = processes_naming(text);
        if left.is_empty() || Instant::now() > deadline {
            return;
        }
        for pid in left {
            let _ = kill(pid, Signal::SIGKILL);
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}
