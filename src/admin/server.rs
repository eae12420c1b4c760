//! The admin service: who may call, on which thread it runs, how long answers are streamed.

use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::admin::backend::Backend;
use crate::admin::backups::Reason;
use crate::admin::peer::require_root;
use crate::admin::protocol::api;
use crate::admin::protocol::api::admin_server::Admin;
use crate::admin::protocol::api::{image_import_reply, pool_check_reply, pool_why_full_reply};
use crate::admin::stream::{Pieces, Replies, streamed};
use crate::admin::{container_verbs, image_verbs, pool_verbs, snapshot_verbs, upgrade, why_full};
use crate::error::{Error, ErrorKind, Result};
use crate::grpc::{BlockingCalls, batches};
use crate::snapshot::Kind;

/// Bytes of XML in one message of a dump.
const DUMP_PIECE: usize = 256 << 10;

/// The admin service.
pub struct AdminService {
    backend: Arc<Backend>,
    calls: BlockingCalls,
}

type Answer<T> = std::result::Result<Response<T>, Status>;

impl AdminService {
    /// The service over `backend`.
    #[must_use]
    pub fn new(backend: Arc<Backend>, calls: BlockingCalls) -> Self {
        Self { backend, calls }
    }

    async fn slow<T: Send + 'static>(
        &self,
        verb: &'static str,
        work: impl FnOnce(&Backend) -> Result<T> + Send + 'static,
    ) -> Answer<T> {
        let backend = Arc::clone(&self.backend);
        self.calls.slow(verb, move || work(&backend)).await.map(Response::new)
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    type SnapshotListStream = Replies<api::SnapshotListReply>;
    type ImageImportStream = Replies<api::ImageImportReply>;
    type PoolCheckStream = Replies<api::PoolCheckReply>;
    type PoolWhyFullStream = Replies<api::PoolWhyFullReply>;
    type PoolDumpStream = Replies<api::PoolDumpReply>;

    async fn service_info(&self, _request: Request<api::ServiceInfoRequest>) -> Answer<api::ServiceInfoReply> {
        Ok(Response::new(api::ServiceInfoReply {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            root: self.backend.root().to_string_lossy().into_owned(),
            pid: std::process::id(),
        }))
    }

    async fn upgrade(&self, request: Request<api::UpgradeRequest>) -> Answer<api::UpgradeReply> {
        require_root("upgrade", &request)?;
        let request = request.into_inner();
        self.slow("upgrade", move |backend| upgrade::upgrade(backend, &request)).await
    }

    async fn pool_status(&self, request: Request<api::PoolStatusRequest>) -> Answer<api::PoolStatusReply> {
        let request = request.into_inner();
        self.slow("pool status", move |backend| pool_verbs::status(backend, &request)).await
    }

    async fn pool_grow(&self, request: Request<api::PoolGrowRequest>) -> Answer<api::PoolStatusReply> {
        require_root("pool grow", &request)?;
        let request = request.into_inner();
        self.slow("pool grow", move |backend| pool_verbs::grow(backend, &request)).await
    }

    async fn pool_trim(&self, request: Request<api::PoolTrimRequest>) -> Answer<api::PoolTrimReply> {
        require_root("pool trim", &request)?;
        self.slow("pool trim", pool_verbs::trim).await
    }

    async fn pool_why_full(&self, request: Request<api::PoolWhyFullRequest>) -> Answer<Self::PoolWhyFullStream> {
        // As `pool check`.
        require_root("pool why-full", &request)?;
        use pool_why_full_reply::Step;
        let reply = |step| api::PoolWhyFullReply { step: Some(step) };
        Ok(streamed(&self.backend, &self.calls, "pool why-full", move |backend, reports| {
            let report = why_full::why_full(backend, &|progress| {
                let _: ControlFlow<()> = reports.latest(reply(Step::Progress(progress)));
            })?;
            Ok(Some(reply(Step::Report(report))))
        }))
    }

    async fn pool_check(&self, request: Request<api::PoolCheckRequest>) -> Answer<Self::PoolCheckStream> {
        // Reads all of the metadata: only root may have the service do that again and again.
        require_root("pool check", &request)?;
        use pool_check_reply::Step;
        let reply = |step| api::PoolCheckReply { step: Some(step) };
        Ok(streamed(&self.backend, &self.calls, "pool check", move |backend, reports| {
            let store = backend.store().read()?;
            let report = backend.metadata().check(Some(&store), &|progress| {
                // An audit is bounded by the metadata's size: it goes on when nobody listens.
                let _: ControlFlow<()> = reports.latest(reply(Step::Progress(progress)));
            })?;
            Ok(Some(reply(Step::Report(report))))
        }))
    }

    async fn pool_dump(&self, request: Request<api::PoolDumpRequest>) -> Answer<Self::PoolDumpStream> {
        require_root("pool dump", &request)?;
        let held = request.into_inner().held;
        Ok(streamed(&self.backend, &self.calls, "pool dump", move |backend, reports| {
            let mut pieces = BufWriter::with_capacity(DUMP_PIECE, Pieces(reports));
            backend.metadata().dump(held, &mut pieces)?;
            pieces.flush().map_err(|error| Error::io("dump the metadata", error))?;
            Ok(None)
        }))
    }

    async fn pool_backup_now(&self, request: Request<api::PoolBackupNowRequest>) -> Answer<api::PoolBackup> {
        require_root("pool backup now", &request)?;
        self.slow("pool backup now", |backend| {
            let made = backend.backups().take(&backend.metadata(), Reason::Asked)?;
            made.ok_or_else(|| Error::new(ErrorKind::Internal, "back up the metadata: nothing was made"))
        })
        .await
    }

    async fn pool_backup_list(&self, request: Request<api::PoolBackupListRequest>) -> Answer<api::PoolBackupListReply> {
        // Reads every backup: as `pool check`.
        require_root("pool backup ls", &request)?;
        self.slow("pool backup ls", |backend| Ok(api::PoolBackupListReply { backups: backend.backups().list()? })).await
    }

    async fn snapshot_list(&self, request: Request<api::SnapshotListRequest>) -> Answer<Self::SnapshotListStream> {
        let request = request.into_inner();
        let snapshots =
            self.slow("snapshot ls", move |backend| snapshot_verbs::list(backend.snapshotter(), &request)).await?;
        let replies =
            batches(snapshots.into_inner().into_iter()).map(|snapshots| Ok(api::SnapshotListReply { snapshots }));
        Ok(Response::new(Box::pin(tokio_stream::iter(replies))))
    }

    async fn snapshot_prepare(
        &self,
        request: Request<api::SnapshotPrepareRequest>,
    ) -> Answer<api::SnapshotMountsReply> {
        require_root("snapshot prepare", &request)?;
        let request = request.into_inner();
        self.slow("snapshot prepare", move |backend| {
            snapshot_verbs::prepare(backend.snapshotter(), request, Kind::Active)
        })
        .await
    }

    async fn snapshot_view(&self, request: Request<api::SnapshotPrepareRequest>) -> Answer<api::SnapshotMountsReply> {
        require_root("snapshot view", &request)?;
        let request = request.into_inner();
        self.slow("snapshot view", move |backend| snapshot_verbs::prepare(backend.snapshotter(), request, Kind::View))
            .await
    }

    async fn snapshot_mounts(&self, request: Request<api::SnapshotRequest>) -> Answer<api::SnapshotMountsReply> {
        require_root("snapshot mount", &request)?;
        let request = request.into_inner();
        self.slow("snapshot mount", move |backend| snapshot_verbs::mounts(backend.snapshotter(), request)).await
    }

    async fn snapshot_commit(&self, request: Request<api::SnapshotCommitRequest>) -> Answer<api::Snapshot> {
        require_root("snapshot commit", &request)?;
        let request = request.into_inner();
        self.slow("snapshot commit", move |backend| snapshot_verbs::commit(backend.snapshotter(), request)).await
    }

    async fn snapshot_remove(&self, request: Request<api::SnapshotRequest>) -> Answer<api::SnapshotRemoveReply> {
        require_root("snapshot rm", &request)?;
        let request = request.into_inner();
        self.slow("snapshot rm", move |backend| snapshot_verbs::remove(backend.snapshotter(), request)).await
    }

    async fn snapshot_stat(&self, request: Request<api::SnapshotRequest>) -> Answer<api::Snapshot> {
        let request = request.into_inner();
        self.slow("snapshot stat", move |backend| snapshot_verbs::stat(backend.snapshotter(), request)).await
    }

    async fn snapshot_usage(&self, request: Request<api::SnapshotRequest>) -> Answer<api::SnapshotUsageReply> {
        let request = request.into_inner();
        self.slow("snapshot usage", move |backend| snapshot_verbs::usage(backend.snapshotter(), request)).await
    }

    async fn image_import(&self, request: Request<api::ImageImportRequest>) -> Answer<Self::ImageImportStream> {
        require_root("image import", &request)?;
        let request = request.into_inner();
        use image_import_reply::Step;
        let reply = |step| api::ImageImportReply { step: Some(step) };
        Ok(streamed(&self.backend, &self.calls, "image import", move |backend, reports| {
            let report = |progress| reports.latest(reply(Step::Progress(progress)));
            let imported = image_verbs::import(backend.images(), request, backend.import_limits().clone(), report)?;
            Ok(Some(reply(Step::Imported(imported))))
        }))
    }

    async fn image_list(&self, _request: Request<api::ImageListRequest>) -> Answer<api::ImageListReply> {
        self.slow("image ls", |backend| image_verbs::list(backend.images())).await
    }

    async fn image_remove(&self, request: Request<api::ImageRequest>) -> Answer<api::ImageRemoveReply> {
        require_root("image rm", &request)?;
        let request = request.into_inner();
        self.slow("image rm", move |backend| image_verbs::remove(backend.images(), &request)).await
    }

    async fn container_create(&self, request: Request<api::ContainerCreateRequest>) -> Answer<api::Container> {
        require_root("container create", &request)?;
        let request = request.into_inner();
        self.slow("container create", move |backend| container_verbs::create(backend.containers(), request)).await
    }

    async fn container_list(&self, _request: Request<api::ContainerListRequest>) -> Answer<api::ContainerListReply> {
        self.slow("container ls", |backend| container_verbs::list(backend.containers())).await
    }

    async fn container_mount(&self, request: Request<api::ContainerMountRequest>) -> Answer<api::Container> {
        require_root("container mount", &request)?;
        let request = request.into_inner();
        self.slow("container mount", move |backend| container_verbs::mount(backend.containers(), request)).await
    }

    async fn container_unmount(&self, request: Request<api::ContainerRequest>) -> Answer<api::Container> {
        require_root("container unmount", &request)?;
        let request = request.into_inner();
        self.slow("container unmount", move |backend| container_verbs::unmount(backend.containers(), request)).await
    }

    async fn container_remove(&self, request: Request<api::ContainerRequest>) -> Answer<api::ContainerRemoveReply> {
        require_root("container rm", &request)?;
        let request = request.into_inner();
        self.slow("container rm", move |backend| container_verbs::remove(backend.containers(), request)).await
    }
}
