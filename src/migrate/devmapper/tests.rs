//! Claims about the records that a containerd 2 left in its devmapper snapshotter: two layers, a container, a view.

use std::path::Path;

use super::{DevmapperFiles, go_time_ns, read_devmapper, uvarint, varint};
use crate::error::ErrorKind;
use crate::migrate::wanted::WantedFs;
use crate::snapshot::{FsType, Kind};

const FILES: [(&str, &[u8]); 2] = [
    ("metadata.db", include_bytes!("../testdata/metadata.db.zst")),
    ("pool.db", include_bytes!("../testdata/pool.db.zst")),
];

fn lay_down(dir: &Path) {
    for (name, packed) in FILES {
        std::fs::write(dir.join(name), zstd::decode_all(packed).unwrap()).unwrap();
    }
}

#[test]
fn the_records_of_a_real_containerd_are_read_as_it_tells_them() {
    let dir = tempfile::tempdir().unwrap();
    lay_down(dir.path());
    let (all, going) = read_devmapper(&DevmapperFiles::open(dir.path(), "pool").unwrap()).unwrap();
    let told: Vec<_> = all.iter().map(|one| (one.kind, one.device.map(|id| id.get()), one.parent.is_some())).collect();
    let wanted = [(Kind::Committed, 1), (Kind::Committed, 2), (Kind::Active, 4), (Kind::View, 3)];
    for (n, (kind, _)) in wanted.iter().enumerate() {
        assert_eq!((told[n].0, told[n].2), (*kind, n > 0), "{told:?}");
    }
    let mut ids: Vec<u32> = told.iter().filter_map(|one| one.1).collect();
    ids.sort_unstable();
    assert_eq!((ids, going.len()), (vec![1, 2, 3, 4], 0));
    for one in &all {
        assert_eq!((one.size.0, one.fs.clone()), (512 << 20, WantedFs::Known(FsType::Ext4)));
        assert!(one.trouble.is_none() && one.notes.is_empty(), "{one:?}");
        assert!(one.created_ns > 1_700_000_000_000_000_000 && one.updated_ns >= one.created_ns);
        assert_eq!(one.labels.values().next().map(String::as_str), Some("ext4"));
    }
    assert!(all[0].name.starts_with("default/2/sha256:") && all[2].name == "default/6/kept");
    assert_eq!(all[1].parent.as_deref(), Some(all[0].name.as_str()));
    // What containerd keeps is the sum with the layers below.
    let bytes = |n: usize| all[n].usage.map(|usage| usage.bytes);
    assert!(bytes(0) > Some(20 << 20) && (Some(1)..Some(4 << 20)).contains(&bytes(1)), "{:?}", bytes(1));
    assert_eq!((bytes(2), bytes(3)), (None, None));
}

#[test]
fn another_pool_s_name_and_no_snapshotter_are_told_with_what_to_name() {
    let dir = tempfile::tempdir().unwrap();
    lay_down(dir.path());
    let error = DevmapperFiles::open(dir.path(), "loop").err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.advice().unwrap().contains("pool_name"));
    assert_eq!(DevmapperFiles::open(dir.path(), "../pool").err().unwrap().kind(), ErrorKind::InvalidArgument);
}

#[test]
fn devices_whose_file_does_not_know_them_are_told() {
    let dir = tempfile::tempdir().unwrap();
    lay_down(dir.path());
    // The same file in the place of the other: sound, and without a bucket of devices.
    std::fs::copy(dir.path().join("metadata.db"), dir.path().join("pool.db")).unwrap();
    let (all, _) = read_devmapper(&DevmapperFiles::open(dir.path(), "pool").unwrap()).unwrap();
    assert!(all.iter().all(|one| one.trouble.as_ref().is_some_and(|trouble| trouble.contains("pool-snap-"))));
}

#[test]
fn numbers_and_times_are_those_of_go() {
    assert_eq!((uvarint(&[0xac, 0x02]), uvarint(&[0x80]), uvarint(&[])), (Some(300), None, None));
    assert_eq!(uvarint(&[0xff; 9].iter().copied().chain([1]).collect::<Vec<u8>>()), Some(u64::MAX));
    assert_eq!(uvarint(&[0xff; 10]), None);
    assert_eq!((varint(&[3]), varint(&[4]), varint(&[0])), (Some(-2), Some(2), Some(0)));
    // 2009-11-10 23:00:00 UTC.
    let time = [1, 0, 0, 0, 14, 0xc2, 0x8b, 0xe7, 0x70, 0, 0, 0, 7, 0xff, 0xff];
    assert_eq!(go_time_ns(&time), Some(1_257_894_000_000_000_007));
    assert_eq!((go_time_ns(&time[..14]), go_time_ns(&[1; 16]), go_time_ns(&[0x7f; 15])), (None, None, None));
}
