//! The snapshot verbs of the admin service: checks names, calls the snapshotter, shows whole records.

use crate::admin::protocol::api;
use crate::error::{Error, ErrorKind, Result};
use crate::grpc::{filters_of, labels_of, space_of};
use crate::snapshot::{Kind, Mount, Name, Snapshot, Space};
use crate::snapshotter::Snapshotter;

pub(super) fn list(snapshotter: &Snapshotter, request: &api::SnapshotListRequest) -> Result<Vec<api::Snapshot>> {
    let spaces = if request.space.is_empty() { snapshotter.spaces()? } else { vec![space_of(request.space.clone())?] };
    let filters = filters_of(&request.filters)?;
    let mut shown = Vec::new();
    for space in spaces {
        shown.extend(snapshotter.list(&space, &filters)?.into_iter().map(|snapshot| record(&space, snapshot)));
    }
    Ok(shown)
}

pub(super) fn prepare(
    snapshotter: &Snapshotter,
    request: api::SnapshotPrepareRequest,
    kind: Kind,
) -> Result<api::SnapshotMountsReply> {
    let (space, key) = (space_of(request.space)?, Name::new(request.name)?);
    let parent = request.parent.map(Name::new).transpose()?;
    let labels = labels_of(request.labels)?;
    let made = match kind {
        Kind::Active => snapshotter.prepare(&space, &key, parent.as_ref(), labels)?,
        Kind::View => snapshotter.view(&space, &key, parent.as_ref(), labels)?,
        Kind::Committed => {
            return Err(Error::new(ErrorKind::InvalidArgument, "a committed snapshot is made by commit"));
        }
    };
    mounts_reply(made)
}

pub(super) fn mounts(snapshotter: &Snapshotter, request: api::SnapshotRequest) -> Result<api::SnapshotMountsReply> {
    mounts_reply(snapshotter.mounts(&space_of(request.space)?, &Name::new(request.name)?)?)
}

pub(super) fn commit(snapshotter: &Snapshotter, request: api::SnapshotCommitRequest) -> Result<api::Snapshot> {
    let space = space_of(request.space)?;
    let (name, key) = (Name::new(request.name)?, Name::new(request.key)?);
    snapshotter.commit(&space, &name, &key, labels_of(request.labels)?, None)?;
    Ok(record(&space, snapshotter.stat(&space, &name)?))
}

pub(super) fn remove(snapshotter: &Snapshotter, request: api::SnapshotRequest) -> Result<api::SnapshotRemoveReply> {
    snapshotter.remove(&space_of(request.space)?, &Name::new(request.name.clone())?)?;
    Ok(api::SnapshotRemoveReply { removed: request.name })
}

pub(super) fn stat(snapshotter: &Snapshotter, request: api::SnapshotRequest) -> Result<api::Snapshot> {
    let space = space_of(request.space)?;
    let snapshot = snapshotter.stat(&space, &Name::new(request.name)?)?;
    Ok(record(&space, snapshot))
}

pub(super) fn usage(snapshotter: &Snapshotter, request: api::SnapshotRequest) -> Result<api::SnapshotUsageReply> {
    let usage = snapshotter.usage(&space_of(request.space)?, &Name::new(request.name)?)?;
    Ok(api::SnapshotUsageReply { bytes: usage.bytes, inodes: usage.inodes })
}

/// RFC 3339, UTC. A time outside of jiff's range (the years -9999 to 9999) cannot come from 64-bit nanoseconds.
pub(super) fn time_text(ns: i64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(ns)).map(|time| time.to_string()).unwrap_or_default()
}

fn record(space: &Space, snapshot: Snapshot) -> api::Snapshot {
    api::Snapshot {
        space: space.as_str().to_owned(),
        name: snapshot.name.as_str().to_owned(),
        parent: snapshot.parent.map(|parent| parent.as_str().to_owned()),
        kind: match snapshot.kind {
            Kind::Active => "active",
            Kind::View => "view",
            Kind::Committed => "committed",
        }
        .to_owned(),
        labels: snapshot.labels,
        created_at: time_text(snapshot.created_ns),
        updated_at: time_text(snapshot.updated_ns),
        device: snapshot.device.get(),
        size_bytes: snapshot.size.0,
        fs: snapshot.fs.as_str().to_owned(),
        usage_bytes: snapshot.usage.map(|usage| usage.bytes),
    }
}

fn mounts_reply(mounts: Vec<Mount>) -> Result<api::SnapshotMountsReply> {
    let mounts = mounts
        .into_iter()
        .map(|mount| {
            let source = mount.source.into_os_string().into_string().map_err(|path| {
                Error::new(ErrorKind::Internal, format!("the device path {} is not UTF-8", path.display()))
            })?;
            Ok(api::Mount { fs: mount.fs.as_str().to_owned(), source, options: mount.options })
        })
        .collect::<Result<_>>()?;
    Ok(api::SnapshotMountsReply { mounts })
}

#[cfg(test)]
mod tests {
    use super::time_text;

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(time_text(1_500_000_000), "1970-01-01T00:00:01.5Z");
        assert!(!time_text(i64::MAX).is_empty() && !time_text(i64::MIN).is_empty());
    }
}
