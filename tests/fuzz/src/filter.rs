//! containerd's filter grammar, as a client may send it in a List request.

use std::sync::OnceLock;

use thinsnap::snapshot::{FsType, Kind, Labels, Name, Snapshot};
use thinsnap::snapshotter::Filter;
use thinsnap_pool::{ByteCount, DeviceId};

/// Parses a filter and asks it about a snapshot, twice: the answer is the same.
pub fn filter(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(filter) = Filter::parse(text) {
        assert_eq!(filter.matches(sample()), filter.matches(sample()));
    }
}

fn sample() -> &'static Snapshot {
    static SAMPLE: OnceLock<Snapshot> = OnceLock::new();
    SAMPLE.get_or_init(|| Snapshot {
        name: Name::new("sha256:abc").expect("a good name"),
        parent: Some(Name::new("below").expect("a good name")),
        kind: Kind::Committed,
        labels: Labels::from([
            ("containerd.io/snapshot.ref".to_owned(), "x=y".to_owned()),
            ("größe".to_owned(), "läuft".to_owned()),
        ]),
        created_ns: 1,
        updated_ns: 2,
        device: DeviceId::new(1).expect("a good id"),
        size: ByteCount(1 << 30),
        fs: FsType::Ext4,
        usage: None,
    })
}
