//! Times each verb of containerd's gRPC service as containerd calls it: at depths of a chain, beside many snapshots, many at once.
//!
//! ```text
//! cargo bench --bench prepare -- --socket SOCKET --at DIR [--depths 1,100] [--present 10,10000] [--repeats 200]
//!     [--at-once 1,2,100] [--file-mib 0]
//! ```
//!
//! A point is a depth with a number of snapshots present; without `--present` nothing is added to the chain. At each
//! point, again and again:
//! - a container: Prepare, mount, Usage, unmount, Remove;
//! - a layer: Prepare, mount, one file of 64 KiB written, unmount, Commit, Usage, a View of it, Remove of both.
//!
//! `--at-once` then prepares 100 containers (or as many as the largest number) on the deepest layer, with so many calls
//! in flight.
//! Prints one JSON object; every `…_ms` of a point is `{p50, p99, min, max}` in milliseconds, measured by the caller:
//!
//! ```text
//! {"points": [{"depth", "present", "repeats", "prepare_ms", "mount_ms", "prepare_and_mount_ms", "usage_ms", "unmount_ms",
//!              "remove_ms", "commit_ms", "usage_committed_ms", "view_ms", "remove_view_ms"}],
//!  "at_once": [{"in_flight", "calls", "calls_per_second", "prepare_ms"}]}
//! ```
//!
//! Layers stay: `layer-DEPTH` of the space `bench`; with `--file-mib` the first holds `large`, for reads through the chain.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use hyper_util::rt::TokioIo;
use nix::mount::{MsFlags, mount, umount};
use serde_json::json;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

use thinsnap::grpc::mount_api::Mount;
use thinsnap::grpc::snapshots_api::snapshots_client::SnapshotsClient;
use thinsnap::grpc::snapshots_api::{
    CleanupRequest, CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, UsageRequest,
    ViewSnapshotRequest,
};

/// The plugin name that the calls carry, as containerd would send it.
const PLUGIN: &str = "bench";
/// Calls in flight while snapshots are made that are only to be there.
const FILLERS_AT_ONCE: u32 = 32;
/// Fewest calls of a measurement at once.
const AT_ONCE_CALLS: u32 = 100;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Parser)]
struct Arguments {
    /// The service's socket.
    #[arg(long)]
    socket: PathBuf,
    /// An empty directory to mount on.
    #[arg(long)]
    at: PathBuf,
    /// Depths of the chain at which to measure, ascending.
    #[arg(long, value_delimiter = ',', default_value = "1,100,500")]
    depths: Vec<u32>,
    /// Snapshots, in all, beside which to measure, ascending; committed ones are made until there are so many.
    #[arg(long, value_delimiter = ',')]
    present: Vec<u32>,
    /// Containers and layers at each point.
    #[arg(long, default_value_t = 200)]
    repeats: u32,
    /// Prepares in flight at one time, measured after the points.
    #[arg(long, value_delimiter = ',')]
    at_once: Vec<u32>,
    /// A file of this many MiB in the first layer, for reads through the chain.
    #[arg(long, default_value_t = 0)]
    file_mib: u32,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone)]
struct Client(SnapshotsClient<Channel>);

impl Client {
    async fn connect(socket: PathBuf) -> Outcome<Self> {
        // The address is never used: the connector opens the socket.
        let channel = Endpoint::from_static("http://[::1]:1")
            .connect_with_connector(tower::service_fn(move |_| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            }))
            .await?;
        Ok(Self(SnapshotsClient::new(channel)))
    }

    async fn prepare(&mut self, key: &str, parent: &str) -> Outcome<Mount> {
        let request = PrepareSnapshotRequest {
            snapshotter: PLUGIN.into(),
            key: key.into(),
            parent: parent.into(),
            labels: BTreeMap::new(),
        };
        self.0.prepare(request).await?.into_inner().mounts.pop().ok_or_else(|| "prepare answered no mount".into())
    }

    async fn view(&mut self, key: &str, parent: &str) -> Outcome<()> {
        let request = ViewSnapshotRequest {
            snapshotter: PLUGIN.into(),
            key: key.into(),
            parent: parent.into(),
            labels: BTreeMap::new(),
        };
        self.0.view(request).await?;
        Ok(())
    }

    async fn commit(&mut self, name: &str, key: &str) -> Outcome<()> {
        let request = CommitSnapshotRequest {
            snapshotter: PLUGIN.into(),
            name: name.into(),
            key: key.into(),
            ..CommitSnapshotRequest::default()
        };
        self.0.commit(request).await?;
        Ok(())
    }

    async fn remove(&mut self, key: &str) -> Outcome<()> {
        self.0.remove(RemoveSnapshotRequest { snapshotter: PLUGIN.into(), key: key.into() }).await?;
        Ok(())
    }

    async fn usage(&mut self, key: &str) -> Outcome<()> {
        self.0.usage(UsageRequest { snapshotter: PLUGIN.into(), key: key.into() }).await?;
        Ok(())
    }

    /// Returns when all that was removed has been given back.
    async fn cleanup(&mut self) -> Outcome<()> {
        self.0.cleanup(CleanupRequest { snapshotter: PLUGIN.into() }).await?;
        Ok(())
    }
}

/// Mounts as containerd does: words that are flags of mount(2) become flags, the others go to the file system.
fn mount_at(device: &Mount, at: &Path) -> Outcome<()> {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in &device.options {
        match option.as_str() {
            "rw" => {}
            "ro" => flags |= MsFlags::MS_RDONLY,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            other => data.push(other),
        }
    }
    mount(Some(device.source.as_str()), at, Some(device.r#type.as_str()), flags, Some(data.join(",").as_str()))?;
    Ok(())
}

fn layer(depth: u32) -> String {
    if depth == 0 { String::new() } else { format!("layer-{depth}") }
}

/// What one layer changes: a small file of its own and, in the first, the large one.
fn write_layer(arguments: &Arguments, n: u32) -> std::io::Result<()> {
    std::fs::write(arguments.at.join(format!("layer-{n}")), vec![b'x'; 64 << 10])?;
    if n == 1 && arguments.file_mib > 0 {
        use std::io::Write;
        let mut file = std::fs::File::create(arguments.at.join("large"))?;
        let mut piece = vec![0_u8; 1 << 20];
        for _ in 0..arguments.file_mib {
            std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut piece)?;
            file.write_all(&piece)?;
        }
        file.sync_all()?;
    }
    Ok(())
}

/// Times by the name that they are printed under.
#[derive(Default)]
struct Times(BTreeMap<&'static str, Vec<Duration>>);

impl Times {
    fn note(&mut self, name: &'static str, time: Duration) {
        self.0.entry(name).or_default().push(time);
    }

    /// The time from `start` on.
    fn since(&mut self, name: &'static str, start: Instant) {
        self.note(name, start.elapsed());
    }
}

struct Bench {
    arguments: Arguments,
    client: Client,
    /// Length of the chain.
    depth: u32,
    /// Committed snapshots that are only there.
    fillers: u32,
}

impl Bench {
    /// Adds layers up to `depth`, each with a small file of its own.
    async fn deepen(&mut self, depth: u32) -> Outcome<()> {
        for n in self.depth + 1..=depth {
            let device = self.client.prepare("deepen", &layer(n - 1)).await?;
            mount_at(&device, &self.arguments.at)?;
            let written = write_layer(&self.arguments, n);
            umount(&self.arguments.at)?;
            written?;
            self.client.commit(&layer(n), "deepen").await?;
            self.depth = n;
        }
        Ok(())
    }

    /// Adds committed snapshots beside the chain until there are `present` in all.
    async fn fill(&mut self, present: u32) -> Outcome<()> {
        let wanted = present.saturating_sub(self.depth);
        while self.fillers < wanted {
            let batch = FILLERS_AT_ONCE.min(wanted - self.fillers);
            let mut calls = JoinSet::new();
            for n in self.fillers..self.fillers + batch {
                let mut client = self.client.clone();
                calls.spawn(async move {
                    let key = format!("fill-{n}");
                    client.prepare(&key, &layer(1)).await?;
                    client.commit(&format!("filler-{n}"), &key).await
                });
            }
            for done in calls.join_all().await {
                done?;
            }
            self.fillers += batch;
        }
        Ok(())
    }

    async fn measure_container(&mut self, key: &str, times: &mut Times) -> Outcome<()> {
        let start = Instant::now();
        let device = self.client.prepare(key, &layer(self.depth)).await?;
        let prepared = start.elapsed();
        mount_at(&device, &self.arguments.at)?;
        let mounted = start.elapsed();
        times.note("prepare_ms", prepared);
        times.note("mount_ms", mounted - prepared);
        times.note("prepare_and_mount_ms", mounted);
        let start = Instant::now();
        self.client.usage(key).await?;
        times.since("usage_ms", start);
        let start = Instant::now();
        umount(&self.arguments.at)?;
        times.since("unmount_ms", start);
        let start = Instant::now();
        self.client.remove(key).await?;
        times.since("remove_ms", start);
        Ok(())
    }

    async fn measure_layer(&mut self, key: &str, times: &mut Times) -> Outcome<()> {
        let device = self.client.prepare(key, &layer(self.depth)).await?;
        mount_at(&device, &self.arguments.at)?;
        let written = std::fs::write(self.arguments.at.join("written"), vec![b'y'; 64 << 10]);
        umount(&self.arguments.at)?;
        written?;
        let (name, look) = (format!("{key}-committed"), format!("{key}-view"));
        let start = Instant::now();
        self.client.commit(&name, key).await?;
        times.since("commit_ms", start);
        let start = Instant::now();
        self.client.usage(&name).await?;
        times.since("usage_committed_ms", start);
        let start = Instant::now();
        self.client.view(&look, &name).await?;
        times.since("view_ms", start);
        let start = Instant::now();
        self.client.remove(&look).await?;
        times.since("remove_view_ms", start);
        self.client.remove(&name).await
    }

    async fn measure_point(&mut self) -> Outcome<serde_json::Value> {
        let mut times = Times::default();
        let present = self.depth + self.fillers;
        for n in 0..self.arguments.repeats {
            let key = format!("{}-{present}-{n}", self.depth);
            self.measure_container(&format!("container-{key}"), &mut times).await?;
            self.measure_layer(&format!("unpack-{key}"), &mut times).await?;
        }
        self.client.cleanup().await?;
        let mut point = json!({ "depth": self.depth, "present": present, "repeats": self.arguments.repeats });
        for (name, times) in times.0 {
            point[name] = spread(times);
        }
        Ok(point)
    }

    /// `calls` Prepares with `in_flight` of them under way at any time.
    async fn measure_at_once(&mut self, in_flight: u32, calls: u32) -> Outcome<serde_json::Value> {
        let mut callers = JoinSet::new();
        let start = Instant::now();
        for caller in 0..in_flight {
            let (mut client, parent) = (self.client.clone(), layer(self.depth));
            callers.spawn(async move {
                let mut times = Vec::new();
                for n in (caller..calls).step_by(in_flight as usize) {
                    let start = Instant::now();
                    client.prepare(&format!("at-once-{in_flight}-{n}"), &parent).await?;
                    times.push(start.elapsed());
                }
                Outcome::Ok(times)
            });
        }
        let mut times = Vec::new();
        for done in callers.join_all().await {
            times.extend(done?);
        }
        let whole = start.elapsed();
        for n in 0..calls {
            self.client.remove(&format!("at-once-{in_flight}-{n}")).await?;
        }
        self.client.cleanup().await?;
        Ok(json!({
            "in_flight": in_flight,
            "calls": calls,
            "calls_per_second": f64::from(calls) / whole.as_secs_f64(),
            "prepare_ms": spread(times),
        }))
    }
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let arguments = Arguments::parse();
    let client = Client::connect(arguments.socket.clone()).await?;
    let (depths, at_once) = (arguments.depths.clone(), arguments.at_once.clone());
    let present = if arguments.present.is_empty() { vec![0] } else { arguments.present.clone() };
    let mut bench = Bench { arguments, client, depth: 0, fillers: 0 };
    let (mut points, mut together) = (Vec::new(), Vec::new());
    for depth in depths {
        bench.deepen(depth).await?;
        for &present in &present {
            bench.fill(present).await?;
            points.push(bench.measure_point().await?);
        }
    }
    let calls = at_once.iter().copied().max().unwrap_or(0).max(AT_ONCE_CALLS);
    for in_flight in at_once {
        together.push(bench.measure_at_once(in_flight.max(1), calls).await?);
    }
    println!("{}", json!({ "points": points, "at_once": together }));
    Ok(())
}

/// Median, 99th percentile and extremes in milliseconds.
fn spread(mut times: Vec<Duration>) -> serde_json::Value {
    times.sort_unstable();
    let at = |part: usize| times.get((times.len() * part / 100).min(times.len() - 1)).map(|t| t.as_secs_f64() * 1000.0);
    json!({ "p50": at(50), "p99": at(99), "min": at(0), "max": at(100) })
}
