//! A supervisor that keeps descriptors for its service, as systemd's store does.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::super::process::tail;

/// What the service has told.
#[derive(Default)]
struct Told {
    ready: u64,
    stored: Vec<(String, OwnedFd)>,
}

#[derive(Default)]
struct Shared {
    told: Mutex<Told>,
    changed: Condvar,
    stop: AtomicBool,
}

/// Listens on a notify socket of its own; what it keeps is closed when it is dropped.
pub(crate) struct Supervisor {
    path: PathBuf,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

impl Supervisor {
    pub(crate) fn new(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("the notify socket can be bound");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket takes a timeout");
        let shared = Arc::new(Shared::default());
        let listener = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                while !shared.stop.load(Ordering::SeqCst) {
                    listen(&socket, &shared);
                }
            }
        });
        Self { path: path.to_owned(), shared, listener: Some(listener) }
    }

    /// How many descriptors are stored.
    pub(crate) fn stored(&self) -> usize {
        self.shared.told.lock().unwrap().stored.len()
    }

    /// Starts the service with what is stored, as its descriptors from 3 on, and waits until it is ready.
    pub(crate) fn start(&self, service: &Command, log: &Path) -> Child {
        let (mut passed, ready) = {
            let told = self.shared.told.lock().unwrap();
            let passed: Vec<_> = told.stored.iter().map(|(name, fd)| (name.clone(), fd.try_clone().unwrap())).collect();
            (passed, told.ready)
        };
        assert!(passed.len() <= 1, "this supervisor passes one descriptor");
        let mut command = Command::new("sh");
        command.env("NOTIFY_SOCKET", &self.path);
        match passed.pop() {
            Some((name, fd)) => {
                command.args(["-c", r#"exec 3<&0 </dev/null; export LISTEN_PID=$$; exec "$0" "$@""#]);
                command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", name).stdin(Stdio::from(fd));
            }
            None => {
                command.args(["-c", r#"exec "$0" "$@""#]).stdin(Stdio::null());
            }
        }
        let output = || std::fs::File::options().create(true).append(true).open(log).unwrap();
        command.arg(service.get_program()).args(service.get_args()).stdout(Stdio::null()).stderr(output());
        let mut child = command.spawn().expect("the service can be started");
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut told = self.shared.told.lock().unwrap();
        while told.ready == ready {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "the service ended ({ended:?}) before it was ready:\n{}", tail(log));
            assert!(Instant::now() < deadline, "the service was not ready in 60 s:\n{}", tail(log));
            told = self.shared.changed.wait_timeout(told, Duration::from_millis(100)).unwrap().0;
        }
        child
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let _ = self.listener.take().map(JoinHandle::join);
    }
}

fn listen(socket: &UnixDatagram, shared: &Shared) {
    let mut text = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = match recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC) {
        Ok(received) => received,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
        Err(errno) => panic!("the notify socket: {errno}"),
    };
    let fds: Vec<OwnedFd> = control
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
            _ => Vec::new(),
        })
        .collect();
    let text = String::from_utf8_lossy(&text[..received.bytes]).into_owned();
    let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or_default().to_owned();
    let mut told = shared.told.lock().unwrap();
    for line in text.lines() {
        match line {
            "READY=1" => told.ready += 1,
            "FDSTOREREMOVE=1" => told.stored.retain(|(stored, _)| *stored != name),
            _ => {}
        }
    }
    if !fds.is_empty() {
        // systemd knows a descriptor of an open file that it has; here the newest is as good.
        told.stored.retain(|(stored, _)| *stored != name);
        told.stored.extend(fds.into_iter().map(|fd| (name.clone(), fd)));
    }
    drop(told);
    shared.changed.notify_all();
}
