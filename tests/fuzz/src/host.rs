//! What the pool host and its clients say to each other: a real host and a real client, each facing a stranger.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use thinsnap_pool::{
    Access, ByteCount, ConnectOptions, DeviceId, Exporter, HostClient, HostOptions, Result, ThinPool, Volume, run_host,
};

use crate::fake_pool::FakePool;
use crate::scratch::scratch;

/// Longest wait for an answer; whoever lets us wait longer hangs.
const PATIENCE: Duration = Duration::from_secs(5);

/// The first frame of a client: length, magic, version. It is for the client to find out that versions differ.
const HELLO: &[u8] = &[12, 0, 0, 0, b't', b'h', b'i', b'n', b'p', b'o', b'o', b'l', 1, 0, 0, 0];

/// Shows no device, and says that one is open: so no request ends the host.
struct BusyExporter;

impl Exporter for BusyExporter {
    fn attach(&self, id: DeviceId, _volume: Arc<dyn Volume>, _size: ByteCount, _access: Access) -> Result<PathBuf> {
        Ok(PathBuf::from(format!("/nowhere/{id}")))
    }

    fn resize(&self, _id: DeviceId, _size: ByteCount) -> Result<()> {
        Ok(())
    }

    fn detach(&self, _id: DeviceId) -> Result<bool> {
        Ok(false)
    }

    fn path(&self, _id: DeviceId) -> Option<PathBuf> {
        None
    }

    fn attached(&self) -> Vec<(DeviceId, bool)> {
        vec![(DeviceId::new(1).expect("a good id"), true)]
    }

    fn shutdown(&self) -> Result<()> {
        Ok(())
    }
}

/// A host that serves for as long as the process lives, and a client of it that behaves.
struct Host {
    socket: PathBuf,
    client: HostClient,
    _dir: TempDir,
}

fn host() -> &'static Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(|| {
        let dir = scratch();
        let socket = dir.path().join("host.sock");
        start_host(&socket, FakePool::default());
        Host { client: connect(&socket).expect("the host answers"), socket, _dir: dir }
    })
}

/// Starts a host of a pool in this process, and waits until it listens.
pub(crate) fn start_host(socket: &Path, pool: FakePool) {
    let options = HostOptions { socket: socket.to_owned(), idle_after: Duration::from_secs(3600), supervised: false };
    std::thread::spawn(move || {
        let opened = |_| Ok((Arc::new(pool) as Arc<dyn ThinPool>, Arc::new(BusyExporter) as Arc<dyn Exporter>));
        let ended = run_host(&options, opened);
        panic!("the host has ended: {ended:?}");
    });
    let deadline = Instant::now() + PATIENCE;
    while UnixStream::connect(socket).is_err() {
        assert!(Instant::now() < deadline, "the host does not listen");
        std::thread::yield_now();
    }
}

fn connect(socket: &Path) -> Result<HostClient> {
    HostClient::connect(ConnectOptions {
        socket: socket.to_owned(),
        identity: None,
        handshake_timeout: PATIENCE,
        patience: Duration::ZERO,
    })
}

/// Says anything to a host. The first byte says whether a good hello comes first (1). The host must end the
/// connection when we do, and go on serving others.
pub fn host_requests(bytes: &[u8]) {
    let Some((how, bytes)) = bytes.split_first() else { return };
    let host = host();
    let mut stream = UnixStream::connect(&host.socket).expect("the host takes connections");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket has timeouts");
    stream.set_write_timeout(Some(PATIENCE)).expect("a socket has timeouts");
    // A host that has heard enough closes: then the rest is not read, and writing fails.
    let said = if how & 1 != 0 { stream.write_all(HELLO) } else { Ok(()) };
    drop(said.and_then(|()| stream.write_all(bytes)).and_then(|()| stream.shutdown(Shutdown::Write)));
    let mut heard = Vec::new();
    if let Err(error) = stream.read_to_end(&mut heard) {
        let hung = matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut);
        assert!(!hung, "the host neither answers nor ends the connection");
    }
    host.client.status().expect("the host serves others");
}

/// What the stranger in the host's place says next: pieces of an input.
type Script = Vec<Vec<u8>>;

/// A stranger in the place of a host: answers each connection with the script that was sent for it.
struct Stranger {
    socket: PathBuf,
    script: Mutex<Sender<Script>>,
    welcome: Vec<u8>,
    _dir: TempDir,
}

fn stranger() -> &'static Stranger {
    static STRANGER: OnceLock<Stranger> = OnceLock::new();
    STRANGER.get_or_init(|| {
        let dir = scratch();
        let socket = dir.path().join("stranger.sock");
        let listener = UnixListener::bind(&socket).expect("a scratch socket");
        let (script, scripts) = channel();
        std::thread::spawn(move || lie(&listener, &scripts));
        // A real host's welcome, to get past it.
        let mut stream = UnixStream::connect(&host().socket).expect("the host takes connections");
        stream.write_all(HELLO).expect("the host listens");
        let welcome = read_frame(&mut stream).expect("the host welcomes");
        Stranger { socket, script: Mutex::new(script), welcome, _dir: dir }
    })
}

/// A frame with its length.
fn read_frame(stream: &mut UnixStream) -> std::io::Result<Vec<u8>> {
    let mut len = [0; 4];
    stream.read_exact(&mut len)?;
    let mut frame = vec![0; usize::try_from(u32::from_le_bytes(len)).map_err(std::io::Error::other)?];
    stream.read_exact(&mut frame)?;
    Ok([len.as_slice(), &frame].concat())
}

fn lie(listener: &UnixListener, scripts: &Receiver<Script>) {
    let mut script = Script::new();
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        if let Ok(next) = scripts.try_recv() {
            script = next;
        }
        for piece in &script {
            // It asks, we answer; it may have gone.
            if read_frame(&mut stream).is_err() || stream.write_all(piece).is_err() || !is_whole(piece) {
                break;
            }
        }
    }
}

/// True for one frame with its length. Anything else ends the talk: a client waits for a host that is in the middle of an
/// answer for as long as that lives.
fn is_whole(piece: &[u8]) -> bool {
    piece.split_first_chunk().is_some_and(|(len, body)| u32::from_le_bytes(*len) as usize == body.len())
}

/// Answers a client with anything. The first byte says whether a good welcome comes first (1); then come pieces of a
/// length (2 bytes) and that many bytes, each the answer to one question; with (2) each is framed by its length.
/// A piece that is not one frame ends the connection.
pub fn host_answers(bytes: &[u8]) {
    let Some((how, mut rest)) = bytes.split_first() else { return };
    let stranger = stranger();
    let mut script = Script::new();
    if how & 1 != 0 {
        script.push(stranger.welcome.clone());
    }
    while let [low, high, piece @ ..] = rest {
        let (piece, behind) = piece.split_at(usize::from(u16::from_le_bytes([*low, *high])).min(piece.len()));
        let len = u32::try_from(piece.len()).expect("less than 64 KiB").to_le_bytes();
        script.push(if how & 2 != 0 { [len.as_slice(), piece].concat() } else { piece.to_vec() });
        rest = behind;
    }
    let sender = stranger.script.lock().unwrap_or_else(PoisonError::into_inner);
    sender.send(script).expect("the stranger lives");
    drop(sender);
    let Ok(client) = connect(&stranger.socket) else { return };
    let id = DeviceId::new(1).expect("a good id");
    // Errors are answers too; what counts is that one comes.
    drop(client.status());
    drop(client.devices());
    drop(client.delta(id, id));
    drop(client.usage(id));
    drop(client.activate(id, ByteCount(1 << 20), Access::ReadWrite));
}
