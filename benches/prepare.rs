//! Measures Prepare and mount through containerd's gRPC service, at several depths of one chain of snapshots.
//!
//! `cargo bench --bench prepare -- --socket SOCKET --at DIR [--depths 1,100,500] [--repeats 200]` builds a chain of
//! committed snapshots, each with one small file of its own, and at each depth prepares, mounts, unmounts and
//! removes a container again and again. Prints one JSON object; benches/run.py turns it into the report.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use hyper_util::rt::TokioIo;
use nix::mount::{MsFlags, mount, umount};
use serde_json::json;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use thinsnap::grpc::mount_api::Mount;
use thinsnap::grpc::snapshots_api::snapshots_client::SnapshotsClient;
use thinsnap::grpc::snapshots_api::{CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest};

/// The plugin name that the calls carry, as containerd would send it.
const PLUGIN: &str = "bench";

#[derive(Parser)]
struct Arguments {
    /// The service's socket.
    #[arg(long)]
    socket: PathBuf,
    /// An empty directory to mount on.
    #[arg(long)]
    at: PathBuf,
    /// Depths of the chain at which to measure.
    #[arg(long, value_delimiter = ',', default_value = "1,100,500")]
    depths: Vec<u32>,
    /// Containers at each depth.
    #[arg(long, default_value_t = 200)]
    repeats: u32,
    /// A file of this many MiB in the first layer, for reads through the chain.
    #[arg(long, default_value_t = 0)]
    file_mib: u32,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

struct Client(SnapshotsClient<Channel>);

impl Client {
    async fn connect(socket: PathBuf) -> Result<Self, Box<dyn Error>> {
        // The address is never used: the connector opens the socket.
        let channel = Endpoint::from_static("http://[::1]:1")
            .connect_with_connector(tower::service_fn(move |_| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            }))
            .await?;
        Ok(Self(SnapshotsClient::new(channel)))
    }

    async fn prepare(&mut self, key: &str, parent: &str) -> Result<Mount, Box<dyn Error>> {
        let request = PrepareSnapshotRequest {
            snapshotter: PLUGIN.into(),
            key: key.into(),
            parent: parent.into(),
            labels: BTreeMap::new(),
        };
        self.0.prepare(request).await?.into_inner().mounts.pop().ok_or_else(|| "prepare answered no mount".into())
    }

    async fn commit(&mut self, name: &str, key: &str) -> Result<(), Box<dyn Error>> {
        let request = CommitSnapshotRequest {
            snapshotter: PLUGIN.into(),
            name: name.into(),
            key: key.into(),
            ..CommitSnapshotRequest::default()
        };
        self.0.commit(request).await?;
        Ok(())
    }

    async fn remove(&mut self, key: &str) -> Result<(), Box<dyn Error>> {
        self.0.remove(RemoveSnapshotRequest { snapshotter: PLUGIN.into(), key: key.into() }).await?;
        Ok(())
    }
}

/// Mounts as containerd does: words that are flags of mount(2) become flags, the others go to the file system.
fn mount_at(device: &Mount, at: &Path) -> Result<(), Box<dyn Error>> {
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

/// Adds layers up to `depth`, each with a small file of its own.
async fn deepen(client: &mut Client, arguments: &Arguments, from: u32, depth: u32) -> Result<(), Box<dyn Error>> {
    for n in from + 1..=depth {
        let device = client.prepare("deepen", &layer(n - 1)).await?;
        mount_at(&device, &arguments.at)?;
        let written = write_layer(arguments, n);
        umount(&arguments.at)?;
        written?;
        client.commit(&layer(n), "deepen").await?;
    }
    Ok(())
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

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let mut client = Client::connect(arguments.socket.clone()).await?;
    let mut results = Vec::new();
    let mut reached = 0;
    for &depth in &arguments.depths {
        deepen(&mut client, &arguments, reached, depth).await?;
        reached = depth;
        let (mut prepare, mut both, mut remove) = (Vec::new(), Vec::new(), Vec::new());
        for n in 0..arguments.repeats {
            let key = format!("container-{depth}-{n}");
            let start = Instant::now();
            let device = client.prepare(&key, &layer(depth)).await?;
            let prepared = start.elapsed();
            mount_at(&device, &arguments.at)?;
            let mounted = start.elapsed();
            umount(&arguments.at)?;
            let start = Instant::now();
            client.remove(&key).await?;
            prepare.push(prepared);
            both.push(mounted);
            remove.push(start.elapsed());
        }
        results.push(json!({
            "depth": depth,
            "repeats": arguments.repeats,
            "prepare_ms": spread(prepare),
            "prepare_and_mount_ms": spread(both),
            "remove_ms": spread(remove),
        }));
    }
    println!("{}", serde_json::to_string(&results)?);
    Ok(())
}

/// Median, 99th percentile and extremes in milliseconds.
fn spread(mut times: Vec<Duration>) -> serde_json::Value {
    times.sort_unstable();
    let at = |part: usize| times.get((times.len() * part / 100).min(times.len() - 1)).map(|t| t.as_secs_f64() * 1000.0);
    json!({ "p50": at(50), "p99": at(99), "min": at(0), "max": at(100) })
}
