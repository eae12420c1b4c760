//! gRPC messages, from bytes through the services themselves: containerd's Snapshots and our own Admin.
//!
//! An input is a row of calls: a byte for the verb, a length (2 bytes), and that many bytes of the message.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use prost::Message;
use tempfile::TempDir;
use thinsnap::admin::api::admin_server::Admin;
use thinsnap::admin::{AdminService, Backend, PoolMissing, create_pool, host_socket_of};
use thinsnap::config::{Config, Overrides};
use thinsnap::error::Result;
use thinsnap::fs::Filesystems;
use thinsnap::grpc::snapshots_api::snapshots_server::Snapshots;
use thinsnap::grpc::{BlockingCalls, SnapshotsService};
use thinsnap::snapshot::{FsType, Labels, Name, Space};
use thinsnap::snapshotter::{Parts, Snapshotter};
use thinsnap::store::Store;
use thinsnap_pool::ByteCount;
use tokio::runtime::Runtime;
use tokio_stream::StreamExt;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};

use crate::fake_pool::FakePool;
use crate::host::start_host;
use crate::scratch::scratch;

/// Most calls of one input.
const CALLS_MAX: usize = 16;

/// The calls of an input.
fn calls(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut calls = Vec::new();
    while let [verb, low, high, rest @ ..] = bytes {
        let (message, behind) = rest.split_at(usize::from(u16::from_le_bytes([*low, *high])).min(rest.len()));
        calls.push((*verb, message));
        bytes = behind;
        if calls.len() == CALLS_MAX {
            break;
        }
    }
    calls
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let built = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        built.expect("threads for the services")
    })
}

/// Calls a verb with a message, if the bytes are one. A refusal says why.
macro_rules! call {
    ($service:expr, $verb:ident, $bytes:expr) => {
        match Message::decode($bytes) {
            Ok(message) => judge($service.$verb(from_root(message)).await).is_some(),
            Err(_) => false,
        }
    };
}

/// The same for a verb that answers with a stream, which is read to its end.
macro_rules! call_stream {
    ($service:expr, $verb:ident, $bytes:expr) => {
        match Message::decode($bytes) {
            Ok(message) => match judge($service.$verb(from_root(message)).await) {
                Some(mut replies) => {
                    while let Some(reply) = replies.next().await {
                        judge(reply.map(Response::new));
                    }
                    false
                }
                None => false,
            },
            Err(_) => false,
        }
    };
}

/// A request as root's connection brings it.
fn from_root<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let (ours, _theirs) = tokio::net::UnixStream::pair().expect("a pair of sockets");
    let peer_cred = ours.peer_cred().ok();
    request.extensions_mut().insert(UdsConnectInfo { peer_addr: None, peer_cred });
    request
}

fn judge<T>(answer: std::result::Result<Response<T>, Status>) -> Option<T> {
    match answer {
        Ok(answer) => Some(answer.into_inner()),
        Err(status) => {
            assert!(!status.message().is_empty(), "a refusal without a reason");
            // The services catch panics of their verbs and say so; for us they are findings.
            assert!(!status.message().contains("not written for"), "a verb panicked: {status}");
            None
        }
    }
}

/// File systems that are always in order.
struct NoFilesystems;

impl Filesystems for NoFilesystems {
    fn make(&self, _fs: FsType, _device: &Path, _size: ByteCount) -> Result<()> {
        Ok(())
    }

    fn grow(&self, _fs: FsType, _device: &Path) -> Result<()> {
        Ok(())
    }

    fn needs_replay(&self, _fs: FsType, _device: &Path) -> Result<bool> {
        Ok(false)
    }

    fn replay(&self, _fs: FsType, _device: &Path) -> Result<()> {
        Ok(())
    }

    fn sync_mounted(&self, _device: &Path) -> Result<bool> {
        Ok(false)
    }

    fn limit_dirty(&self, _device: &Path, _max: ByteCount) -> Result<()> {
        Ok(())
    }
}

/// A snapshotter over a pool without bytes, with a snapshot of each kind in the space `s`: `a` active, `l` a layer, `v` a
/// view of it.
struct Small {
    service: SnapshotsService,
    _dir: TempDir,
}

impl Small {
    fn new() -> Self {
        let dir = scratch();
        let config = config(dir.path());
        let store = Store::open(&dir.path().join("store.redb")).expect("a new store");
        let parts = Parts { filesystems: Arc::new(NoFilesystems), reclaim_threads: 0 };
        let pool = Arc::new(FakePool::default());
        let snapshotter = Snapshotter::open_with(pool, store, config.snapshotter, parts).expect("a new snapshotter");
        let (space, name) = (Space::new("s").expect("good"), |text: &str| Name::new(text).expect("good"));
        let none = Labels::new;
        snapshotter.prepare(&space, &name("k"), None, none()).expect("room for a snapshot");
        snapshotter.commit(&space, &name("l"), &name("k"), none(), None).expect("an active snapshot is committed");
        snapshotter.prepare(&space, &name("a"), Some(&name("l")), none()).expect("room for a snapshot");
        snapshotter.view(&space, &name("v"), Some(&name("l")), none()).expect("room for a view");
        Self { service: SnapshotsService::new(snapshotter, BlockingCalls::default()), _dir: dir }
    }
}

fn config(root: &Path) -> Config {
    let overrides = Overrides { root: Some(root.to_owned()), size: Some(ByteCount(1 << 30)), ..Overrides::default() };
    let text = format!("run_dir = {:?}", root.join("run").to_string_lossy());
    Config::parse(&text, overrides).expect("a good configuration")
}

/// Calls containerd's service with any messages.
pub fn snapshot_messages(bytes: &[u8]) {
    static SMALL: Mutex<Option<Small>> = Mutex::new(None);
    let mut small = SMALL.lock().unwrap_or_else(PoisonError::into_inner);
    let world = small.get_or_insert_with(Small::new);
    let service = &world.service;
    let changed = runtime().block_on(async {
        let mut changed = false;
        for (verb, bytes) in calls(bytes) {
            let answered = match verb % 10 {
                0 => call!(service, prepare, bytes),
                1 => call!(service, view, bytes),
                2 => call!(service, commit, bytes),
                3 => call!(service, remove, bytes),
                4 => call!(service, update, bytes),
                5 => call!(service, mounts, bytes),
                6 => call!(service, stat, bytes),
                7 => call_stream!(service, list, bytes),
                8 => call!(service, usage, bytes),
                _ => call!(service, cleanup, bytes),
            };
            changed |= answered && verb % 10 < 5;
        }
        changed
    });
    if changed {
        // Every input begins with the same snapshots, so that a finding needs no history.
        *small = None;
    }
}

/// The whole service above a host in this process, whose pool has no room: no call makes anything.
struct Whole {
    service: AdminService,
    _dir: TempDir,
}

fn whole() -> &'static Whole {
    static WHOLE: OnceLock<Whole> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let dir = scratch();
        let config = config(&dir.path().join("root"));
        create_pool(&config).expect("room for a sparse pool");
        std::fs::create_dir_all(&config.run_dir).expect("a scratch directory");
        start_host(&host_socket_of(&config.run_dir), FakePool::full());
        let backend = Backend::open(&config, PoolMissing::Refuse).expect("the host in this process is adopted");
        Whole { service: AdminService::new(Arc::new(backend), BlockingCalls::default()), _dir: dir }
    })
}

/// Calls the admin service with any messages. Left out is what would open any path of the machine: import and mount.
pub fn admin_messages(bytes: &[u8]) {
    let service = &whole().service;
    runtime().block_on(async {
        for (verb, bytes) in calls(bytes) {
            let _made: bool = match verb % 17 {
                0 => call!(service, service_info, bytes),
                1 => call!(service, pool_status, bytes),
                2 => call!(service, pool_grow, bytes),
                3 => call_stream!(service, snapshot_list, bytes),
                4 => call!(service, snapshot_prepare, bytes),
                5 => call!(service, snapshot_view, bytes),
                6 => call!(service, snapshot_mounts, bytes),
                7 => call!(service, snapshot_commit, bytes),
                8 => call!(service, snapshot_remove, bytes),
                9 => call!(service, snapshot_stat, bytes),
                10 => call!(service, snapshot_usage, bytes),
                11 => call!(service, image_list, bytes),
                12 => call!(service, image_remove, bytes),
                13 => call!(service, container_create, bytes),
                14 => call!(service, container_list, bytes),
                15 => call!(service, container_unmount, bytes),
                _ => call!(service, container_remove, bytes),
            };
        }
    });
}
