//! Measures the verbs of several snapshotters of one containerd by turns, through containerd's own socket.
//!
//! `cargo bench --bench versus -- --socket SOCKET --at DIR --parent CHAIN_ID --snapshotters devmapper,thinsnap` lives
//! through a container's life again and again, one snapshotter after the other: Prepare of a first layer, Prepare on
//! `--parent`, a small file written, Commit, Prepare on what was committed, View, Remove, and a garbage collection that
//! gives all of it back. The same client and the same wire for all of them. Prints one JSON object: snapshotter → verb →
//! milliseconds.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser;
use hyper_util::rt::TokioIo;
use nix::mount::{MsFlags, mount, umount};
use tokio::net::UnixStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, client::Grpc};
use tonic_prost::ProstCodec;

use thinsnap::grpc::mount_api::Mount;
use thinsnap::grpc::snapshots_api::snapshots_client::SnapshotsClient;
use thinsnap::grpc::snapshots_api::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, ViewSnapshotRequest,
};

/// Bytes that each committed layer has of its own.
const LAYER_BYTES: usize = 64 << 10;
/// Keeps a snapshot that no image names from being collected as garbage.
const ROOT_LABEL: &str = "containerd.io/gc.root";

#[derive(Parser)]
struct Arguments {
    /// Containerd's socket.
    #[arg(long)]
    socket: PathBuf,
    /// An empty directory to mount on.
    #[arg(long)]
    at: PathBuf,
    /// The committed snapshot that containers are made of, in each of the snapshotters.
    #[arg(long)]
    parent: String,
    /// Whose turn it is, in this order.
    #[arg(long, value_delimiter = ',')]
    snapshotters: Vec<String>,
    /// Lives of each snapshotter that are measured; one more before them is not.
    #[arg(long, default_value_t = 20)]
    repeats: u32,
    /// The namespace that the image was imported into.
    #[arg(long, default_value = "default")]
    namespace: String,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// `containerd.services.leases.v1.CreateRequest`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
struct CreateLease {
    #[prost(string, tag = "1")]
    id: String,
}

/// `containerd.services.leases.v1.DeleteRequest`: with `sync` it answers after a garbage collection.
#[derive(Clone, PartialEq, prost::Message)]
struct DeleteLease {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(bool, tag = "2")]
    sync: bool,
}

/// An answer of which nothing is read.
#[derive(Clone, PartialEq, prost::Message)]
struct Anything {}

type Outcome<T> = Result<T, Box<dyn Error>>;
/// Verb → milliseconds.
type Times = BTreeMap<&'static str, Vec<f64>>;

/// One snapshotter of the containerd.
struct Client<'a> {
    channel: Channel,
    arguments: &'a Arguments,
    snapshotter: &'a str,
}

impl Client<'_> {
    fn request<T>(&self, message: T) -> Outcome<Request<T>> {
        let mut request = Request::new(message);
        let namespace = MetadataValue::try_from(self.arguments.namespace.as_str())?;
        request.metadata_mut().insert("containerd-namespace", namespace);
        Ok(request)
    }

    fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone())
    }

    fn labels() -> BTreeMap<String, String> {
        BTreeMap::from([(ROOT_LABEL.to_owned(), "1970-01-01T00:00:00Z".to_owned())])
    }

    async fn prepare(&self, key: &str, parent: &str) -> Outcome<Mount> {
        let request = self.request(PrepareSnapshotRequest {
            snapshotter: self.snapshotter.into(),
            key: key.into(),
            parent: parent.into(),
            labels: Self::labels(),
        })?;
        let mounts = self.snapshots().prepare(request).await?.into_inner().mounts;
        mounts.into_iter().next_back().ok_or_else(|| "prepare answered no mount".into())
    }

    async fn view(&self, key: &str, parent: &str) -> Outcome<()> {
        let request = self.request(ViewSnapshotRequest {
            snapshotter: self.snapshotter.into(),
            key: key.into(),
            parent: parent.into(),
            labels: Self::labels(),
        })?;
        self.snapshots().view(request).await?;
        Ok(())
    }

    async fn commit(&self, name: &str, key: &str) -> Outcome<()> {
        let request = self.request(CommitSnapshotRequest {
            snapshotter: self.snapshotter.into(),
            name: name.into(),
            key: key.into(),
            labels: Self::labels(),
            ..CommitSnapshotRequest::default()
        })?;
        self.snapshots().commit(request).await?;
        Ok(())
    }

    async fn remove(&self, key: &str) -> Outcome<()> {
        let request = self.request(RemoveSnapshotRequest { snapshotter: self.snapshotter.into(), key: key.into() })?;
        self.snapshots().remove(request).await?;
        Ok(())
    }

    /// Calls `containerd.services.leases.v1.Leases`.
    async fn lease<T: prost::Message + Clone + Default + 'static>(
        &self,
        verb: &'static str,
        message: T,
    ) -> Outcome<()> {
        let mut service = Grpc::new(self.channel.clone());
        service.ready().await?;
        let codec = ProstCodec::<T, Anything>::default();
        service.unary(self.request(message)?, PathAndQuery::from_static(verb), codec).await?;
        Ok(())
    }

    /// A container's life; adds what each verb took.
    async fn live(&self, number: u32, times: &mut Times) -> Outcome<()> {
        let key = |what: &str| format!("{what}-{number}");
        let [first, container, layer, second, look] = ["first", "container", "layer", "second", "look"].map(key);
        timed(times, "prepare of a first layer", self.prepare(&first, "")).await?;
        let device = timed(times, "prepare", self.prepare(&container, &self.arguments.parent)).await?;
        mount_at(&device, &self.arguments.at)?;
        let written = std::fs::write(self.arguments.at.join("file"), vec![b'x'; LAYER_BYTES]);
        umount(&self.arguments.at)?;
        written?;
        timed(times, "commit", self.commit(&layer, &container)).await?;
        timed(times, "prepare on a new parent", self.prepare(&second, &layer)).await?;
        timed(times, "view", self.view(&look, &layer)).await?;
        for key in [&look, &second, &layer, &first] {
            timed(times, "remove", self.remove(key)).await?;
        }
        let id = format!("collect-{number}");
        self.lease("/containerd.services.leases.v1.Leases/Create", CreateLease { id: id.clone() }).await?;
        let collected = self.lease("/containerd.services.leases.v1.Leases/Delete", DeleteLease { id, sync: true });
        timed(times, "garbage collection", collected).await
    }
}

async fn timed<T>(times: &mut Times, verb: &'static str, call: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    let start = Instant::now();
    let done = call.await?;
    times.entry(verb).or_default().push(start.elapsed().as_secs_f64() * 1000.0);
    Ok(done)
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

async fn connect(socket: PathBuf) -> Outcome<Channel> {
    // The address is never used: the connector opens the socket.
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Ok(Endpoint::from_static("http://[::1]:1").connect_with_connector(connector).await?)
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let arguments = Arguments::parse();
    let channel = connect(arguments.socket.clone()).await?;
    let mut results: BTreeMap<&str, Times> = BTreeMap::new();
    for number in 0..=arguments.repeats {
        for snapshotter in &arguments.snapshotters {
            let client = Client { channel: channel.clone(), arguments: &arguments, snapshotter };
            let mut times = Times::new();
            client.live(number, &mut times).await?;
            if number > 0 {
                let all = results.entry(snapshotter).or_default();
                times.into_iter().for_each(|(verb, taken)| all.entry(verb).or_default().extend(taken));
            }
        }
    }
    println!("{}", serde_json::to_string(&results)?);
    Ok(())
}
