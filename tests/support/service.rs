//! `thinsnap serve` on a pool of its own in a temporary directory; taken down with its pool-host when dropped.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use thinsnap::config::run_dir_of;

use super::leftovers::{clear, holders_of, left_of};
use super::process::{ReadySocket, engine, must_say, processes_naming, program, tail, wait_until};
use supervisor::Supervisor;

#[path = "supervisor.rs"]
mod supervisor;

/// Longest wait for a service to end in good order.
const END_LIMIT: Duration = Duration::from_secs(60);

/// The program under test.
const THINSNAP: &str = env!("CARGO_BIN_EXE_thinsnap");

/// A service, its pool, and everything that it keeps on the machine.
pub(crate) struct Service {
    dir: TempDir,
    config: PathBuf,
    daemon: Option<Child>,
    /// The program; another file than the one under test plays another version of it.
    program: PathBuf,
    /// `--engine`.
    engine: String,
    /// Keeps descriptors for the service between its lives.
    supervisor: Option<Supervisor>,
}

impl Service {
    /// Makes a pool and serves it; `config` is the text of a configuration file, often empty.
    pub(crate) fn start(config: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("ts-").tempdir().expect("a temporary directory can be made");
        let file = dir.path().join("thinsnap.toml");
        fs::write(&file, config).expect("a configuration can be written");
        let mut service =
            Self { dir, config: file, daemon: None, program: THINSNAP.into(), engine: engine(), supervisor: None };
        service.up();
        service
    }

    /// From the next start on, a supervisor keeps what the service gives it to keep.
    pub(crate) fn supervise(&mut self) {
        self.supervisor = Some(Supervisor::new(&self.dir.path().join("notify")));
    }

    /// Descriptors that the supervisor keeps.
    pub(crate) fn stored(&self) -> usize {
        self.supervisor.as_ref().map_or(0, Supervisor::stored)
    }

    /// From the next start on, the service is this program.
    pub(crate) fn set_program(&mut self, program: &Path) {
        self.program = program.to_owned();
    }

    /// From the next start on, the service is told to use this engine.
    pub(crate) fn set_engine(&mut self, engine: &str) {
        self.engine = engine.to_owned();
    }

    /// Starts the service, which must refuse to; its exit status and the end of its log.
    pub(crate) fn refuses(&self) -> (Option<i32>, String) {
        let mut daemon = self.command().spawn().expect("thinsnap can be started");
        let mut ended = None;
        wait_until("the service to refuse", END_LIMIT, || {
            ended = daemon.try_wait().expect("a child can be waited for");
            ended.is_some()
        });
        (ended.and_then(|status| status.code()), tail(&self.log()))
    }

    /// The file system of the pool-host.
    pub(crate) fn export(&self) -> PathBuf {
        self.run_dir().join("export")
    }

    /// Process id of the service.
    pub(crate) fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("a service is running").id()
    }

    /// The pool-host's process; the youngest if one follows another at this moment.
    pub(crate) fn host(&self) -> Option<Pid> {
        let run_dir = self.run_dir().display().to_string();
        let is_host = |pid: &Pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains("pool-host")
        };
        processes_naming(&run_dir).into_iter().filter(is_host).max()
    }

    /// Starts the service again after [`Self::stop`] or [`Self::kill`], and waits until it is ready.
    pub(crate) fn up(&mut self) {
        let mut command = self.command();
        if let Some(supervisor) = &self.supervisor {
            self.daemon = Some(supervisor.start(&command, &self.log()));
            return;
        }
        let ready = ReadySocket::bind(&self.dir.path().join("ready"), &mut command);
        self.daemon = Some(command.spawn().expect("thinsnap can be started"));
        let log = self.log();
        ready.wait(self.daemon.as_mut().expect("it was just started"), &log);
    }

    /// Starts the service without waiting for it.
    pub(crate) fn spawn(&mut self) {
        self.daemon = Some(self.command().spawn().expect("thinsnap can be started"));
    }

    /// Kills the service at once; its pool-host lives on.
    pub(crate) fn kill(&mut self) {
        let mut daemon = self.daemon.take().expect("a service is running");
        let died = daemon.try_wait().expect("a child can be waited for");
        assert!(died.is_none(), "the service ended by itself ({died:?}):\n{}", tail(&self.log()));
        daemon.kill().expect("our child can be killed");
        let status = daemon.wait().expect("our child can be waited for");
        assert_eq!(status.signal(), Some(9), "the service was killed, and did not end by itself");
    }

    /// Asks the service to end and waits for it; without users of devices its pool-host ends too.
    pub(crate) fn stop(&mut self) {
        let mut daemon = self.daemon.take().expect("a service is running");
        let pid = Pid::from_raw(i32::try_from(daemon.id()).expect("a process id fits"));
        kill(pid, Signal::SIGTERM).expect("our child takes a signal");
        let mut ended = None;
        wait_until("the service to end", END_LIMIT, || {
            ended = daemon.try_wait().expect("a child can be waited for");
            ended.is_some()
        });
        assert!(ended.is_some_and(|status| status.success()), "{ended:?}:\n{}", tail(&self.log()));
    }

    /// Stops the service; afterwards no mount, loop device, FUSE connection or process of it may be there.
    pub(crate) fn stop_and_leave_nothing(&mut self) {
        self.stop();
        let left = || [left_of(self.dir.path()), left_of(&self.run_dir())].concat();
        // A loop device goes when udev, if there is one, has had its look at it.
        let deadline = Instant::now() + Duration::from_secs(5);
        while !left().is_empty() && Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(50));
        }
        assert_eq!(left(), Vec::<String>::new(), "{}", tail(&self.log()));
        assert!(!self.run_dir().exists(), "the run directory {} is left", self.run_dir().display());
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("thinsnap.sock")
    }

    /// Where its pool-host listens.
    pub(crate) fn host_socket(&self) -> PathBuf {
        self.run_dir().join("host.sock")
    }

    /// A directory for the test's own files, which goes away with the service.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The pool's metadata.
    pub(crate) fn metadata(&self) -> PathBuf {
        self.root().join("pool/metadata")
    }

    /// Runs a command line of ours with `--json` against the service.
    pub(crate) fn thinsnap(&self, words: &str) -> Value {
        let mut command = program(THINSNAP);
        command.arg("--json").arg("--socket").arg(self.socket()).args(words.split_whitespace());
        let said = must_say(&mut command);
        serde_json::from_str(&said).unwrap_or_else(|e| panic!("{words}: {e} in {said}"))
    }

    /// A number of `pool status`, by its path: `/data/used_bytes`.
    pub(crate) fn status(&self, field: &str) -> u64 {
        let status = self.thinsnap("pool status");
        status.pointer(field).and_then(Value::as_u64).unwrap_or_else(|| panic!("{field} is no number in {status:#}"))
    }

    /// Waits until the devices of removed snapshots are gone; panics with who keeps them.
    pub(crate) fn wait_for_limbo(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while self.status("/limbo") > 0 {
            assert!(
                Instant::now() < deadline,
                "waited {limit:?} in vain for the removed devices to go: {:#}\n{}",
                self.thinsnap("pool why-full"),
                holders_of(&self.run_dir()).join("\n")
            );
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Loop devices of the pool.
    pub(crate) fn loops(&self) -> Vec<PathBuf> {
        super::leftovers::loops_of(&self.run_dir())
    }

    /// Its root directory.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn run_dir(&self) -> PathBuf {
        run_dir_of(&self.root())
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn command(&self) -> Command {
        let mut log = File::options();
        let log = log.create(true).append(true).open(self.log()).expect("a log can be opened");
        let mut command = Command::new(&self.program);
        command.arg("serve").arg("--root").arg(self.root()).arg("--socket").arg(self.socket());
        command.args(["--size", "10G", "--engine", &self.engine]).arg("--config").arg(&self.config);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let ended = self.daemon.as_mut().map(Child::try_wait);
            eprintln!("the service: {ended:?} (None: it runs)");
            eprintln!("the service's log:\n{}", tail(&self.log()));
            eprintln!("the pool-host's log:\n{}", tail(&self.run_dir().join("host.log")));
        }
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        // A connection that only the supervisor holds would keep everybody waiting who comes near it.
        drop(self.supervisor.take());
        clear(&self.run_dir());
        clear(self.dir.path());
        let _ = fs::remove_dir_all(self.run_dir());
    }
}
