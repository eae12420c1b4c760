//! A pool-host for tests: this test program, started once more as one.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, dup2_stdout};
use thinsnap_pool::{
    BlockSize, ByteCount, ConnectOptions, CreateOptions, EmbeddedOptions, Error, ErrorKind, ExportOptions, Exporter,
    HostClient, HostOptions, PoolPaths, Result, SpawnOptions, StopOutcome, ThinPool, begin_export, connect_or_spawn,
    create, open_embedded, run_host,
};

use crate::shown_by::{TEST_EXPORT, by_ublk, wanted_export};

/// The ignored test that every user of this file must have; it calls [`be_the_host`].
const HOST_TEST: &str = "the_host_process";
const DIR: &str = "HOST_TEST_DIR";
const IDLE_MS: &str = "HOST_TEST_IDLE_MS";
const WAIT: Duration = Duration::from_secs(60);

/// A directory with a pool in it, and the host that serves it; both go, whatever the test does.
pub(crate) struct HostDir {
    dir: tempfile::TempDir,
    idle_after: Duration,
    /// `fuse` or `ublk`.
    export: &'static str,
}

impl HostDir {
    /// A new pool of `size`; its host ends by itself after `idle_after` without clients.
    pub(crate) fn new(size: ByteCount, idle_after: Duration) -> Self {
        Self::shown(size, idle_after, if by_ublk() { "ublk" } else { "fuse" })
    }

    /// As [`HostDir::new`], with ublk devices whatever this run is about.
    pub(crate) fn by_ublk(size: ByteCount, idle_after: Duration) -> Self {
        Self::shown(size, idle_after, "ublk")
    }

    fn shown(size: ByteCount, idle_after: Duration, export: &'static str) -> Self {
        // Not the default place, which may be a tmpfs without direct I/O.
        let dir = tempfile::tempdir_in(std::env::var_os("TMPDIR").unwrap_or_else(|| "/var/tmp".into())).unwrap();
        let paths = PoolPaths::in_dir(&dir.path().join("pool"));
        create(&CreateOptions { paths, data_size: Some(size), metadata_size: None, block_size: BlockSize::DEFAULT })
            .unwrap();
        Self { dir, idle_after, export }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn connect_options(&self) -> ConnectOptions {
        ConnectOptions {
            socket: self.path().join("sock"),
            identity: None,
            handshake_timeout: WAIT,
            patience: Duration::ZERO,
        }
    }

    pub(crate) fn spawn_options(&self) -> SpawnOptions {
        // The test harness writes to standard output, which is the pipe to the starter: the pipe waits at 3. And
        // the harness has a thread of its own, so the signals are blocked before it starts.
        let script = r#"exec 3>&1 >/dev/null; exec "$0" "$@""#;
        let idle = self.idle_after.as_millis().to_string();
        let args = [
            "--block-signal=TERM,INT,HUP".into(),
            setting(DIR, self.path()),
            setting(IDLE_MS, &idle),
            setting(TEST_EXPORT, self.export),
        ];
        let shell = ["sh", "-c", script].map(OsString::from);
        let program = std::env::current_exe().unwrap().into_os_string();
        let harness = [HOST_TEST, "--exact", "--ignored", "--nocapture"].map(OsString::from);
        SpawnOptions {
            connect: self.connect_options(),
            program: PathBuf::from("/usr/bin/env"),
            args: args.into_iter().chain(shell).chain([program]).chain(harness).collect(),
            run_dir: self.path().to_path_buf(),
            start_timeout: WAIT,
        }
    }

    /// Adopts the host or starts it.
    pub(crate) fn host(&self) -> HostClient {
        connect_or_spawn(&self.spawn_options()).unwrap_or_else(|e| panic!("{e}; log: {}", self.log()))
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path().join("host.log")).unwrap_or_default()
    }

    /// Asks the host to end and waits until it has.
    pub(crate) fn stop(client: &HostClient) {
        assert_eq!(client.stop_if_idle().unwrap(), StopOutcome::Stopping);
        assert!(client.wait_gone(Instant::now() + WAIT).unwrap(), "the host did not end");
    }
}

impl Drop for HostDir {
    fn drop(&mut self) {
        // A test that failed may leave its host.
        let Ok(client) = HostClient::connect(self.connect_options()) else { return };
        if !matches!(client.stop_if_idle(), Ok(StopOutcome::Stopping)) {
            let _ = kill(process(&client), Signal::SIGKILL);
            let _ = nix::mount::umount2(&self.path().join("export"), nix::mount::MntFlags::MNT_DETACH);
        }
        let _ = client.wait_gone(Instant::now() + WAIT);
    }
}

pub(crate) fn process(client: &HostClient) -> Pid {
    Pid::from_raw(i32::try_from(client.info().pid).unwrap())
}

fn setting(name: &str, value: impl AsRef<std::ffi::OsStr>) -> OsString {
    let mut text = OsString::from(name);
    text.push("=");
    text.push(value);
    text
}

/// The directory of the process that plays a part of another test.
pub(crate) fn dir_of_part() -> PathBuf {
    PathBuf::from(std::env::var_os(DIR).expect("started by another test"))
}

/// The whole life of the other process.
pub(crate) fn be_the_host() {
    let dir = dir_of_part();
    let pipe = OpenOptions::new().write(true).open("/proc/self/fd/3").unwrap();
    dup2_stdout(pipe.as_fd()).unwrap();
    drop(pipe);
    let idle_ms = std::env::var(IDLE_MS).unwrap().parse().unwrap();
    let options =
        HostOptions { socket: dir.join("sock"), idle_after: Duration::from_millis(idle_ms), supervised: true };
    let open = |inherited: Vec<OwnedFd>| -> Result<(Arc<dyn ThinPool>, Arc<dyn Exporter>)> {
        if dir.join("refuse").exists() {
            return Err(Error::new(ErrorKind::NeedsCheck, "open the pool: the test wants it refused"));
        }
        if dir.join("die").exists() {
            eprintln!("last words");
            std::process::exit(7);
        }
        let mut options = ExportOptions::new(dir.join("export"));
        options.alive = Some(dir.join("host.alive"));
        if let Ok(ms) = std::fs::read_to_string(dir.join("no-space-wait-ms")) {
            options.no_space.wait = Duration::from_millis(ms.parse().unwrap());
        }
        let exporter = begin_export(wanted_export(), options, inherited)?;
        let options = EmbeddedOptions { intent_log: Some(dir.join("intent.log")), ..EmbeddedOptions::default() };
        let pool = open_embedded(&PoolPaths::in_dir(&dir.join("pool")), Arc::clone(&exporter), &options)?;
        Ok((pool, exporter))
    };
    if let Err(error) = run_host(&options, open) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}
