//! The pool verbs of the admin service: state and growth.

use thinsnap_pool::{ByteCount, PoolMode, PoolStatus, Space, ThinPool};

use crate::admin::backend::Backend;
use crate::admin::backups::Reason;
use crate::admin::protocol::api;
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::Kind;

/// Most devices whose mappings are walked for one answer; a walk of a device with 100 GiB mapped takes
/// some milliseconds.
const SHARING_DEVICES_MAX: usize = 10_000;

pub(super) fn status(backend: &Backend, request: &api::PoolStatusRequest) -> Result<api::PoolStatusReply> {
    let snapshotter = backend.snapshotter();
    let pool = snapshotter.pool().as_ref();
    let status = pool.status()?;
    let (mut active, mut views, mut committed) = (0, 0, 0);
    for space in snapshotter.spaces()? {
        for snapshot in snapshotter.list(&space, &[])? {
            match snapshot.kind {
                Kind::Active => active += 1,
                Kind::View => views += 1,
                Kind::Committed => committed += 1,
            }
        }
    }
    let sharing = if request.sharing { Some(sharing(pool, &status)?) } else { None };
    let mut warnings = warnings(&status);
    if let Some(failure) = backend.backups().failure() {
        warnings.push((
            format!("the last backup of the metadata failed: {failure}"),
            "make room on the disk of the root, or mend what stands there, then `thinsnap pool backup now`",
        ));
    }
    Ok(api::PoolStatusReply {
        root: backend.root().to_string_lossy().into_owned(),
        identity: status.identity.iter().map(|byte| format!("{byte:02x}")).collect(),
        mode: mode_name(status.mode).to_owned(),
        block_size_bytes: status.block_size.bytes(),
        data: Some(space(status.data)),
        metadata: Some(space(status.metadata)),
        metadata_reserve_bytes: status.metadata_reserve.0,
        transaction_id: status.transaction_id,
        time: status.time,
        devices: status.devices,
        active_devices: status.active_devices,
        snapshots_active: active,
        snapshots_view: views,
        snapshots_committed: committed,
        devices_ahead: snapshotter.devices_ahead().len() as u64,
        limbo: snapshotter.limbo_len()?,
        metadata_snapshot: status.metadata_snapshot,
        sharing,
        advice: warnings.first().map(|(_, advice)| (*advice).to_owned()),
        warnings: warnings.into_iter().map(|(warning, _)| warning).collect(),
        engine: status.engine,
        engine_why: backend.why_this_engine().to_owned(),
        reason: status.reason,
        below: status.room.below.map(space),
        unpunched_bytes: status.room.unpunched.0,
        returning_bytes: status.room.returning.0,
        waiting_writes: status.room.waiting_writes,
        waiting_bytes: status.room.waiting.0,
    })
}

pub(super) fn grow(backend: &Backend, request: &api::PoolGrowRequest) -> Result<api::PoolStatusReply> {
    if request.data_bytes.is_none() && request.metadata_bytes.is_none() {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            "grow the pool: neither a data nor a metadata size is given",
        ));
    }
    let size = |bytes: Option<u64>| bytes.map(ByteCount);
    backend.backups().try_take(&backend.metadata(), Reason::Before("grow"));
    backend.snapshotter().pool().grow(size(request.data_bytes), size(request.metadata_bytes))?;
    status(backend, &api::PoolStatusRequest { sharing: false })
}

fn sharing(pool: &dyn ThinPool, status: &PoolStatus) -> Result<api::PoolSharing> {
    let devices = pool.devices()?;
    if devices.len() > SHARING_DEVICES_MAX {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "add up what {} devices share: at most {SHARING_DEVICES_MAX} are walked for one answer",
                devices.len()
            ),
        ));
    }
    let mut held = 0_u64;
    for id in devices {
        match pool.usage(id) {
            Ok(usage) => held += usage.mapped.0,
            // Removed since the list was made.
            Err(error) if error.kind() == thinsnap_pool::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(api::PoolSharing { held_bytes: held, saved_bytes: held.saturating_sub(status.data.used.0) })
}

pub(super) fn trim(backend: &Backend) -> Result<api::PoolTrimReply> {
    Ok(api::PoolTrimReply { emptied_bytes: backend.snapshotter().pool().trim()?.0 })
}

pub(super) fn space(space: Space) -> api::PoolSpace {
    api::PoolSpace { used_bytes: space.used.0, total_bytes: space.total.0, free_bytes: space.free().0 }
}

pub(super) fn mode_name(mode: PoolMode) -> &'static str {
    match mode {
        PoolMode::Write => "write",
        PoolMode::OutOfDataSpace => "out_of_data_space",
        PoolMode::ReadOnly => "read_only",
        PoolMode::Fail => "fail",
    }
}

/// What is wrong, the worst first, each with what to do.
fn warnings(status: &PoolStatus) -> Vec<(String, &'static str)> {
    const GROW_DATA: &str = "thinsnap pool grow --data SIZE, or remove what is not needed (thinsnap pool why-full)";
    let mut found = Vec::new();
    let reason = status.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
    match status.mode {
        PoolMode::Write => {}
        PoolMode::OutOfDataSpace if status.room.full_below => found.push((
            format!("the pool is out of data space{reason}"),
            "make room on the file system that holds the pool, or remove what is not needed (thinsnap pool why-full)",
        )),
        PoolMode::OutOfDataSpace => found.push((format!("the pool is out of data space{reason}"), GROW_DATA)),
        PoolMode::ReadOnly => found.push((
            format!("the pool accepts no changes{reason}"),
            "stop the service, run `thinsnap pool check`, then start it again",
        )),
        PoolMode::Fail => found.push((
            format!("the pool has failed{reason}"),
            "look at the kernel log (dmesg), stop the service, run `thinsnap pool check`",
        )),
    }
    // In hundredths, without a float: used / total >= 0.9.
    let nearly_full = |space: Space| u128::from(space.used.0) * 10 >= u128::from(space.total.0) * 9;
    if nearly_full(status.data) && status.mode == PoolMode::Write {
        found.push((format!("data space is nearly full: {} free", status.data.free()), GROW_DATA));
    }
    let short_below = status.room.below.filter(|_| status.data_room() < status.data.free());
    if let Some(below) = short_below.filter(|below| nearly_full(*below) && status.mode == PoolMode::Write) {
        found.push((
            format!("the file system below the data is nearly full: {} free", below.free()),
            "make room on the file system that holds the pool, or remove what is not needed (thinsnap pool why-full)",
        ));
    }
    if nearly_full(status.metadata) {
        found.push((
            format!("metadata space is nearly full: {} free", status.metadata.free()),
            "thinsnap pool grow --metadata SIZE, or remove what is not needed (thinsnap pool why-full)",
        ));
    }
    if status.metadata_snapshot {
        found.push((
            "another tool left a metadata snapshot held: it keeps blocks from coming free".to_owned(),
            "if nobody uses it: stop the service, then `thinsnap pool repair --apply` releases it",
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use thinsnap_pool::{BlockSize, ByteCount, PoolMode, PoolStatus, Room, Space};

    use super::warnings;

    fn status(mode: PoolMode, used: u64) -> PoolStatus {
        PoolStatus {
            identity: [0; 16],
            engine: "embedded".into(),
            mode,
            reason: (mode != PoolMode::Write).then(|| "a write failed".into()),
            block_size: BlockSize::DEFAULT,
            data: Space { used: ByteCount(used), total: ByteCount(100) },
            metadata: Space { used: ByteCount(1), total: ByteCount(100) },
            metadata_reserve: ByteCount(1),
            transaction_id: 0,
            time: 0,
            devices: 0,
            active_devices: 0,
            metadata_snapshot: false,
            room: Room::default(),
        }
    }

    #[test]
    fn a_healthy_pool_has_no_warnings() {
        assert!(warnings(&status(PoolMode::Write, 89)).is_empty());
    }

    #[test]
    fn trouble_is_told_once_with_its_reason_and_the_next_step() {
        let read_only = warnings(&status(PoolMode::ReadOnly, 10));
        assert_eq!(read_only.len(), 1);
        assert!(read_only[0].0.contains("a write failed") && read_only[0].1.contains("pool check"));
        assert_eq!(warnings(&status(PoolMode::Write, 90)).len(), 1);
        assert_eq!(warnings(&status(PoolMode::OutOfDataSpace, 100)).len(), 1);
    }
}
