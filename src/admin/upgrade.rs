//! The upgrade verb of the admin service: the pool-host is replaced under running containers.

use crate::admin::backend::Backend;
use crate::admin::backups::Reason;
use crate::admin::protocol::api;
use crate::error::Result;

pub(super) fn upgrade(backend: &Backend, request: &api::UpgradeRequest) -> Result<api::UpgradeReply> {
    backend.backups().try_take(&backend.metadata(), Reason::Before("upgrade"));
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Ok(match backend.replace_host(request.force)? {
        None => api::UpgradeReply {
            replaced: false,
            old_version: version.clone(),
            new_version: version,
            stall_ms: 0,
            served_by_kernel: backend.is_served_by_kernel(),
        },
        Some(replaced) => api::UpgradeReply {
            replaced: true,
            old_version: replaced.old_version,
            new_version: replaced.new_version,
            stall_ms: u64::try_from(replaced.stall.as_millis()).unwrap_or(u64::MAX),
            served_by_kernel: false,
        },
    })
}
