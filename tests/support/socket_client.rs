//! The verbs of a snapshotter through its socket, as containerd's proxy calls them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use prost_types::{FieldMask, Timestamp};
use thinsnap::grpc::mount_api;
use thinsnap::grpc::snapshots_api::snapshots_client::SnapshotsClient;
use thinsnap::grpc::snapshots_api::{self as api};
use thinsnap::snapshot::{FsType, Kind, Mount, Usage};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::client::{Answer, Client, Failure, Info};

/// A connection for one snapshotter name.
pub(crate) struct SocketClient {
    runtime: Arc<Runtime>,
    client: SnapshotsClient<Channel>,
    space: String,
}

/// A channel to a unix socket, made at the first call.
pub(crate) fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    Endpoint::from_static("http://thinsnap.invalid").connect_with_connector_lazy(tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    }))
}

impl SocketClient {
    pub(crate) fn new(socket: &Path, space: &str) -> Self {
        let runtime = Arc::new(Runtime::new().unwrap());
        let client = {
            let _inside = runtime.enter();
            SnapshotsClient::new(channel(socket)).max_encoding_message_size(64 << 20)
        };
        Self { runtime, client, space: space.to_owned() }
    }

    /// Sizes of the messages in which a whole list comes.
    pub(crate) fn list_batches(&self, filters: &[&str]) -> Answer<Vec<Vec<api::Info>>> {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        let request = api::ListSnapshotsRequest { snapshotter: self.space.clone(), filters };
        let mut client = self.client.clone();
        let batches = self.runtime.block_on(async {
            let mut stream = client.list(request).await?.into_inner();
            let mut batches = Vec::new();
            while let Some(batch) = stream.message().await? {
                batches.push(batch.info);
            }
            Ok(batches)
        });
        batches.map_err(failure)
    }
}

fn failure(status: Status) -> Failure {
    Failure { code: status.code(), message: status.message().to_owned() }
}

fn labels_of(labels: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
    labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn mounts_of(mounts: Vec<mount_api::Mount>) -> Vec<Mount> {
    let mount = |mount: mount_api::Mount| {
        assert!(mount.target.is_empty());
        let fs = if mount.r#type == "xfs" { FsType::Xfs } else { FsType::Ext4 };
        assert_eq!(fs.as_str(), mount.r#type);
        Mount { fs, source: PathBuf::from(mount.source), options: mount.options }
    };
    mounts.into_iter().map(mount).collect()
}

fn info_of(info: api::Info) -> Info {
    let ns = |time: Option<Timestamp>| {
        let time = time.expect("every record has its times");
        time.seconds * 1_000_000_000 + i64::from(time.nanos)
    };
    let kind = match info.kind() {
        api::Kind::Active => Kind::Active,
        api::Kind::View => Kind::View,
        api::Kind::Committed => Kind::Committed,
        api::Kind::Unknown => panic!("a record of no kind"),
    };
    Info {
        name: info.name,
        parent: info.parent,
        kind,
        labels: info.labels,
        created_ns: ns(info.created_at),
        updated_ns: ns(info.updated_at),
    }
}

macro_rules! call {
    ($self:ident, $verb:ident, $request:expr) => {{
        let mut client = $self.client.clone();
        $self.runtime.block_on(client.$verb($request)).map(tonic::Response::into_inner).map_err(failure)
    }};
}

impl Client for SocketClient {
    fn prepare(&self, key: &str, parent: &str, labels: &[(&str, &str)]) -> Answer<Vec<Mount>> {
        let (snapshotter, key, parent) = (self.space.clone(), key.to_owned(), parent.to_owned());
        let request = api::PrepareSnapshotRequest { snapshotter, key, parent, labels: labels_of(labels) };
        Ok(mounts_of(call!(self, prepare, request)?.mounts))
    }

    fn view(&self, key: &str, parent: &str, labels: &[(&str, &str)]) -> Answer<Vec<Mount>> {
        let (snapshotter, key, parent) = (self.space.clone(), key.to_owned(), parent.to_owned());
        let request = api::ViewSnapshotRequest { snapshotter, key, parent, labels: labels_of(labels) };
        Ok(mounts_of(call!(self, view, request)?.mounts))
    }

    fn mounts(&self, key: &str) -> Answer<Vec<Mount>> {
        let request = api::MountsRequest { snapshotter: self.space.clone(), key: key.to_owned() };
        Ok(mounts_of(call!(self, mounts, request)?.mounts))
    }

    fn commit_onto(&self, name: &str, key: &str, labels: &[(&str, &str)], parent: &str) -> Answer<()> {
        let request = api::CommitSnapshotRequest {
            snapshotter: self.space.clone(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels: labels_of(labels),
            parent: parent.to_owned(),
        };
        call!(self, commit, request)
    }

    fn remove(&self, key: &str) -> Answer<()> {
        let request = api::RemoveSnapshotRequest { snapshotter: self.space.clone(), key: key.to_owned() };
        call!(self, remove, request)
    }

    fn stat(&self, key: &str) -> Answer<Info> {
        let request = api::StatSnapshotRequest { snapshotter: self.space.clone(), key: key.to_owned() };
        Ok(info_of(call!(self, stat, request)?.info.expect("stat answers a record")))
    }

    fn update(&self, key: &str, labels: &[(&str, &str)], paths: &[&str]) -> Answer<Info> {
        let info = api::Info { name: key.to_owned(), labels: labels_of(labels), ..api::Info::default() };
        // containerd's proxy always sends a mask, perhaps an empty one.
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        let request = api::UpdateSnapshotRequest {
            snapshotter: self.space.clone(),
            info: Some(info),
            update_mask: Some(FieldMask { paths }),
        };
        Ok(info_of(call!(self, update, request)?.info.expect("update answers a record")))
    }

    fn list(&self, filters: &[&str]) -> Answer<Vec<Info>> {
        Ok(self.list_batches(filters)?.into_iter().flatten().map(info_of).collect())
    }

    fn usage(&self, key: &str) -> Answer<Usage> {
        let request = api::UsageRequest { snapshotter: self.space.clone(), key: key.to_owned() };
        let usage = call!(self, usage, request)?;
        let whole = |number: i64| u64::try_from(number).expect("usage is never negative");
        Ok(Usage { bytes: whole(usage.size), inodes: whole(usage.inodes) })
    }

    fn cleanup(&self) -> Answer<()> {
        call!(self, cleanup, api::CleanupRequest { snapshotter: self.space.clone() })
    }

    fn elsewhere(&self, space: &str) -> Box<dyn Client> {
        let (runtime, client) = (Arc::clone(&self.runtime), self.client.clone());
        Box::new(Self { runtime, client, space: space.to_owned() })
    }
}
