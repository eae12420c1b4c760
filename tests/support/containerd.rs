//! A private containerd of any of Debian's releases, with its own root, state, sockets, shims and namespace.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use super::leftovers;
use super::packages::fetched;
use super::process::{ReadySocket, must, must_say, program, told};

/// What a script says last.
const HEARD: &str = "-- heard? --";

/// The containerd releases that Debian ships, each a client generation of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Release {
    /// 1.6, of bookworm.
    V1_6,
    /// 1.7, of trixie.
    V1_7,
    /// 2.x, of sid.
    V2,
}

impl Release {
    fn suite(self) -> &'static str {
        match self {
            Self::V1_6 => "bookworm",
            Self::V1_7 => "trixie",
            Self::V2 => "sid",
        }
    }

    /// What `containerd --version` must say.
    fn version(self) -> &'static str {
        match self {
            Self::V1_6 => " 1.6.",
            Self::V1_7 => " 1.7.",
            Self::V2 => "/v2 2.",
        }
    }
}

/// A running containerd; taken down with its containers, mounts and shims when dropped.
pub(crate) struct Containerd {
    dir: PathBuf,
    bin: PathBuf,
    path: String,
    namespace: String,
    daemon: Child,
}

impl Containerd {
    /// Starts the release below `dir` with a proxy plugin of each name on the snapshotter's socket.
    pub(crate) fn start(release: Release, dir: &Path, plugins: &[&str], socket: &Path) -> Self {
        let bin = fetched(release.suite(), &["containerd"], &format!("containerd-{}", release.suite())).join("usr/bin");
        let said = must_say(program(bin.join("containerd")).arg("--version"));
        assert!(said.contains(release.version()), "{release:?} is {said}");
        // bookworm's runc works with all of them; the shim must be of containerd's own release.
        let runc = fetched("bookworm", &["runc"], "runc-bookworm").join("usr/sbin");
        let path = format!(
            "{}:{}:{}",
            bin.display(),
            runc.display(),
            std::env::var("PATH").expect("the tests run with a PATH")
        );
        fs::create_dir_all(dir).expect("a directory for containerd can be made");
        fs::write(dir.join("config.toml"), config(dir, plugins, socket)).expect("its config can be written");
        // runc and cgroups know containers by namespace and id, machine-wide.
        let namespace = dir.display().to_string().trim_start_matches('/').replace(['/', '.'], "-");
        let daemon = spawn(&bin, &path, dir);
        Self { dir: dir.to_path_buf(), bin, path, namespace, daemon }
    }

    /// Kills the daemon and starts it again; containers go on running under their shims meanwhile.
    pub(crate) fn restart(&mut self) {
        self.daemon.kill().expect("our child can be killed");
        self.daemon.wait().expect("our child can be waited for");
        self.daemon = spawn(&self.bin, &self.path, &self.dir);
    }

    /// A `ctr` command on this containerd in the tests' namespace.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = program(self.bin.join("ctr"));
        command.arg("-a").arg(self.dir.join("c.sock")).args(["-n", &self.namespace]).args(args);
        command.env("PATH", &self.path).stdin(Stdio::null());
        command
    }

    /// Runs `ctr` with words separated by blanks; panics if it fails. Returns its stdout.
    pub(crate) fn ctr(&self, words: &str) -> String {
        self.ctr_args(&words.split_whitespace().collect::<Vec<_>>())
    }

    /// As [`Self::ctr`], for words that hold blanks.
    pub(crate) fn ctr_args(&self, args: &[&str]) -> String {
        let mut command = self.command(args);
        let output = command.output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
        assert!(output.status.success(), "{}\ncontainerd: {}", told(&command, &output), self.complaints());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// As [`Self::ctr`], for output that is no text.
    pub(crate) fn ctr_bytes(&self, words: &str) -> Vec<u8> {
        must(&mut self.command(&words.split_whitespace().collect::<Vec<_>>()))
    }

    /// As [`Self::ctr`], for commands that may fail.
    pub(crate) fn try_ctr(&self, words: &str) -> Output {
        let mut command = self.command(&words.split_whitespace().collect::<Vec<_>>());
        command.output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"))
    }

    /// Runs a shell script in a running container; its stdout.
    pub(crate) fn exec(&self, container: &str, id: &str, script: &str) -> String {
        self.script(&["tasks", "exec", "--exec-id", id, container], script)
    }

    /// Runs a shell script by a `ctr` command that starts a process; its stdout. The process lives until it was heard: ctr
    /// drops what one says that ends before ctr has opened its pipes.
    pub(crate) fn script(&self, args: &[&str], script: &str) -> String {
        let script = format!("{script}\necho {HEARD}; read -r _");
        let mut command = self.command(&[args, &["/bin/sh", "-ec", &script]].concat());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut ctr = command.spawn().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
        let mut stdin = ctr.stdin.take().expect("it is piped");
        let mut said = BufReader::new(ctr.stdout.take().expect("it is piped"));
        let mut text = Vec::new();
        while said.read_until(b'\n', &mut text).expect("its output can be read") > 0 {
            if let Some(heard) = text.strip_suffix(format!("{HEARD}\n").as_bytes()) {
                text.truncate(heard.len());
                stdin.write_all(b"\n").expect("it reads a line");
                break;
            }
        }
        let mut output = ctr.wait_with_output().expect("our child can be waited for");
        output.stdout = text;
        assert!(output.status.success(), "{}\ncontainerd: {}", told(&command, &output), self.complaints());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Collects garbage and waits for the end of it: the removal of a lease can be asked to wait for a pass.
    pub(crate) fn collect_garbage(&self) {
        self.ctr("leases create --id collect");
        self.ctr("leases rm --sync collect");
    }

    /// Warnings and errors of its log, for a failure's text and for the proof that there are none.
    pub(crate) fn complaints(&self) -> String {
        let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().filter(|l| l.contains("level=warn") || l.contains("level=error")).collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let tasks = self.try_ctr("tasks ls -q");
        for task in String::from_utf8_lossy(&tasks.stdout).split_whitespace() {
            self.try_ctr(&format!("tasks rm -f {task}"));
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        leftovers::clear(&self.dir);
        remove_cgroups(&self.namespace);
        let _ = fs::remove_dir(Path::new("/run/containerd/runc").join(&self.namespace));
    }
}

fn spawn(bin: &Path, path: &str, dir: &Path) -> Child {
    let log = fs::File::options().create(true).append(true).open(dir.join("log")).expect("a log can be opened");
    let mut command = Command::new(bin.join("containerd"));
    command.arg("-c").arg(dir.join("config.toml")).env("PATH", path).stdin(Stdio::null());
    command.stdout(log.try_clone().expect("a file can be cloned")).stderr(log);
    let ready = ReadySocket::bind(&dir.join("ready"), &mut command);
    let mut daemon = command.spawn().expect("containerd can be started");
    ready.wait(&mut daemon, &dir.join("log"));
    daemon
}

/// Everything below `dir`; no CRI; 2.x unpacks imports itself and must be told for which snapshotters.
fn config(dir: &Path, plugins: &[&str], socket: &Path) -> String {
    let dir = dir.display();
    let mut text = format!(
        "version = 2\nroot = \"{dir}/root\"\nstate = \"{dir}/state\"\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
         [grpc]\naddress = \"{dir}/c.sock\"\n[ttrpc]\naddress = \"{dir}/c.sock.ttrpc\"\n"
    );
    for plugin in plugins {
        let socket = socket.display();
        text += &format!("[proxy_plugins.{plugin}]\ntype = \"snapshot\"\naddress = \"{socket}\"\n");
    }
    for plugin in plugins {
        text += &format!(
            "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n\
             platform = \"linux/amd64\"\nsnapshotter = \"{plugin}\"\ndiffer = \"walking\"\n"
        );
    }
    text
}

/// Removes the empty cgroups that runc leaves for a namespace.
fn remove_cgroups(namespace: &str) {
    let Ok(entries) = fs::read_dir("/sys/fs/cgroup") else { return };
    for entry in entries.flatten() {
        let _ = fs::remove_dir(entry.path().join(namespace));
    }
    let _ = fs::remove_dir(Path::new("/sys/fs/cgroup").join(namespace));
}
