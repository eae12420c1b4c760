//! A snapshotter as containerd's proxy sees it, whatever lies between: a call, or a socket.

use std::collections::BTreeMap;

use thinsnap::snapshot::{Kind, Mount, Usage};

/// A refusal: the gRPC code and the text.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: tonic::Code,
    pub(crate) message: String,
}

pub(crate) type Answer<T> = Result<T, Failure>;

/// The fields of a snapshot that go over the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Info {
    pub(crate) name: String,
    /// Empty without one.
    pub(crate) parent: String,
    pub(crate) kind: Kind,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) created_ns: i64,
    pub(crate) updated_ns: i64,
}

/// The verbs; an empty `parent` is none, as on the wire.
pub(crate) trait Client: Send + Sync {
    fn prepare(&self, key: &str, parent: &str, labels: &[(&str, &str)]) -> Answer<Vec<Mount>>;
    fn view(&self, key: &str, parent: &str, labels: &[(&str, &str)]) -> Answer<Vec<Mount>>;
    fn mounts(&self, key: &str) -> Answer<Vec<Mount>>;
    fn commit_onto(&self, name: &str, key: &str, labels: &[(&str, &str)], parent: &str) -> Answer<()>;
    fn remove(&self, key: &str) -> Answer<()>;
    fn stat(&self, key: &str) -> Answer<Info>;
    /// `paths` as in a field mask: none, `labels`, or `labels.KEY`; others are refused.
    fn update(&self, key: &str, labels: &[(&str, &str)], paths: &[&str]) -> Answer<Info>;
    fn list(&self, filters: &[&str]) -> Answer<Vec<Info>>;
    fn usage(&self, key: &str) -> Answer<Usage>;
    fn cleanup(&self) -> Answer<()>;
    /// The same service under another snapshotter name.
    fn elsewhere(&self, space: &str) -> Box<dyn Client>;

    fn commit(&self, name: &str, key: &str) -> Answer<()> {
        self.commit_onto(name, key, &[], "")
    }
}
