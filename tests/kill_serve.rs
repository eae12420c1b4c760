//! The service is killed again and again under load: no acknowledged verb is lost, nothing leaks, and the
//! containers that are mounted meanwhile never notice.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

mod support {
    pub(crate) mod blocks;
    pub(crate) mod caller;
    pub(crate) mod dice;
    pub(crate) mod leftovers;
    pub(crate) mod machine;
    pub(crate) mod packages;
    pub(crate) mod process;
    pub(crate) mod proxy;
    pub(crate) mod publisher;
    pub(crate) mod service;
}

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount, umount};
use tokio::task::JoinSet;

use support::blocks;
use support::caller::Caller;
use support::dice::{Dice, seed};
use support::machine::is_able;
use support::packages::thin_check_is_silent;
use support::process::{must, program};
use support::proxy::Client;
use support::publisher::Publisher;
use support::service::Service;

/// The plugin name of the callers.
const PLUGIN: &str = "thinsnap";
/// Blocks of 4 KiB in the file of each mounted container.
const BLOCKS: usize = 2048;

/// How hard the service is tried. `THINSNAP_SERVE_KILLS` sets how often it is killed.
struct Plan {
    kills: u32,
    callers: u64,
    publishers: u64,
    /// The time between two kills is longer by this.
    slowness: usize,
}

impl Plan {
    /// An emulated processor takes twenty times as long for a call.
    fn new() -> Self {
        let mut plan = match std::env::var_os("THINSNAP_VM_EMULATED") {
            Some(_) => Self { kills: 25, callers: 4, publishers: 1, slowness: 20 },
            None => Self { kills: 500, callers: 12, publishers: 3, slowness: 1 },
        };
        if let Ok(kills) = std::env::var("THINSNAP_SERVE_KILLS") {
            plan.kills = kills.parse().unwrap();
        }
        plan
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_killing_the_service_loses_nothing_leaks_nothing_and_disturbs_no_container() {
    if !is_able(
        "root_killing_the_service_loses_nothing_leaks_nothing_and_disturbs_no_container",
        &["thin_check", "e2fsck"],
    ) {
        return;
    }
    let plan = Plan::new();
    let mut service = Service::start("");
    let seed = seed();
    let mut dice = Dice::new(seed);
    let mut client = Client::new(&service.socket(), PLUGIN);
    client.prepare("unpack", "").await.unwrap();
    client.commit("layer", "unpack").await.unwrap();
    let layers = ["layer".to_owned()];
    let containers: Vec<Container> = {
        let mut made = Vec::new();
        for name in ["east", "west"] {
            let device = client.prepare(name, "layer").await.unwrap();
            made.push(Container::run(device, service.dir().join(name), dice.roll()));
        }
        made
    };

    let stop = Arc::new(AtomicBool::new(false));
    let mut callers = JoinSet::new();
    for n in 0..plan.callers {
        let client = Client::new(&service.socket(), PLUGIN);
        let mut caller = Caller::new(client, format!("caller-{n:02}"), seed + n, &layers);
        let stop = Arc::clone(&stop);
        callers.spawn(async move {
            let mut lost = 0_u32;
            while !stop.load(Ordering::SeqCst) {
                lost += u32::from(!caller.step().await);
            }
            (caller, lost)
        });
    }
    let mut publishers = JoinSet::new();
    for n in 0..plan.publishers {
        let client = Client::new(&service.socket(), PLUGIN);
        let mut publisher = Publisher::new(client, format!("publisher-{n}"), "layer", service.dir());
        let stop = Arc::clone(&stop);
        publishers.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                publisher.publish().await;
            }
            publisher.published
        });
    }
    let start = Instant::now();
    for kill in 0..plan.kills {
        // One in four dies on its way up, in the middle of recovery; the others at work.
        let wait = if kill % 4 == 3 { dice.below(30) } else { 20 + dice.below(130) };
        tokio::time::sleep(Duration::from_millis(u64::try_from(wait * plan.slowness).unwrap())).await;
        assert_eq!(callers.try_join_next().map(|ended| ended.map(|(_, lost)| lost).ok()), None, "a caller ended");
        assert!(publishers.try_join_next().is_none(), "a publisher ended");
        containers.iter().for_each(Container::assert_running);
        service.kill();
        if kill % 4 == 2 { service.spawn() } else { tokio::task::block_in_place(|| service.up()) }
    }
    let took = start.elapsed();
    stop.store(true, Ordering::SeqCst);

    let mut done = Vec::new();
    let (mut answered, mut lost) = (0, 0);
    while let Some(ended) = callers.join_next().await {
        let (mut caller, unanswered) = ended.unwrap();
        caller.check().await;
        answered += caller.answered;
        lost += unanswered;
        done.push(caller);
    }
    let published: u64 = publishers.join_all().await.into_iter().sum();
    println!(
        "{} kills in {took:?}: {answered} calls answered, {lost} cut off, {published} commits while mounted",
        plan.kills
    );
    assert!(lost > plan.kills / 4, "only {lost} calls were cut off: the load is too light to prove anything");

    for caller in &mut done {
        caller.check_marks().await;
        caller.remove_everything().await;
    }
    let writes: Vec<u64> = containers.into_iter().map(Container::end).collect();
    println!("writes of the mounted containers: {writes:?}");
    for name in ["east", "west"] {
        client.remove(name).await.unwrap();
    }
    client.remove("layer").await.unwrap();
    client.cleanup().await.unwrap();
    assert!(client.list("").await.unwrap().is_empty());
    assert_eq!(service.status("/devices"), 1, "the base device is left, and no other");
    assert_eq!(service.status("/limbo"), 0);
    assert_eq!(service.loops(), Vec::<PathBuf>::new());
    drop((done, client));
    service.stop_and_leave_nothing();
    thin_check_is_silent(&service.metadata());
}

/// A mounted snapshot in which somebody writes and reads without a pause, and knows what must be there.
struct Container {
    device: PathBuf,
    point: PathBuf,
    stop: Arc<AtomicBool>,
    writer: Option<JoinHandle<(Vec<u64>, u64)>>,
}

impl Container {
    fn run(device: PathBuf, point: PathBuf, seed: u64) -> Self {
        fs::create_dir(&point).unwrap();
        mount(Some(&device), &point, Some("ext4"), MsFlags::empty(), None::<&str>).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let writer = std::thread::spawn({
            let (file, stop) = (point.join("file"), Arc::clone(&stop));
            move || write_and_read(&file, seed, &stop)
        });
        Self { device, point, stop, writer: Some(writer) }
    }

    /// The writer ends only when it is told to, or when it met an error.
    fn assert_running(&self) {
        assert!(!self.writer.as_ref().is_some_and(JoinHandle::is_finished), "the writer in {:?} failed", self.point);
    }

    /// Ends the I/O; unmounts, checks the file system, mounts again and reads everything. Returns the writes.
    fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        let (words, writes) = self.writer.take().expect("it runs once").join().unwrap();
        assert!(writes > 1000, "only {writes} writes: the I/O stood still");
        umount(&self.point).unwrap();
        must(program("e2fsck").arg("-fn").arg(&self.device));
        mount(Some(&self.device), &self.point, Some("ext4"), MsFlags::MS_RDONLY, None::<&str>).unwrap();
        let file = blocks::open(&self.point.join("file"), false).unwrap();
        for (index, word) in words.iter().enumerate() {
            assert_eq!(blocks::read(&file, index as u64).unwrap(), *word, "block {index} of {:?}", self.point);
        }
        drop(file);
        umount(&self.point).unwrap();
        writes
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
            let _ = umount(&self.point);
        }
    }
}

/// Writes random blocks and reads others until told to stop; what each block holds, and how many were written.
fn write_and_read(path: &Path, seed: u64, stop: &AtomicBool) -> (Vec<u64>, u64) {
    let mut dice = Dice::new(seed);
    File::create(path).and_then(|file| file.set_len((BLOCKS * blocks::BLOCK) as u64)).unwrap();
    let file = blocks::open(path, true).unwrap();
    let mut words = vec![0; BLOCKS];
    let mut writes = 0;
    while !stop.load(Ordering::SeqCst) {
        let (to, from) = (dice.below(BLOCKS), dice.below(BLOCKS));
        words[to] = dice.roll();
        blocks::write(&file, to as u64, words[to]).unwrap();
        writes += 1;
        if writes % 32 == 0 {
            file.sync_data().unwrap();
        }
        assert_eq!(blocks::read(&file, from as u64).unwrap(), words[from], "block {from}");
    }
    file.sync_all().unwrap();
    (words, writes)
}
