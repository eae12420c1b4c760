//! Backs the metadata up at the start and in regular time, beside everything else.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::admin::{Backend, Reason};

/// Makes backups until it is dropped. One that cannot be made is logged and tried again next time.
pub(super) async fn keep(backend: Arc<Backend>, interval: Option<Duration>) {
    take(&backend, Reason::Start).await;
    let Some(interval) = interval else { return };
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick is at once, and the start has had its backup.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        take(&backend, Reason::Interval).await;
    }
}

async fn take(backend: &Arc<Backend>, reason: Reason) {
    // Not the backend itself: a backup that is being made does not hold up the end of the service.
    let (backups, metadata) = (Arc::clone(backend.backups()), backend.metadata());
    if let Err(error) = tokio::task::spawn_blocking(move || backups.try_take(&metadata, reason)).await {
        tracing::error!(%error, "a backup of the metadata broke off");
    }
}
