//! The pool-host is killed again and again under containers whose every byte is checked: nobody may notice more than
//! a moment's wait. `make chaos` does it 200 times, `make test` 20 times.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

mod support {
    pub(crate) mod blocks;
    pub(crate) mod caller;
    pub(crate) mod chaos_container;
    pub(crate) mod chaos_stalls;
    pub(crate) mod dice;
    pub(crate) mod leftovers;
    pub(crate) mod machine;
    pub(crate) mod packages;
    pub(crate) mod process;
    pub(crate) mod proxy;
    pub(crate) mod service;
}

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::JoinSet;

use support::caller::Caller;
use support::chaos_container::{Container, Style};
use support::chaos_stalls::{Probe, percentile};
use support::dice::{Dice, seed};
use support::machine::is_able;
use support::packages::thin_check_is_silent;
use support::process::wait_until;
use support::proxy::Client;
use support::service::Service;

/// The plugin name of the callers.
const PLUGIN: &str = "thinsnap";
/// Between two kills, in milliseconds: from, and how many more at most.
const PAUSE: (usize, usize) = (150, 500);
/// Longest time for the next host to be there.
const RETURN: Duration = Duration::from_secs(30);

/// Kills of one run: `THINSNAP_CHAOS_KILLS`, or few enough for every run of the tests.
fn kills(default: u32) -> u32 {
    std::env::var("THINSNAP_CHAOS_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The service with three containers under load, made from one committed layer.
struct World {
    // Dropped in this order: the probe and the containers need the service to let go.
    probe: Probe,
    containers: Vec<Container>,
    client: Client,
    service: Service,
    _watchdog: Watchdog,
    dice: Dice,
    seed: u64,
}

/// Gives the connection up if a test takes much too long: with descriptors of it held in this very process and nobody
/// serving, no thread of the test that touches a container could ever be ended.
struct Watchdog(Arc<AtomicBool>);

impl Watchdog {
    fn new(export: PathBuf, limit: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, deadline) = (Arc::clone(&stop), Instant::now() + limit);
        std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                if Instant::now() > deadline {
                    eprintln!("the test hangs: giving up {}", export.display());
                    let _ = umount2(&export, MntFlags::MNT_FORCE);
                    return;
                }
                std::thread::park_timeout(Duration::from_millis(500));
            }
        });
        Self(stop)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl World {
    async fn new(mut service: Service, time: Duration) -> Self {
        let seed = seed();
        let mut dice = Dice::new(seed);
        let mut client = Client::new(&service.socket(), PLUGIN);
        let watchdog = Watchdog::new(service.export(), time + Duration::from_secs(60));
        if service.stored() == 0 {
            service.kill();
            tokio::task::block_in_place(|| service.up());
        }
        client.prepare("unpack", "").await.unwrap();
        client.commit("layer", "unpack").await.unwrap();
        let mut containers = Vec::new();
        for (name, style) in [("direct", Style::Direct), ("flushing", Style::Flushing), ("cached", Style::Cached)] {
            let device = client.prepare(name, "layer").await.unwrap();
            containers.push(Container::run(device, service.dir().join(name), style, time, dice.roll() >> 33));
        }
        let probe = Probe::start(&containers[0].point, dice.roll());
        Self { probe, containers, client, service, _watchdog: watchdog, dice, seed }
    }

    fn pause(&mut self) -> Duration {
        Duration::from_millis(u64::try_from(PAUSE.0 + self.dice.below(PAUSE.1)).unwrap())
    }

    /// Ends the load; everything must be sound, and nothing may be left.
    async fn finish(mut self) {
        println!("{} operations of the probe", self.probe.end());
        for container in self.containers.drain(..) {
            println!("{} files came and went", tokio::task::block_in_place(|| container.end()));
        }
        for name in ["direct", "flushing", "cached", "layer"] {
            self.client.remove(name).await.unwrap();
        }
        self.client.cleanup().await.unwrap();
        assert!(self.client.list("").await.unwrap().is_empty());
        assert_eq!(self.service.status("/devices"), 1, "the base device is left, and no other");
        assert_eq!(self.service.status("/limbo"), 0);
        assert_eq!(self.service.loops(), Vec::<PathBuf>::new());
        let metadata = self.service.metadata();
        let mut service = self.service;
        drop(self.client);
        service.stop_and_leave_nothing();
        assert_eq!(service.stored(), 0, "what was stored for a host that ended in order was taken back");
        thin_check_is_silent(&metadata);
    }
}

/// The host of this moment, waiting for it if there is none.
fn host(service: &Service) -> Pid {
    let mut host = None;
    wait_until("a pool-host", RETURN, || {
        host = service.host();
        host.is_some()
    });
    host.unwrap()
}

fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

fn tell(what: &str, deaths: &[Instant], probe: &Probe) {
    let ends = deaths.iter().skip(1).copied().map(Some).chain([None]);
    let mut stalls: Vec<Duration> = deaths.iter().zip(ends).map(|(death, next)| probe.stall(*death, next)).collect();
    let (half, most) = (percentile(&mut stalls, 50), percentile(&mut stalls, 99));
    let longest = stalls.last().copied().unwrap_or_default();
    println!("{} {what}: stall p50 {half:?}, p99 {most:?}, longest {longest:?}", deaths.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_killing_the_pool_host_disturbs_no_container_and_fails_no_call() {
    const NAME: &str = "root_killing_the_pool_host_disturbs_no_container_and_fails_no_call";
    if !is_able(NAME, &["fio", "e2fsck", "fstrim", "thin_check"]) {
        return;
    }
    let kills = kills(20);
    let time = Duration::from_millis(u64::from(kills) * 700) + Duration::from_secs(4);
    let mut service = Service::start("");
    service.supervise();
    let mut world = World::new(service, time).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut callers = JoinSet::new();
    for n in 0..4 {
        let client = Client::new(&world.service.socket(), PLUGIN);
        let mut caller = Caller::new(client, format!("caller-{n}"), world.seed + n, &["layer".to_owned()]);
        let stop = Arc::clone(&stop);
        callers.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                assert!(caller.step().await, "the service lives, so it answers");
            }
            caller
        });
    }
    let mut deaths = Vec::new();
    let mut files = Vec::new();
    let until = Instant::now() + time - Duration::from_secs(3);
    for number in 0..kills {
        if Instant::now() > until {
            println!("the machine is slow: {number} kills of {kills}");
            break;
        }
        // One in five dies on its way up, in the middle of taking over.
        let on_its_way = number % 5 == 4;
        let pause = if on_its_way { Duration::from_millis(5 + u64::from(number) % 60) } else { world.pause() };
        tokio::time::sleep(pause).await;
        if !on_its_way {
            // Where a start takes longer than the pause, hosts would die on their way one after the other, and none ever serve.
            tokio::task::block_in_place(|| world.service.thinsnap("pool status"));
        }
        world.containers.iter_mut().for_each(Container::assert_running);
        assert!(callers.try_join_next().is_none(), "a caller ended");
        let host = tokio::task::block_in_place(|| host(&world.service));
        kill(host, Signal::SIGKILL).unwrap();
        deaths.push(Instant::now());
        files.push(open_files(world.service.pid()));
    }
    stop.store(true, Ordering::SeqCst);
    let mut callers = callers.join_all().await;
    for caller in &mut callers {
        caller.check().await;
        caller.check_marks().await;
        caller.remove_everything().await;
    }
    let answered: u64 = callers.iter().map(|caller| caller.answered).sum();
    drop(callers);
    tell("kills of the pool-host", &deaths, &world.probe);
    println!(
        "{answered} calls answered; open files of the service: {} at first, {} at last",
        files[0],
        files[files.len() - 1]
    );
    let growth = files[files.len() - 1].saturating_sub(files[0]);
    assert!(growth < 64, "descriptors pile up in the service: {files:?}");
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_killing_service_and_pool_host_together_disturbs_no_container() {
    const NAME: &str = "root_killing_service_and_pool_host_together_disturbs_no_container";
    if !is_able(NAME, &["fio", "e2fsck", "fstrim", "thin_check"]) {
        return;
    }
    let kills = kills(20).div_ceil(3);
    let time = Duration::from_millis(u64::from(kills) * 1500) + Duration::from_secs(4);
    let mut service = Service::start("");
    service.supervise();
    let mut world = World::new(service, time).await;
    assert_eq!(world.service.stored(), 1, "the service stores what keeps the devices");
    let mut deaths = Vec::new();
    let until = Instant::now() + time - Duration::from_secs(3);
    for number in 0..kills {
        if Instant::now() > until {
            println!("the machine is slow: {number} kills of {kills}");
            break;
        }
        tokio::time::sleep(world.pause()).await;
        world.containers.iter_mut().for_each(Container::assert_running);
        let host = tokio::task::block_in_place(|| host(&world.service));
        deaths.push(Instant::now());
        if number % 2 == 0 {
            world.service.kill();
            kill(host, Signal::SIGKILL).unwrap();
        } else {
            // The service may have begun to start the next host: that one lives on, or is adopted on its way.
            kill(host, Signal::SIGKILL).unwrap();
            world.service.kill();
        }
        tokio::task::block_in_place(|| world.service.up());
    }
    tell("kills of service and pool-host together", &deaths, &world.probe);
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_an_upgrade_replaces_the_pool_host_under_running_containers() {
    const NAME: &str = "root_an_upgrade_replaces_the_pool_host_under_running_containers";
    if !is_able(NAME, &["fio", "e2fsck", "fstrim", "thin_check"]) {
        return;
    }
    let mut service = Service::start("");
    service.supervise();
    let mut world = World::new(service, Duration::from_secs(10)).await;
    let first = host(&world.service);
    let mut moments = Vec::new();
    for _ in 0..3 {
        let before = host(&world.service);
        moments.push(Instant::now());
        let said = world.service.thinsnap("upgrade --force");
        assert_eq!(said["replaced"], true, "{said}");
        println!("the service says that I/O waited {} ms", said["stall_ms"]);
        assert_ne!(host(&world.service), before);
        world.containers.iter_mut().for_each(Container::assert_running);
        let pause = world.pause();
        tokio::time::sleep(pause).await;
    }
    assert_eq!(world.service.thinsnap("upgrade")["replaced"], false, "it runs the service's program already");

    // Another file plays a newer program: the service that is started from it replaces the host at once.
    let newer = world.service.dir().join("thinsnap");
    fs::copy(env!("CARGO_BIN_EXE_thinsnap"), &newer).unwrap();
    let before = host(&world.service);
    assert_ne!(before, first);
    world.service.set_program(&newer);
    tokio::task::block_in_place(|| world.service.stop());
    assert_eq!(host(&world.service), before, "devices are open: the host stays");
    moments.push(Instant::now());
    tokio::task::block_in_place(|| world.service.up());
    let after = host(&world.service);
    assert_ne!(after, before);
    assert_eq!(fs::read_link(format!("/proc/{after}/exe")).unwrap(), newer);
    tell("replacements of the pool-host", &moments, &world.probe);
    world.finish().await;
}
