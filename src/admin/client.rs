//! A connection to the admin service: to the one that runs, or to one inside this process.
//!
//! With no service running the same service is started here, over an in-memory connection: one code path,
//! and the same locks, so that two command lines and a service never meet in one pool.

use std::os::unix::net::UnixStream as ProbeStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use hyper_util::rt::TokioIo;
use thinsnap_pool::{Engine, Export};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint, Server};
use tower::service_fn;

use crate::admin::backend::{Backend, PoolMissing};
use crate::admin::peer::LocalStream;
use crate::admin::protocol::api::admin_client::AdminClient;
use crate::admin::protocol::api::admin_server::AdminServer;
use crate::admin::server::AdminService;
use crate::config::{Config, Overrides};
use crate::error::{Error, ErrorKind, Result};
use crate::grpc::{BlockingCalls, MESSAGE_SIZE_MAX};

/// Bytes that an in-memory connection holds.
const DUPLEX_SIZE: usize = 256 << 10;

/// Which service is meant.
#[derive(Debug, Clone, Default)]
pub struct Target {
    /// `--socket`: this one and no other.
    pub socket: Option<PathBuf>,
    /// `--root`: the one that serves this directory, or one inside this process.
    pub root: Option<PathBuf>,
    /// `--config`: what else a service inside this process has to know.
    pub config: Option<PathBuf>,
    /// `--engine`, for a service inside this process.
    pub engine: Option<Engine>,
    /// `--export`, for a service inside this process.
    pub export: Option<Export>,
}

/// A connection; [`Connection::close`] ends a service inside this process in good order.
pub struct Connection {
    channel: Channel,
    local: Option<Local>,
}

struct Local {
    backend: Arc<Backend>,
    server: JoinHandle<std::result::Result<(), tonic::transport::Error>>,
    // Dropped to stop the server.
    stop: oneshot::Sender<()>,
}

impl Connection {
    /// Connects. Errors: `Unavailable` if `--socket` names a service that does not answer; `InUse` if another
    /// process has the root open but does not answer; `NotFound` if there is neither service nor pool.
    pub async fn open(target: &Target) -> Result<Self> {
        let config = config_of(target)?;
        let socket = socket_of(target, &config);
        match probe(&socket)? {
            Probe::Alive => Self::over_socket(socket).await,
            Probe::Absent if target.socket.is_some() => {
                Err(Error::new(ErrorKind::Unavailable, format!("no service answers at {}", socket.display()))
                    .advise("start one (thinsnap serve --socket PATH), or leave --socket out"))
            }
            Probe::Absent => Self::in_process(config).await,
        }
    }

    /// True if a service of its own answers; never starts one.
    pub fn service_answers(target: &Target) -> Result<bool> {
        let config = config_of(target)?;
        Ok(matches!(probe(&socket_of(target, &config))?, Probe::Alive))
    }

    /// The service's client.
    #[must_use]
    pub fn client(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_SIZE_MAX)
            .max_encoding_message_size(MESSAGE_SIZE_MAX)
    }

    /// Ends what [`Connection::open`] started.
    pub async fn close(self) -> Result<()> {
        let Self { channel, local } = self;
        drop(channel);
        let Some(Local { backend, server, stop }) = local else { return Ok(()) };
        drop(stop);
        match server.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the in-process service ended with an error"),
            Err(error) => tracing::debug!(%error, "the in-process service was stopped"),
        }
        let Some(backend) = Arc::into_inner(backend) else {
            return Err(Error::new(ErrorKind::Internal, "close the pool: a call is still running"));
        };
        tokio::task::spawn_blocking(move || backend.close())
            .await
            .map_err(|error| Error::with_source(ErrorKind::Internal, "close the pool", error))??;
        Ok(())
    }

    async fn over_socket(socket: PathBuf) -> Result<Self> {
        Ok(Self { channel: channel_to(socket).await?, local: None })
    }

    async fn in_process(config: Config) -> Result<Self> {
        let backend = tokio::task::spawn_blocking(move || Backend::open(&config, PoolMissing::Refuse))
            .await
            .map_err(|error| Error::with_source(ErrorKind::Internal, "open the pool", error))??;
        let backend = Arc::new(backend);
        let (near, far) = tokio::io::duplex(DUPLEX_SIZE);
        let service = AdminServer::new(AdminService::new(Arc::clone(&backend), BlockingCalls::default()))
            .max_decoding_message_size(MESSAGE_SIZE_MAX)
            .max_encoding_message_size(MESSAGE_SIZE_MAX);
        // One connection, and never the end of the list of them: the server ends when it is told to, and then waits
        // for the connection to be done.
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(LocalStream(far))).chain(tokio_stream::pending());
        let (stop, stopped) = oneshot::channel::<()>();
        let server =
            tokio::spawn(Server::builder().add_service(service).serve_with_incoming_shutdown(incoming, async {
                drop(stopped.await);
            }));
        // There is one stream to hand out: the connection never breaks, so it is never asked for again.
        let near = Mutex::new(Some(near));
        let connector = service_fn(move |_| {
            let stream = near.lock().ok().and_then(|mut slot| slot.take());
            async move { stream.map(TokioIo::new).ok_or_else(|| std::io::Error::other("the service has ended")) }
        });
        let channel = endpoint().connect_with_connector(connector).await.map_err(|error| {
            Error::with_source(ErrorKind::Internal, "connect to the service in this process", error)
        })?;
        Ok(Self { channel, local: Some(Local { backend, server, stop }) })
    }
}

/// A connection to whoever serves gRPC at a socket. Errors: `Unavailable` if nobody does.
pub async fn channel_to(socket: PathBuf) -> Result<Channel> {
    let shown = socket.display().to_string();
    let connector = service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let connected = endpoint().connect_with_connector(connector).await;
    connected.map_err(|error| Error::with_source(ErrorKind::Unavailable, format!("connect to {shown}"), error))
}

/// The name under which the service of a root can be found, whatever socket it was given: a link.
#[must_use]
pub fn socket_link_of(run_dir: &Path) -> PathBuf {
    run_dir.join("service.sock")
}

fn config_of(target: &Target) -> Result<Config> {
    let overrides = Overrides {
        root: target.root.clone(),
        socket: target.socket.clone(),
        engine: target.engine,
        export: target.export,
        ..Overrides::default()
    };
    Config::load(target.config.as_deref(), overrides)
}

/// A socket that was named; else the link that whoever serves the root has made; else the configuration's.
fn socket_of(target: &Target, config: &Config) -> PathBuf {
    match (&target.socket, &target.root) {
        (None, Some(_)) => socket_link_of(&config.run_dir),
        (Some(_), _) | (None, None) => config.socket.path.clone(),
    }
}

enum Probe {
    Alive,
    Absent,
}

fn probe(socket: &Path) -> Result<Probe> {
    use std::io::ErrorKind as Io;
    match ProbeStream::connect(socket) {
        Ok(_) => Ok(Probe::Alive),
        Err(error) if matches!(error.kind(), Io::NotFound | Io::ConnectionRefused | Io::NotADirectory) => {
            Ok(Probe::Absent)
        }
        Err(error) => Err(Error::io(format!("connect to {}", socket.display()), error)),
    }
}

fn endpoint() -> Endpoint {
    // The authority is not looked at: the connector knows where to go.
    Endpoint::from_static("http://thinsnap.invalid")
}
