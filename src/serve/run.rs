//! The composition root: configuration → backend → sockets → ready; and the way down.
//!
//! Going down in order is a courtesy, not a need: killed at any moment, the service loses nothing, because
//! every answer that it gave stands in the store and in the pool, and the pool-host lives on.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use thinsnap_pool::StopOutcome;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::{Request, Status};

use crate::admin::api::admin_server::AdminServer;
use crate::admin::{AdminService, Backend, Keeping, PoolMissing, require_root, socket_link_of};
use crate::config::{Config, SnapshotPeers};
use crate::error::{Error, ErrorKind, Result};
use crate::grpc::snapshots_api::snapshots_server::SnapshotsServer;
use crate::grpc::{BlockingCalls, MESSAGE_SIZE_MAX, SnapshotsService};
use crate::serve::incoming::Incoming;
use crate::serve::notify::SupervisorStore;
use crate::serve::socket::{Link, Passed, listen_at, passed, stored_name};
use crate::serve::{backups, health, log, notify};
use crate::watch::RoomWatch;

/// How long calls may take to finish after the signal to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Slow calls of the admin service at one time.
const ADMIN_CALLS_MAX: usize = 64;
/// Threads of the runtime: they convert messages, everything else is on blocking threads.
const WORKERS: usize = 2;

/// Serves until SIGTERM or SIGINT.
pub fn run(config: &Config) -> Result<()> {
    log::start(&config.log_level, config.log_format)?;
    let name = stored_name(&config.root);
    let Passed { socket, stored } = passed(&name)?;
    let keeping = Keeping { descriptors: stored, store: Arc::new(SupervisorStore::new(name)) };
    let backend = Backend::open_keeping(config, PoolMissing::Create, keeping)?;
    serve(config, socket, Arc::new(backend))
}

fn serve(config: &Config, activated: Option<UnixListener>, backend: Arc<Backend>) -> Result<()> {
    let served = listen_and_serve(config, activated, &backend);
    notify::notify("STOPPING=1");
    let Some(backend) = Arc::into_inner(backend) else {
        tracing::warn!("a call is still running: the pool-host is left to end by itself");
        return served;
    };
    // The devices that nobody has open go away with the host; the others keep it alive for the next service.
    match backend.close() {
        Ok(StopOutcome::Stopping) => tracing::info!("stopped"),
        Ok(StopOutcome::Busy(devices)) => {
            tracing::info!(open = devices.len(), "stopped; devices are in use: their pool-host stays");
        }
        Err(error) if served.is_ok() => return Err(error),
        Err(error) => tracing::warn!(%error, "the pool-host did not end in order"),
    }
    served
}

fn listen_and_serve(config: &Config, activated: Option<UnixListener>, backend: &Arc<Backend>) -> Result<()> {
    let (_socket, listener) = match activated {
        Some(listener) => (None, listener),
        None => {
            let (socket, listener) = listen_at(&config.socket)?;
            (Some(socket), listener)
        }
    };
    listener.set_nonblocking(true).map_err(|error| Error::io("prepare the socket", error))?;
    let address = listener.local_addr().map_err(|error| Error::io("read the socket's address", error))?;
    let path = address.as_pathname().unwrap_or(&config.socket.path).to_owned();
    let _link = Link::make(socket_link_of(&config.run_dir), &path)?;

    let pool = Arc::clone(backend.snapshotter().pool());
    // Ends before the runtime's calls are cut off: it interrupts its own wait in the pool.
    let _watch = RoomWatch::start(pool, config.room)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("serve")
        .enable_all()
        .build()
        .map_err(|error| Error::io("start the service's threads", error))?;
    let served = runtime.block_on(async {
        let stop = Stop::listen()?;
        let listener = tokio::net::UnixListener::from_std(listener)
            .map_err(|error| Error::io("hand the socket to the runtime", error))?;
        tracing::info!(socket = %path.display(), root = %config.root.display(), "serving");
        notify::notify("READY=1");
        answer_calls(listener, config, backend, stop).await
    });
    // A call that is still running is cut off as by SIGKILL, which every verb survives.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

async fn answer_calls(
    listener: tokio::net::UnixListener,
    config: &Config,
    backend: &Arc<Backend>,
    mut stop: Stop,
) -> Result<()> {
    let calls = BlockingCalls::default();
    let snapshots = SnapshotsServer::new(SnapshotsService::new(Arc::clone(backend.snapshotter()), calls))
        .max_decoding_message_size(MESSAGE_SIZE_MAX)
        .max_encoding_message_size(MESSAGE_SIZE_MAX);
    let snapshots = InterceptedService::new(snapshots, peers(config.socket.snapshots));
    // Permits of their own: readers of the socket's group never take those of containerd's calls.
    let admin_calls = BlockingCalls::of(ADMIN_CALLS_MAX);
    let admin = AdminServer::new(AdminService::new(Arc::clone(backend), admin_calls))
        .max_decoding_message_size(MESSAGE_SIZE_MAX)
        .max_encoding_message_size(MESSAGE_SIZE_MAX);
    let (reporter, health_service) = tonic_health::server::health_reporter();
    health::register(&reporter).await;
    let following = tokio::spawn(health::follow(reporter, Arc::clone(backend)));
    let backing_up = tokio::spawn(backups::keep(Arc::clone(backend), config.backup.interval));

    let (drain, draining) = tokio::sync::oneshot::channel::<()>();
    let server = Server::builder()
        .add_service(snapshots)
        .add_service(admin)
        .add_service(health_service)
        .serve_with_incoming_shutdown(Incoming::new(listener), async {
            // Dropped or sent: either way it is time.
            drop(draining.await);
        });
    tokio::pin!(server);
    let failed = |error| Err(Error::with_source(ErrorKind::Internal, "serve the socket", error));
    let served = tokio::select! {
        ended = &mut server => ended.or_else(failed),
        name = stop.asked() => {
            tracing::info!(signal = name, "stopping");
            drop(drain);
            tokio::select! {
                ended = &mut server => ended.or_else(failed),
                () = tokio::time::sleep(DRAIN_TIMEOUT) => {
                    tracing::warn!(waited = ?DRAIN_TIMEOUT, "calls are still running: cutting them off");
                    Ok(())
                }
                name = stop.asked() => {
                    tracing::warn!(signal = name, "asked again: cutting off what is running");
                    Ok(())
                }
            }
        }
    };
    following.abort();
    backing_up.abort();
    served
}

/// Who may call containerd's service: decided by whom the kernel says is at the other end of the connection.
fn peers(allowed: SnapshotPeers) -> impl FnMut(Request<()>) -> std::result::Result<Request<()>, Status> + Clone {
    move |request| match allowed {
        SnapshotPeers::Root => {
            require_root("snapshots", &request)?;
            Ok(request)
        }
        SnapshotPeers::Connected => Ok(request),
    }
}

/// The signals that end the service.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn listen() -> Result<Self> {
        let open = |kind| signal(kind).map_err(|error| Error::io("listen for signals", error));
        Ok(Self { terminate: open(SignalKind::terminate())?, interrupt: open(SignalKind::interrupt())? })
    }

    async fn asked(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
