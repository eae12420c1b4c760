//! containerd's side of the snapshotter's socket, one short function a verb.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use thinsnap::grpc::mount_api::Mount;
use thinsnap::grpc::snapshots_api::snapshots_client::SnapshotsClient;
use thinsnap::grpc::snapshots_api::{
    CleanupRequest, CommitSnapshotRequest, Info, ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest,
    RemoveSnapshotRequest, StatSnapshotRequest, UsageRequest, ViewSnapshotRequest,
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// A call that waits longer than this is one that a killed service has cut off. Once in some ten thousand such calls the
/// HTTP/2 library leaves its caller waiting although the connection is closed.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// A connection that speaks for one plugin name; clones share it, as containerd's calls do.
#[derive(Clone)]
pub(crate) struct Client {
    client: SnapshotsClient<Channel>,
    plugin: String,
}

impl Client {
    /// A connection that is made at the first call, and again after the service went away.
    pub(crate) fn new(socket: &Path, plugin: &str) -> Self {
        let socket = socket.to_path_buf();
        // The address is never used: the connector opens the socket.
        let endpoint = Endpoint::from_static("http://[::1]:1").timeout(ANSWER_LIMIT);
        let channel = endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }));
        Self { client: SnapshotsClient::new(channel), plugin: plugin.to_owned() }
    }

    /// The block device of a new active snapshot.
    pub(crate) async fn prepare(&mut self, key: &str, parent: &str) -> Result<PathBuf, Status> {
        let labels = BTreeMap::new();
        let (snapshotter, key, parent) = (self.plugin.clone(), key.to_owned(), parent.to_owned());
        let request = PrepareSnapshotRequest { snapshotter, key, parent, labels };
        Ok(source(self.client.prepare(request).await?.into_inner().mounts))
    }

    /// The block device of a new view.
    pub(crate) async fn view(&mut self, key: &str, parent: &str) -> Result<PathBuf, Status> {
        let labels = BTreeMap::new();
        let (snapshotter, key, parent) = (self.plugin.clone(), key.to_owned(), parent.to_owned());
        let request = ViewSnapshotRequest { snapshotter, key, parent, labels };
        Ok(source(self.client.view(request).await?.into_inner().mounts))
    }

    /// The block device of an active snapshot or view.
    pub(crate) async fn mounts(&mut self, key: &str) -> Result<PathBuf, Status> {
        let request = MountsRequest { snapshotter: self.plugin.clone(), key: key.to_owned() };
        Ok(source(self.client.mounts(request).await?.into_inner().mounts))
    }

    pub(crate) async fn commit(&mut self, name: &str, key: &str) -> Result<(), Status> {
        let (snapshotter, name, key) = (self.plugin.clone(), name.to_owned(), key.to_owned());
        let request = CommitSnapshotRequest { snapshotter, name, key, ..CommitSnapshotRequest::default() };
        self.client.commit(request).await.map(|_| ())
    }

    pub(crate) async fn remove(&mut self, key: &str) -> Result<(), Status> {
        let request = RemoveSnapshotRequest { snapshotter: self.plugin.clone(), key: key.to_owned() };
        self.client.remove(request).await.map(|_| ())
    }

    /// The record, or `None` if there is none.
    pub(crate) async fn stat(&mut self, key: &str) -> Result<Option<Info>, Status> {
        let request = StatSnapshotRequest { snapshotter: self.plugin.clone(), key: key.to_owned() };
        match self.client.stat(request).await {
            Ok(answer) => Ok(answer.into_inner().info),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// Bytes of the snapshot itself.
    pub(crate) async fn usage(&mut self, key: &str) -> Result<i64, Status> {
        let request = UsageRequest { snapshotter: self.plugin.clone(), key: key.to_owned() };
        Ok(self.client.usage(request).await?.into_inner().size)
    }

    /// The records that match the filter; all, if it is empty.
    pub(crate) async fn list(&mut self, filter: &str) -> Result<Vec<Info>, Status> {
        let filters = if filter.is_empty() { Vec::new() } else { vec![filter.to_owned()] };
        let request = ListSnapshotsRequest { snapshotter: self.plugin.clone(), filters };
        let mut stream = self.client.list(request).await?.into_inner();
        let mut infos = Vec::new();
        while let Some(batch) = stream.message().await? {
            infos.extend(batch.info);
        }
        Ok(infos)
    }

    /// Waits until what was removed has been given back.
    pub(crate) async fn cleanup(&mut self) -> Result<(), Status> {
        self.client.cleanup(CleanupRequest { snapshotter: self.plugin.clone() }).await.map(|_| ())
    }
}

/// The answer of the service, good or bad; an error if the service went away instead of answering.
pub(crate) fn known<T>(answer: Result<T, Status>) -> Result<Result<T, Status>, ()> {
    match answer {
        // Only the service itself says which kind of error it is.
        Err(status) if !status.metadata().contains_key("thinsnap-kind") => Err(()),
        answer => Ok(answer),
    }
}

/// The device of mounts, which are one mount of a block device: runtimes in virtual machines take nothing else.
fn source(mounts: Vec<Mount>) -> PathBuf {
    assert!(mounts.len() == 1 && mounts[0].source.starts_with("/dev/"), "{mounts:?}");
    PathBuf::from(&mounts[0].source)
}
