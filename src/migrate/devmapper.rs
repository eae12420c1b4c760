//! The records of containerd's devmapper snapshotter: what it keeps about snapshots, and about their thin devices.
//!
//! `metadata.db` is what all of containerd's own snapshotters keep: buckets `v1`, `snapshots`, one for each snapshot. Its
//! number N names the device `POOL-snap-N`, which `POOL.db` knows, as JSON in the bucket `devices`. A view has a thin device
//! of its own there. Neither of the two says anything about a transaction id: containerd leaves that of the pool alone.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use thinsnap_pool::{ByteCount, DeviceId};

use crate::bolt::{BoltFile, Bucket};
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::wanted::{Wanted, WantedFs};
use crate::snapshot::{Kind, Labels, Usage};

/// The label that names the file system; a snapshot without it is older than the label, and has ext4 (source: containerd).
const FS_LABEL: &str = "containerd.io/snapshot/devmapper/fstype";
/// Seconds from the year 1, where Go's clock begins, to 1970.
const GO_EPOCH: i64 = 62_135_596_800;

/// The two files, locked: containerd cannot start on them until this is dropped.
pub struct DevmapperFiles {
    snapshots: BoltFile,
    devices: BoltFile,
    pool_name: String,
}

impl DevmapperFiles {
    /// The files in the snapshotter's root directory. Errors: `NotFound`, `InUse` while containerd runs, `Corrupt`.
    pub fn open(root: &Path, pool_name: &str) -> Result<Self> {
        if pool_name.is_empty() || pool_name.contains('/') {
            return Err(Error::new(ErrorKind::InvalidArgument, format!("{pool_name:?} is no name of a pool")));
        }
        let advice = "name the root_path and the pool_name of [plugins.\"io.containerd.snapshotter.v1.devmapper\"] in \
                      containerd's configuration; without a root_path it is ROOT/io.containerd.snapshotter.v1.devmapper";
        let open = |name: &str| {
            BoltFile::open(&root.join(name)).map_err(|error| match error.kind() {
                ErrorKind::NotFound => error.advise(advice),
                _ => error,
            })
        };
        // The second is the one that containerd has open from its start; the first it opens when it needs it.
        let devices = open(&format!("{pool_name}.db"))?;
        Ok(Self { snapshots: open("metadata.db")?, devices, pool_name: pool_name.to_owned() })
    }
}

/// States of a device that containerd goes on with, and what became of the others (source: containerd).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Made, and perhaps shown.
    Ready,
    /// A change of it was cut short: containerd will call it faulty, its blocks are as they were.
    CutShort(&'static str),
    /// It may never have been made.
    Unmade(&'static str),
    /// Its deletion was asked for.
    Going,
}

fn state_of(number: i64) -> State {
    match number {
        2 => State::Ready,          // Created
        4 => State::Ready,          // Activated
        6 | 8 | 10 => State::Ready, // Suspended, Resumed, Deactivated
        3 => State::CutShort("Activating"),
        5 => State::CutShort("Suspending"),
        7 => State::CutShort("Resuming"),
        9 => State::CutShort("Deactivating"),
        13 => State::CutShort("Faulty"),
        11 | 12 => State::Going, // Removing, Removed
        1 => State::Unmade("Creating"),
        _ => State::Unmade("Unknown"),
    }
}

#[derive(Debug, Deserialize)]
struct Device {
    device_id: u32,
    size: u64,
    state: i64,
    #[serde(default)]
    error: String,
}

/// All snapshots, and the devices whose deletion containerd has put off. Errors: `Corrupt`.
pub fn read_devmapper(files: &DevmapperFiles) -> Result<(Vec<Wanted>, Vec<DeviceId>)> {
    let devices = devices(files)?;
    let doing = |error: Error| error.doing(format!("read {}", files.snapshots.path().display()));
    // A snapshotter that was never used has no buckets.
    let empty = Bucket::default();
    let all = files.snapshots.root().bucket(b"v1").and_then(|v1| v1.bucket(b"snapshots")).unwrap_or(&empty);
    let mut wanted = Vec::new();
    let mut totals = BTreeMap::new();
    for (key, bucket) in all.buckets() {
        let one = snapshot(key, bucket, files, &devices).map_err(doing)?;
        if let Some(usage) = one.usage {
            totals.insert(one.name.clone(), usage);
        }
        wanted.push(one);
    }
    // What containerd keeps is a device's usage with its parents'.
    for one in &mut wanted {
        let below = one.parent.as_ref().and_then(|parent| totals.get(parent)).map_or(0, |usage| usage.bytes);
        one.usage = one.usage.map(|usage| Usage { bytes: usage.bytes.saturating_sub(below), ..usage });
    }
    let going = devices.values().filter(|device| state_of(device.state) == State::Going);
    let going = going.filter_map(|device| DeviceId::new(device.device_id).ok()).collect();
    Ok((wanted, going))
}

fn devices(files: &DevmapperFiles) -> Result<BTreeMap<String, Device>> {
    let doing = |error: Error| error.doing(format!("read {}", files.devices.path().display()));
    let mut devices = BTreeMap::new();
    for (name, value) in files.devices.root().bucket(b"devices").into_iter().flat_map(Bucket::values) {
        let name = text(name).map_err(doing)?;
        let device = serde_json::from_slice(value)
            .map_err(|error| doing(Error::with_source(ErrorKind::Corrupt, format!("device {name:?}"), error)))?;
        devices.insert(name, device);
    }
    Ok(devices)
}

fn snapshot(key: &[u8], bucket: &Bucket, files: &DevmapperFiles, devices: &BTreeMap<String, Device>) -> Result<Wanted> {
    let name = text(key)?;
    let corrupt = |what: &str| Error::new(ErrorKind::Corrupt, format!("snapshot {name:?}: {what}"));
    let number = bucket.value(b"id").and_then(uvarint).ok_or_else(|| corrupt("it has no number"))?;
    let kind = match bucket.value(b"kind") {
        Some([1]) => Kind::View,
        Some([2]) => Kind::Active,
        Some([3]) => Kind::Committed,
        _ => return Err(corrupt("it is of no known kind")),
    };
    let mut labels = Labels::new();
    for (key, value) in bucket.bucket(b"labels").into_iter().flat_map(Bucket::values) {
        labels.insert(text(key)?, text(value)?);
    }
    let time = |field: &[u8]| match bucket.value(field) {
        Some(bytes) => go_time_ns(bytes).ok_or_else(|| corrupt("one of its times is none")),
        None => Ok(0),
    };
    let (created_ns, updated_ns) = (time(b"createdat")?, time(b"updatedat")?);
    let parent = bucket.value(b"parent").filter(|parent| !parent.is_empty()).map(text).transpose()?;
    let count = |field: &[u8]| bucket.value(field).and_then(varint).and_then(|number| u64::try_from(number).ok());
    let usage = (kind == Kind::Committed)
        .then(|| Usage { bytes: count(b"size").unwrap_or(0), inodes: count(b"inodes").unwrap_or(0) });
    let fs = WantedFs::of(labels.get(FS_LABEL).map_or("ext4", String::as_str));
    let device_name = format!("{}-snap-{number}", files.pool_name);
    let device = devices.get(&device_name);
    let mut wanted = Wanted {
        name,
        parent,
        kind,
        labels,
        created_ns,
        updated_ns,
        device: device.and_then(|device| DeviceId::new(device.device_id).ok()),
        size: ByteCount(device.map_or(0, |device| device.size)),
        fs,
        usage,
        trouble: None,
        notes: Vec::new(),
    };
    match device.map(|device| (state_of(device.state), device.error.as_str())) {
        None => wanted.trouble = Some(format!("containerd has no record of its device {device_name}")),
        Some((State::Ready, _)) => {}
        Some((State::CutShort(state), error)) => {
            let why = if error.is_empty() { String::new() } else { format!(" ({error})") };
            wanted
                .notes
                .push(format!("containerd left its device in the state {state}{why}; its blocks are used as they are"));
        }
        Some((State::Unmade(state), _)) => wanted.trouble = Some(format!("its device is in the state {state}")),
        Some((State::Going, _)) => wanted.trouble = Some("containerd was removing its device".to_owned()),
    }
    Ok(wanted)
}

fn text(bytes: &[u8]) -> Result<String> {
    String::from_utf8(bytes.to_vec())
        .map_err(|error| Error::with_source(ErrorKind::Corrupt, "a text is not UTF-8", error))
}

/// Seven bits a byte, the lowest first.
fn uvarint(bytes: &[u8]) -> Option<u64> {
    let mut number: u64 = 0;
    for (n, byte) in bytes.iter().enumerate().take(10) {
        let bits = u64::from(byte & 0x7f);
        let shift = u32::try_from(n).ok()?.checked_mul(7)?;
        number |= bits.checked_shl(shift).filter(|shifted| shifted >> shift == bits)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// The sign in the lowest bit.
fn varint(bytes: &[u8]) -> Option<i64> {
    let zigzag = uvarint(bytes)?;
    let half = i64::try_from(zigzag >> 1).ok()?;
    Some(if zigzag & 1 == 0 { half } else { !half })
}

/// A time as Go writes it: version, seconds, nanoseconds, minutes from UTC, which change nothing of the moment.
fn go_time_ns(bytes: &[u8]) -> Option<i64> {
    if !matches!((bytes.first(), bytes.len()), (Some(1), 15) | (Some(2), 16)) {
        return None;
    }
    let seconds = i64::from_be_bytes(*bytes.get(1..)?.first_chunk()?);
    let nanoseconds = u32::from_be_bytes(*bytes.get(9..)?.first_chunk()?);
    seconds.checked_sub(GO_EPOCH)?.checked_mul(1_000_000_000)?.checked_add(i64::from(nanoseconds))
}

#[cfg(test)]
mod tests;
