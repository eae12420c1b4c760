//! containerd's Snapshots service: checks the form of a request, calls the snapshotter, converts the answer.
//!
//! The snapshotter blocks, so every call runs on a thread of the runtime's blocking pool. Slow verbs take a
//! permit first and leave threads over: Stat, List and Usage, which containerd calls all the time, never
//! queue behind a Prepare that waits for the pool. A client that goes away does not stop its call half-way:
//! the verb runs to its end, as a record and a device must agree.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::error::{Error, ErrorKind, Result};
use crate::grpc::batch::batches;
use crate::grpc::code::status_of;
use crate::grpc::containerd_api::snapshots_api as api;
use crate::grpc::containerd_api::snapshots_api::snapshots_server::Snapshots;
use crate::grpc::convert;
use crate::snapshot::Name;
use crate::snapshotter::Snapshotter;

/// Slow verbs that run at one time; half of the runtime's 512 blocking threads.
const SLOW_CALLS_MAX: usize = 256;

/// Runs blocking work for async callers.
#[derive(Clone)]
pub struct BlockingCalls {
    slow: Arc<Semaphore>,
}

impl Default for BlockingCalls {
    fn default() -> Self {
        Self::of(SLOW_CALLS_MAX)
    }
}

impl BlockingCalls {
    /// Runs this many slow verbs at one time.
    #[must_use]
    pub fn of(slow_calls_max: usize) -> Self {
        Self { slow: Arc::new(Semaphore::new(slow_calls_max)) }
    }

    /// Runs a verb that changes something or waits for the pool.
    pub async fn slow<T: Send + 'static>(
        &self,
        verb: &'static str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> std::result::Result<T, Status> {
        let permit = Arc::clone(&self.slow)
            .acquire_owned()
            .await
            .map_err(|_| Status::unavailable(format!("{verb}: the service is shutting down")))?;
        self.quick(verb, move || {
            let _permit = permit;
            work()
        })
        .await
    }

    /// Runs a verb that answers from memory.
    pub async fn quick<T: Send + 'static>(
        &self,
        verb: &'static str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> std::result::Result<T, Status> {
        let answer = match tokio::task::spawn_blocking(work).await {
            Ok(answer) => answer,
            Err(join) if join.is_panic() => Err(Error::new(
                ErrorKind::Internal,
                format!("{verb}: the service met a state that it was not written for"),
            )
            .advise("see the service's log for the place, and report it")),
            Err(_) => Err(Error::new(ErrorKind::Unavailable, format!("{verb}: the service is shutting down"))),
        };
        answer.map_err(|error| {
            match error.kind() {
                ErrorKind::Internal | ErrorKind::Corrupt => tracing::error!(verb, %error, "call failed"),
                _ => tracing::debug!(verb, %error, "call refused"),
            }
            status_of(&error)
        })
    }
}

/// The Snapshots service.
pub struct SnapshotsService {
    snapshotter: Arc<Snapshotter>,
    calls: BlockingCalls,
}

impl SnapshotsService {
    /// The service over `snapshotter`.
    #[must_use]
    pub fn new(snapshotter: Arc<Snapshotter>, calls: BlockingCalls) -> Self {
        Self { snapshotter, calls }
    }

    async fn slow<T: Send + 'static>(
        &self,
        verb: &'static str,
        work: impl FnOnce(&Snapshotter) -> Result<T> + Send + 'static,
    ) -> std::result::Result<T, Status> {
        let snapshotter = Arc::clone(&self.snapshotter);
        self.calls.slow(verb, move || work(&snapshotter)).await
    }

    async fn quick<T: Send + 'static>(
        &self,
        verb: &'static str,
        work: impl FnOnce(&Snapshotter) -> Result<T> + Send + 'static,
    ) -> std::result::Result<T, Status> {
        let snapshotter = Arc::clone(&self.snapshotter);
        self.calls.quick(verb, move || work(&snapshotter)).await
    }
}

type Answer<T> = std::result::Result<Response<T>, Status>;

#[tonic::async_trait]
impl Snapshots for SnapshotsService {
    type ListStream = Pin<Box<dyn Stream<Item = std::result::Result<api::ListSnapshotsResponse, Status>> + Send>>;

    async fn prepare(&self, request: Request<api::PrepareSnapshotRequest>) -> Answer<api::PrepareSnapshotResponse> {
        let request = request.into_inner();
        let mounts = self
            .slow("prepare", move |snapshotter| {
                let (space, key) = (convert::space_of(request.snapshotter)?, Name::new(request.key)?);
                let (parent, labels) = (convert::parent(request.parent)?, convert::labels_of(request.labels)?);
                convert::mounts(snapshotter.prepare(&space, &key, parent.as_ref(), labels)?)
            })
            .await?;
        Ok(Response::new(api::PrepareSnapshotResponse { mounts }))
    }

    async fn view(&self, request: Request<api::ViewSnapshotRequest>) -> Answer<api::ViewSnapshotResponse> {
        let request = request.into_inner();
        let mounts = self
            .slow("view", move |snapshotter| {
                let (space, key) = (convert::space_of(request.snapshotter)?, Name::new(request.key)?);
                let (parent, labels) = (convert::parent(request.parent)?, convert::labels_of(request.labels)?);
                convert::mounts(snapshotter.view(&space, &key, parent.as_ref(), labels)?)
            })
            .await?;
        Ok(Response::new(api::ViewSnapshotResponse { mounts }))
    }

    async fn mounts(&self, request: Request<api::MountsRequest>) -> Answer<api::MountsResponse> {
        let request = request.into_inner();
        let mounts = self
            .slow("mounts", move |snapshotter| {
                let (space, key) = (convert::space_of(request.snapshotter)?, Name::new(request.key)?);
                convert::mounts(snapshotter.mounts(&space, &key)?)
            })
            .await?;
        Ok(Response::new(api::MountsResponse { mounts }))
    }

    async fn commit(&self, request: Request<api::CommitSnapshotRequest>) -> Answer<()> {
        let request = request.into_inner();
        self.slow("commit", move |snapshotter| {
            let space = convert::space_of(request.snapshotter)?;
            let (name, key) = (Name::new(request.name)?, Name::new(request.key)?);
            let (parent, labels) = (convert::parent(request.parent)?, convert::labels_of(request.labels)?);
            snapshotter.commit(&space, &name, &key, labels, parent.as_ref())
        })
        .await?;
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<api::RemoveSnapshotRequest>) -> Answer<()> {
        let request = request.into_inner();
        self.slow("remove", move |snapshotter| {
            snapshotter.remove(&convert::space_of(request.snapshotter)?, &Name::new(request.key)?)
        })
        .await?;
        Ok(Response::new(()))
    }

    async fn stat(&self, request: Request<api::StatSnapshotRequest>) -> Answer<api::StatSnapshotResponse> {
        let request = request.into_inner();
        let snapshot = self
            .quick("stat", move |snapshotter| {
                snapshotter.stat(&convert::space_of(request.snapshotter)?, &Name::new(request.key)?)
            })
            .await?;
        Ok(Response::new(api::StatSnapshotResponse { info: Some(convert::info(snapshot)) }))
    }

    async fn update(&self, request: Request<api::UpdateSnapshotRequest>) -> Answer<api::UpdateSnapshotResponse> {
        let request = request.into_inner();
        let snapshot = self
            .slow("update", move |snapshotter| {
                let space = convert::space_of(request.snapshotter)?;
                let (name, change) = convert::update(request.info, request.update_mask)?;
                snapshotter.update(&space, &name, change)
            })
            .await?;
        Ok(Response::new(api::UpdateSnapshotResponse { info: Some(convert::info(snapshot)) }))
    }

    async fn list(&self, request: Request<api::ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let request = request.into_inner();
        let snapshots = self
            .quick("list", move |snapshotter| {
                let space = convert::space_of(request.snapshotter)?;
                snapshotter.list(&space, &convert::filters_of(&request.filters)?)
            })
            .await?;
        // The records are a copy of one moment: nothing is held while the client takes its time.
        let replies =
            batches(snapshots.into_iter().map(convert::info)).map(|info| Ok(api::ListSnapshotsResponse { info }));
        Ok(Response::new(Box::pin(tokio_stream::iter(replies))))
    }

    async fn usage(&self, request: Request<api::UsageRequest>) -> Answer<api::UsageResponse> {
        let request = request.into_inner();
        let usage = self
            .quick("usage", move |snapshotter| {
                snapshotter.usage(&convert::space_of(request.snapshotter)?, &Name::new(request.key)?)
            })
            .await?;
        let clamp = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        Ok(Response::new(api::UsageResponse { size: clamp(usage.bytes), inodes: clamp(usage.inodes) }))
    }

    async fn cleanup(&self, request: Request<api::CleanupRequest>) -> Answer<()> {
        let request = request.into_inner();
        self.slow("cleanup", move |snapshotter| {
            convert::space_of(request.snapshotter)?;
            snapshotter.cleanup()
        })
        .await?;
        Ok(Response::new(()))
    }
}
