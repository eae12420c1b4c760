//! A snapshotter's verbs, called directly: nothing between the laws and the code.

use std::sync::Arc;

use thinsnap::error::Error;
use thinsnap::snapshot::{Labels, Mount, Name, Snapshot, Space, Usage};
use thinsnap::snapshotter::{Filter, LabelChange, Snapshotter};

use crate::client::{Answer, Client, Failure, Info};

/// Calls without anything between.
pub(crate) struct DirectClient {
    pub(crate) snapshotter: Arc<Snapshotter>,
    pub(crate) space: Space,
}

impl DirectClient {
    pub(crate) fn new(snapshotter: Arc<Snapshotter>, space: &str) -> Self {
        Self { snapshotter, space: Space::new(space).unwrap() }
    }
}

fn failure(error: Error) -> Failure {
    Failure { code: error.kind().code(), message: error.to_string() }
}

fn labels_of(labels: &[(&str, &str)]) -> Labels {
    labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn parent_of(parent: &str) -> Answer<Option<Name>> {
    if parent.is_empty() { Ok(None) } else { name(parent).map(Some) }
}

fn name(text: &str) -> Answer<Name> {
    Name::new(text).map_err(failure)
}

fn info(snapshot: Snapshot) -> Info {
    Info {
        name: snapshot.name.as_str().to_owned(),
        parent: snapshot.parent.map(|p| p.as_str().to_owned()).unwrap_or_default(),
        kind: snapshot.kind,
        labels: snapshot.labels,
        created_ns: snapshot.created_ns,
        updated_ns: snapshot.updated_ns,
    }
}

impl Client for DirectClient {
    fn prepare(&self, key: &str, parent: &str, labels: &[(&str, &str)]) -> Answer<Vec<Mount>> {
        let parent = parent_of(parent)?;
        self.snapshotter.prepare(&self.space, &name(key)?, parent.as_ref(), labels_of(labels)).map_err(failure)
    }

    fn view(&self, key: &str, parent: &str, labels: &[(&str, &str)]) -> Answer<Vec<Mount>> {
        let parent = parent_of(parent)?;
        self.snapshotter.view(&self.space, &name(key)?, parent.as_ref(), labels_of(labels)).map_err(failure)
    }

    fn mounts(&self, key: &str) -> Answer<Vec<Mount>> {
        self.snapshotter.mounts(&self.space, &name(key)?).map_err(failure)
    }

    fn commit_onto(&self, to: &str, key: &str, labels: &[(&str, &str)], parent: &str) -> Answer<()> {
        let parent = parent_of(parent)?;
        let labels = labels_of(labels);
        self.snapshotter.commit(&self.space, &name(to)?, &name(key)?, labels, parent.as_ref()).map_err(failure)
    }

    fn remove(&self, key: &str) -> Answer<()> {
        self.snapshotter.remove(&self.space, &name(key)?).map_err(failure)
    }

    fn stat(&self, key: &str) -> Answer<Info> {
        self.snapshotter.stat(&self.space, &name(key)?).map(info).map_err(failure)
    }

    fn update(&self, key: &str, labels: &[(&str, &str)], paths: &[&str]) -> Answer<Info> {
        let labels = labels_of(labels);
        let change = if paths.is_empty() || paths.contains(&"labels") {
            LabelChange::Replace(labels)
        } else {
            let mut changes = Vec::new();
            for path in paths {
                let key = path.strip_prefix("labels.").ok_or_else(|| Failure {
                    code: tonic::Code::InvalidArgument,
                    message: format!("cannot change {path}"),
                })?;
                changes.push((key.to_owned(), labels.get(key).cloned()));
            }
            LabelChange::Merge(changes)
        };
        self.snapshotter.update(&self.space, &name(key)?, change).map(info).map_err(failure)
    }

    fn list(&self, filters: &[&str]) -> Answer<Vec<Info>> {
        let filters: Result<Vec<Filter>, Error> = filters.iter().map(|text| Filter::parse(text)).collect();
        let found = self.snapshotter.list(&self.space, &filters.map_err(failure)?).map_err(failure)?;
        Ok(found.into_iter().map(info).collect())
    }

    fn usage(&self, key: &str) -> Answer<Usage> {
        self.snapshotter.usage(&self.space, &name(key)?).map_err(failure)
    }

    fn cleanup(&self) -> Answer<()> {
        self.snapshotter.cleanup().map_err(failure)
    }

    fn elsewhere(&self, space: &str) -> Box<dyn Client> {
        Box::new(Self::new(self.snapshotter.clone(), space))
    }
}
