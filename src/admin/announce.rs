//! Makes a running containerd know the snapshots that were migrated.
//!
//! containerd keeps a list of its own of what each of its snapshotters has, by names of its own, and deletes from a snapshotter
//! what is not in the list. It enters a committed snapshot when it asks for one by its label and the snapshotter says that
//! it is there, and an active one when it is prepared. Both are asked for here, once for each snapshot; done again, those that are
//! known are left alone.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::admin::client::channel_to;
use crate::admin::protocol::api;
use crate::error::Result;
use crate::grpc::snapshots_api::snapshots_client::SnapshotsClient;
use crate::grpc::snapshots_api::{PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest};
use crate::snapshotter::TAKE_LABEL;
use crate::store::REF_LABEL;

/// Marks a snapshot as wanted, until an image or a container is made of it (source: containerd).
const ROOT_LABEL: &str = "containerd.io/gc.root";
/// Carries the namespace of a request (source: containerd).
const NAMESPACE_HEADER: &str = "containerd-namespace";

/// What containerd was told.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Announced {
    /// Snapshots that containerd knows now and did not before, by namespace and key.
    pub told: Vec<String>,
    /// Those that it knew already.
    pub known: u64,
    /// Those that it does not know, and why: its next collection deletes them.
    pub unknown: Vec<String>,
}

/// A snapshot by the parts of the name that containerd gave it.
struct Given<'a> {
    snapshot: &'a api::Snapshot,
    namespace: &'a str,
    key: &'a str,
    parent: &'a str,
}

/// Tells the containerd that listens at `socket` of `snapshots`, all of the space that is its snapshotter's name. Errors:
/// `Unavailable` if it does not answer.
pub async fn announce(socket: PathBuf, snapshots: &[api::Snapshot]) -> Result<Announced> {
    let channel = channel_to(socket).await.map_err(|error| {
        error
            .doing("reach containerd")
            .advise("start it with thinsnap as a proxy plugin, and without its own devmapper")
    })?;
    let mut client = SnapshotsClient::new(channel);
    let mut announced = Announced::default();
    for snapshot in parents_first(snapshots) {
        let Some(given) = Given::of(snapshot) else { continue };
        match tell(&mut client, &given).await {
            Ok(true) => announced.told.push(format!("{}/{}", given.namespace, given.key)),
            Ok(false) => announced.known += 1,
            Err(why) => announced.unknown.push(format!("{}/{}: {why}", given.namespace, given.key)),
        }
    }
    Ok(announced)
}

impl<'a> Given<'a> {
    fn of(snapshot: &'a api::Snapshot) -> Option<Self> {
        let (namespace, key) = parts(&snapshot.name)?;
        let parent = snapshot.parent.as_deref().map_or(Some(""), |parent| parts(parent).map(|(_, key)| key))?;
        Some(Self { snapshot, namespace, key, parent })
    }
}

/// Namespace and key of NAMESPACE/NUMBER/KEY.
fn parts(name: &str) -> Option<(&str, &str)> {
    let mut parts = name.splitn(3, '/');
    let (namespace, number, key) = (parts.next()?, parts.next()?, parts.next()?);
    number.parse::<u64>().ok().map(|_| (namespace, key))
}

fn parents_first(snapshots: &[api::Snapshot]) -> Vec<&api::Snapshot> {
    let mut children: BTreeMap<Option<&str>, Vec<&api::Snapshot>> = BTreeMap::new();
    for snapshot in snapshots {
        children.entry(snapshot.parent.as_deref()).or_default().push(snapshot);
    }
    let mut ordered = children.remove(&None).unwrap_or_default();
    let mut done = 0;
    while let Some(snapshot) = ordered.get(done) {
        let below = children.remove(&Some(snapshot.name.as_str())).unwrap_or_default();
        ordered.extend(below);
        done += 1;
    }
    ordered
}

/// True: containerd knows it now; false: it did before. The error is for people.
async fn tell(client: &mut SnapshotsClient<Channel>, given: &Given<'_>) -> std::result::Result<bool, String> {
    let Given { snapshot, namespace, key, parent } = given;
    let failed = |status: tonic::Status| status.message().to_owned();
    let space = snapshot.space.clone();
    let stat = StatSnapshotRequest { snapshotter: space.clone(), key: (*key).to_owned() };
    match client.stat(within(namespace, stat)?).await {
        Ok(_) => return Ok(false),
        Err(status) if status.code() == Code::NotFound => {}
        Err(status) => return Err(failed(status)),
    }
    let active = match snapshot.kind.as_str() {
        "active" => true,
        "committed" => false,
        _ => return Err("a view cannot be handed over: have its user make it again".to_owned()),
    };
    let wanted = if active { (TAKE_LABEL, snapshot.name.as_str()) } else { (REF_LABEL, *key) };
    let asked = if active { (*key).to_owned() } else { format!("thinsnap-announces {key}") };
    let labels =
        [wanted, (ROOT_LABEL, snapshot.created_at.as_str())].map(|(key, value)| (key.to_owned(), value.to_owned()));
    let prepare = PrepareSnapshotRequest {
        snapshotter: space.clone(),
        key: asked.clone(),
        parent: (*parent).to_owned(),
        labels: labels.into(),
    };
    match client.prepare(within(namespace, prepare)?).await {
        Ok(_) if active => Ok(true),
        Err(status) if !active && status.code() == Code::AlreadyExists => Ok(true),
        Ok(_) => {
            // A new one, which nobody wants.
            let remove = RemoveSnapshotRequest { snapshotter: space, key: asked };
            client.remove(within(namespace, remove)?).await.map_err(failed)?;
            Err("it has no label that says what it is".to_owned())
        }
        Err(status) => Err(failed(status)),
    }
}

fn within<T>(namespace: &str, message: T) -> std::result::Result<Request<T>, String> {
    let mut request = Request::new(message);
    let value = namespace.parse().map_err(|_| format!("{namespace:?} is no namespace"))?;
    request.metadata_mut().insert(NAMESPACE_HEADER, value);
    Ok(request)
}
