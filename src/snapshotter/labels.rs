//! Labels: their limits, their changes, and the one that asks for a size; and the clock of records.

use std::time::{SystemTime, UNIX_EPOCH};

use thinsnap_pool::ByteCount;

use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{LABEL_LEN_MAX, Labels};

/// The label that asks for a size in decimal bytes (source: containerd).
const SIZE_LABEL: &str = "containerd.io/snapshot/max-size";
/// Sizes are rounded up to this: the block of both file systems.
const SIZE_STEP: u64 = 4096;
/// The largest size that is granted: 1 PiB; ext4 with 4 KiB blocks ends at 1 EiB.
const SIZE_MAX: u64 = 1 << 50;

/// What to change in a snapshot's labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelChange {
    /// These labels and no others.
    Replace(Labels),
    /// Set the ones with a value, delete the ones without.
    Merge(Vec<(String, Option<String>)>),
}

impl LabelChange {
    /// What `labels` become; an empty value deletes.
    pub(crate) fn apply(self, mut labels: Labels) -> Labels {
        match self {
            Self::Replace(new) => new,
            Self::Merge(changes) => {
                for (key, value) in changes {
                    match value {
                        Some(value) => labels.insert(key, value),
                        None => labels.remove(&key),
                    };
                }
                labels
            }
        }
    }
}

/// The labels without those of an empty value. Errors: `InvalidArgument` for one that is too long.
pub(crate) fn check_labels(mut labels: Labels) -> Result<Labels> {
    labels.retain(|_, value| !value.is_empty());
    match labels.iter().find(|(key, value)| key.len() + value.len() > LABEL_LEN_MAX) {
        None => Ok(labels),
        Some((key, value)) => Err(Error::new(
            ErrorKind::InvalidArgument,
            format!(
                "label {:?}: key and value have {} bytes, more than {LABEL_LEN_MAX}",
                key.chars().take(64).collect::<String>(),
                key.len() + value.len()
            ),
        )),
    }
}

/// The size of a new snapshot: never below its parent's, the profile's unless a label asks for more. A
/// label that says less, or nothing that can be read, does not count.
pub(crate) fn wanted_size(labels: &Labels, parent: ByteCount, profile: ByteCount) -> ByteCount {
    let label = labels.get(SIZE_LABEL).and_then(|text| text.parse::<u64>().ok()).filter(|&bytes| bytes <= SIZE_MAX);
    let label = label.map_or(0, |bytes| bytes.next_multiple_of(SIZE_STEP));
    ByteCount(label.max(parent.0).max(profile.0))
}

/// Nanoseconds since the epoch.
pub(crate) fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use thinsnap_pool::ByteCount;

    use super::{LabelChange, SIZE_LABEL, check_labels, wanted_size};
    use crate::snapshot::{LABEL_LEN_MAX, Labels};

    #[test]
    fn a_size_label_only_makes_larger() {
        let size = |label: &str| {
            wanted_size(
                &Labels::from([(SIZE_LABEL.to_owned(), label.to_owned())]),
                ByteCount(8 << 20),
                ByteCount(4 << 20),
            )
        };
        for (label, wanted) in
            [("1", 8 << 20), ("", 8 << 20), ("10M", 8 << 20), ("-1", 8 << 20), ("16777215", 16 << 20), ("1e9", 8 << 20)]
        {
            assert_eq!(size(label), ByteCount(wanted), "{label:?}");
        }
        assert_eq!(size("18446744073709551615"), ByteCount(8 << 20));
    }

    #[test]
    fn a_label_may_have_4096_bytes_and_no_more() {
        let label = |value: usize| Labels::from([("k".to_owned(), "v".repeat(value))]);
        assert!(check_labels(label(LABEL_LEN_MAX - 1)).is_ok());
        assert!(check_labels(label(LABEL_LEN_MAX)).is_err());
    }

    #[test]
    fn an_empty_value_deletes() {
        let old = Labels::from([("a".into(), "1".into()), ("b".into(), "2".into()), ("c".into(), "3".into())]);
        let change = LabelChange::Merge(vec![
            ("a".into(), Some(String::new())),
            ("b".into(), None),
            ("d".into(), Some("4".into())),
        ]);
        let new = check_labels(change.apply(old)).unwrap();
        assert_eq!(new, Labels::from([("c".into(), "3".into()), ("d".into(), "4".into())]));
    }
}
