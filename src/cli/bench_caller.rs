//! Calls a service as containerd does, and tells how long each call took: the stopwatch of `thinsnap bench`.
//!
//! A line of standard input is a JSON list of calls, which are made at the same time; the answer is a line with what
//! came of each, in their order. It ends with its input.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::PathBuf;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tonic::Status;
use tonic::transport::Channel;

use crate::admin::{api, channel_to};
use crate::cli::args::Global;
use crate::cli::mount_here;
use crate::cli::output::write_stdout;
use crate::error::{Error, ErrorKind, Result};
use crate::fs;
use crate::grpc::mount_api;
use crate::grpc::snapshots_api::snapshots_client::SnapshotsClient;
use crate::grpc::snapshots_api::{
    CleanupRequest, CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, UsageRequest,
    ViewSnapshotRequest,
};

/// One call. An absent parent is none.
#[derive(Debug, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
enum Call {
    Prepare {
        key: String,
        #[serde(default)]
        parent: String,
        #[serde(default)]
        labels: BTreeMap<String, String>,
    },
    View {
        key: String,
        #[serde(default)]
        parent: String,
    },
    Commit {
        key: String,
        name: String,
    },
    Remove {
        key: String,
    },
    Usage {
        key: String,
    },
    /// Answers when all that was removed has been given back.
    Cleanup,
    Mount {
        device: Device,
        at: PathBuf,
    },
    Unmount {
        at: PathBuf,
    },
}

/// What Prepare and View answer, and what is mounted.
#[derive(Debug, Serialize, Deserialize)]
struct Device {
    fs: String,
    source: String,
    options: Vec<String>,
}

/// What came of a call.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    /// From the call to its answer.
    ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<Device>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_bytes: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(crate) fn run(global: &Global) -> Result<()> {
    let socket = global.socket.clone().ok_or_else(|| {
        Error::new(ErrorKind::InvalidArgument, "call a service: which one?")
            .advise("thinsnap bench-caller --socket PATH")
    })?;
    let runtime = tokio::runtime::Runtime::new().map_err(|error| Error::io("start the caller's threads", error))?;
    let channel = runtime.block_on(channel_to(socket))?;
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|error| Error::io("read the calls", error))?;
        let calls: Vec<Call> = serde_json::from_str(&line)
            .map_err(|error| Error::with_source(ErrorKind::InvalidArgument, "understand the calls", error))?;
        let outcomes = runtime.block_on(all_at_once(&channel, &global.space, calls))?;
        let mut answer = serde_json::to_vec(&outcomes)
            .map_err(|error| Error::with_source(ErrorKind::Internal, "write the answer as JSON", error))?;
        answer.push(b'\n');
        write_stdout(&answer)?;
    }
    Ok(())
}

async fn all_at_once(channel: &Channel, space: &str, calls: Vec<Call>) -> Result<Vec<Outcome>> {
    let running: Vec<_> = calls
        .into_iter()
        .map(|call| tokio::spawn(timed(SnapshotsClient::new(channel.clone()), space.to_owned(), call)))
        .collect();
    let mut outcomes = Vec::with_capacity(running.len());
    for call in running {
        let outcome = call.await;
        outcomes.push(outcome.map_err(|error| Error::with_source(ErrorKind::Internal, "wait for a call", error))?);
    }
    Ok(outcomes)
}

async fn timed(client: SnapshotsClient<Channel>, space: String, call: Call) -> Outcome {
    let start = Instant::now();
    let outcome = made(client, space, call).await;
    let ms = start.elapsed().as_secs_f64() * 1000.0;
    match outcome {
        Ok(outcome) => Outcome { ms, ..outcome },
        Err(error) => Outcome { ms, error: Some(error), ..Outcome::default() },
    }
}

async fn made(
    mut client: SnapshotsClient<Channel>,
    snapshotter: String,
    call: Call,
) -> std::result::Result<Outcome, String> {
    match call {
        Call::Prepare { key, parent, labels } => {
            let request = PrepareSnapshotRequest { snapshotter, key, parent, labels };
            shown(client.prepare(request).await.map_err(words)?.into_inner().mounts)
        }
        Call::View { key, parent } => {
            let request = ViewSnapshotRequest { snapshotter, key, parent, labels: BTreeMap::new() };
            shown(client.view(request).await.map_err(words)?.into_inner().mounts)
        }
        Call::Commit { key, name } => {
            let request = CommitSnapshotRequest { snapshotter, name, key, ..CommitSnapshotRequest::default() };
            client.commit(request).await.map(|_| Outcome::default()).map_err(words)
        }
        Call::Remove { key } => {
            let request = RemoveSnapshotRequest { snapshotter, key };
            client.remove(request).await.map(|_| Outcome::default()).map_err(words)
        }
        Call::Usage { key } => {
            let usage = client.usage(UsageRequest { snapshotter, key }).await.map_err(words)?.into_inner();
            Ok(Outcome { usage_bytes: Some(usage.size), ..Outcome::default() })
        }
        Call::Cleanup => {
            let request = CleanupRequest { snapshotter };
            client.cleanup(request).await.map(|_| Outcome::default()).map_err(words)
        }
        Call::Mount { device: Device { fs, source, options }, at } => {
            let mounts = [api::Mount { fs, source, options }];
            blocking(move || mount_here::mount(&mounts, &at).map(drop)).await
        }
        Call::Unmount { at } => blocking(move || fs::unmount(&at)).await,
    }
}

async fn blocking(work: impl FnOnce() -> Result<()> + Send + 'static) -> std::result::Result<Outcome, String> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?;
    done.map(|()| Outcome::default()).map_err(|error| error.to_string())
}

fn shown(mounts: Vec<mount_api::Mount>) -> std::result::Result<Outcome, String> {
    let [mount] = <[mount_api::Mount; 1]>::try_from(mounts).map_err(|all| format!("{} mounts, not one", all.len()))?;
    let device = Device { fs: mount.r#type, source: mount.source, options: mount.options };
    Ok(Outcome { device: Some(device), ..Outcome::default() })
}

fn words(status: Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
