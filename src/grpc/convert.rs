//! Between containerd's messages and our own types: every check of a request's form is here.

use prost_types::{FieldMask, Timestamp};

use crate::error::{Error, ErrorKind, Result};
use crate::grpc::containerd_api::{mount_api, snapshots_api as api};
use crate::snapshot::{Kind, LABEL_LEN_MAX, Labels, Mount, Name, Snapshot, Space};
use crate::snapshotter::{Filter, LabelChange};

/// Most bytes that the labels of one snapshot may have together. A record must fit into one message of a
/// List stream with room to spare.
const LABELS_LEN_MAX: usize = 4 << 20;
/// Most bytes that the filters of one request may have together.
const FILTERS_LEN_MAX: usize = 1 << 20;

/// The request's `snapshotter` field.
pub fn space_of(text: String) -> Result<Space> {
    Space::new(text).map_err(|error| {
        error.advise("send the plugin's name in the field `snapshotter`, as containerd's [proxy_plugins.NAME] does")
    })
}

/// A parent: absent if empty.
pub(crate) fn parent(text: String) -> Result<Option<Name>> {
    if text.is_empty() { Ok(None) } else { Name::new(text).map(Some) }
}

/// Labels, each within containerd's limit.
pub fn labels_of(labels: Labels) -> Result<Labels> {
    let mut total = 0;
    for (key, value) in &labels {
        let len = key.len() + value.len();
        if key.is_empty() || len > LABEL_LEN_MAX {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!(
                    "label {:?} is empty or has {len} bytes with its value; at most {LABEL_LEN_MAX} are accepted",
                    key.chars().take(80).collect::<String>()
                ),
            ));
        }
        total += len;
    }
    if total > LABELS_LEN_MAX {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("labels have {total} bytes together; at most {LABELS_LEN_MAX} are accepted"),
        ));
    }
    Ok(labels)
}

/// Filters in containerd's grammar; an empty one matches everything.
pub fn filters_of(texts: &[String]) -> Result<Vec<Filter>> {
    let total: usize = texts.iter().map(String::len).sum();
    if total > FILTERS_LEN_MAX {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("filters have {total} bytes together; at most {FILTERS_LEN_MAX} are accepted"),
        ));
    }
    texts.iter().map(|text| Filter::parse(text)).collect()
}

/// What an Update request changes: name and labels. A mask without a path, or with the path `labels`, replaces
/// all labels; `labels.K` sets or, without a value, deletes one. Anything else cannot be changed.
pub(crate) fn update(info: Option<api::Info>, mask: Option<FieldMask>) -> Result<(Name, LabelChange)> {
    let info = info.ok_or_else(|| Error::new(ErrorKind::InvalidArgument, "update: the request holds no info"))?;
    let name = Name::new(info.name)?;
    let sent = labels_of(info.labels)?;
    let paths = mask.map(|mask| mask.paths).unwrap_or_default();
    let mut one_by_one = Vec::new();
    let mut all = paths.is_empty();
    for path in &paths {
        if path == "labels" {
            all = true;
            continue;
        }
        // A label's key may hold dots: only the first one ends `labels`.
        match path.split_once('.') {
            Some(("labels", key)) if !key.is_empty() => {
                let value = sent.get(key).filter(|value| !value.is_empty()).cloned();
                one_by_one.push((key.to_owned(), value));
            }
            _ => {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    format!(
                        "update snapshot {name}: field {:?} cannot be changed",
                        path.chars().take(80).collect::<String>()
                    ),
                )
                .advise("only `labels` and `labels.KEY` can"));
            }
        }
    }
    let change = if all {
        LabelChange::Replace(sent.into_iter().filter(|(_, value)| !value.is_empty()).collect())
    } else {
        LabelChange::Merge(one_by_one)
    };
    Ok((name, change))
}

/// A record as containerd reads it.
pub(crate) fn info(snapshot: Snapshot) -> api::Info {
    api::Info {
        name: snapshot.name.as_str().to_owned(),
        parent: snapshot.parent.map(|parent| parent.as_str().to_owned()).unwrap_or_default(),
        kind: match snapshot.kind {
            Kind::Active => api::Kind::Active,
            Kind::View => api::Kind::View,
            Kind::Committed => api::Kind::Committed,
        }
        .into(),
        created_at: Some(timestamp(snapshot.created_ns)),
        updated_at: Some(timestamp(snapshot.updated_ns)),
        labels: snapshot.labels,
    }
}

/// Mounts as containerd executes them.
pub(crate) fn mounts(mounts: Vec<Mount>) -> Result<Vec<mount_api::Mount>> {
    mounts
        .into_iter()
        .map(|mount| {
            let source = mount.source.into_os_string().into_string().map_err(|path| {
                Error::new(ErrorKind::Internal, format!("the device path {} is not UTF-8", path.display()))
            })?;
            Ok(mount_api::Mount {
                r#type: mount.fs.as_str().to_owned(),
                source,
                target: String::new(),
                options: mount.options,
            })
        })
        .collect()
}

fn timestamp(ns: i64) -> Timestamp {
    const SECOND: i64 = 1_000_000_000;
    let nanos = i32::try_from(ns.rem_euclid(SECOND)).expect("a remainder of 10^9 fits 31 bits");
    Timestamp { seconds: ns.div_euclid(SECOND), nanos }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prost_types::FieldMask;

    use super::{labels_of, parent, space_of, timestamp, update};
    use crate::error::ErrorKind;
    use crate::grpc::containerd_api::snapshots_api as api;
    use crate::snapshotter::LabelChange;

    fn info(labels: &[(&str, &str)]) -> Option<api::Info> {
        Some(api::Info {
            name: "n".into(),
            labels: labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            ..api::Info::default()
        })
    }

    fn mask(paths: &[&str]) -> Option<FieldMask> {
        Some(FieldMask { paths: paths.iter().map(|p| (*p).to_owned()).collect() })
    }

    #[test]
    fn an_empty_or_absent_mask_replaces_all_labels() {
        let all = LabelChange::Replace(BTreeMap::from([("a".into(), "1".into())]));
        assert_eq!(update(info(&[("a", "1"), ("b", "")]), None).unwrap().1, all);
        assert_eq!(update(info(&[("a", "1"), ("b", "")]), mask(&[])).unwrap().1, all);
        assert_eq!(update(info(&[("a", "1")]), mask(&["labels.x", "labels"])).unwrap().1, all);
    }

    #[test]
    fn a_path_with_dots_names_one_label() {
        let change =
            update(info(&[("containerd.io/a.b", "1"), ("z", "9")]), mask(&["labels.containerd.io/a.b", "labels.y"]));
        let expected = vec![("containerd.io/a.b".to_owned(), Some("1".to_owned())), ("y".to_owned(), None)];
        assert_eq!(change.unwrap().1, LabelChange::Merge(expected));
    }

    #[test]
    fn only_labels_can_be_changed() {
        for path in ["name", "parent", "kind", "created_at", "labels.", "labelsx", ""] {
            let error = update(info(&[]), mask(&[path])).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{path}");
        }
        assert_eq!(update(None, None).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }

    #[test]
    fn labels_over_the_limits_are_refused() {
        assert!(labels_of(BTreeMap::from([("k".repeat(96), "v".repeat(4000))])).is_ok());
        assert!(labels_of(BTreeMap::from([("k".repeat(97), "v".repeat(4000))])).is_err());
        assert!(labels_of((0..1100).map(|i| (format!("{i:04}"), "v".repeat(4000))).collect()).is_err());
        assert!(labels_of(BTreeMap::from([(String::new(), "v".into())])).is_err());
    }

    #[test]
    fn names_are_checked_at_the_rim() {
        assert!(space_of(String::new()).unwrap_err().advice().is_some());
        assert!(parent(String::new()).unwrap().is_none());
        assert!(parent("a\0b".into()).is_err());
    }

    #[test]
    fn times_before_the_epoch_keep_positive_nanoseconds() {
        let t = timestamp(-1);
        assert_eq!((t.seconds, t.nanos), (-1, 999_999_999));
    }
}
