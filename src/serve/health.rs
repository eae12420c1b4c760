//! The gRPC health service: serving as long as the pool takes changes.

use std::sync::Arc;
use std::time::Duration;

use thinsnap_pool::PoolMode;
use tokio::time::MissedTickBehavior;
use tonic_health::server::HealthReporter;

use crate::admin::AdminService;
use crate::admin::Backend;
use crate::admin::api::admin_server::AdminServer;
use crate::grpc::SnapshotsService;
use crate::grpc::snapshots_api::snapshots_server::SnapshotsServer;

/// How old an answer may be.
const INTERVAL: Duration = Duration::from_secs(2);

/// Makes every service known: a name that is asked for before the pool was looked at is not serving yet, and never
/// "not registered".
pub(super) async fn register(reporter: &HealthReporter) {
    reporter.set_serving::<AdminServer<AdminService>>().await;
    reporter.set_not_serving::<SnapshotsServer<SnapshotsService>>().await;
    // The empty name stands for the server as a whole.
    reporter.set_service_status("", tonic_health::ServingStatus::NotServing).await;
}

/// Keeps the health service at the pool's mode, until it is dropped.
pub(super) async fn follow(reporter: HealthReporter, backend: Arc<Backend>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was = None;
    loop {
        ticks.tick().await;
        // Before the pool is asked: the question would wait for the next host.
        let away = backend.host_trouble();
        let pool = Arc::clone(backend.snapshotter().pool());
        let status = match away {
            Some(why) => Ok(Err(thinsnap_pool::Error::new(thinsnap_pool::ErrorKind::Unavailable, why))),
            None => tokio::task::spawn_blocking(move || pool.status()).await,
        };
        let trouble = match status {
            Ok(Ok(status)) if status.mode == PoolMode::Write => None,
            Ok(Ok(status)) => Some(status.reason.unwrap_or_else(|| format!("mode {:?}", status.mode))),
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if was.as_ref() == Some(&trouble) {
            continue;
        }
        let whole = match &trouble {
            None => {
                reporter.set_serving::<SnapshotsServer<SnapshotsService>>().await;
                tonic_health::ServingStatus::Serving
            }
            Some(reason) => {
                tracing::warn!(%reason, "the pool does not take changes");
                reporter.set_not_serving::<SnapshotsServer<SnapshotsService>>().await;
                tonic_health::ServingStatus::NotServing
            }
        };
        reporter.set_service_status("", whole).await;
        was = Some(trouble);
    }
}
