//! Two hundred callers at once: every answer is a legal one, nothing leaks, and List never waits for anybody.

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
    #[expect(dead_code, reason = "this proof kills nothing")]
    pub(crate) mod service;
}

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tonic::Code;

use support::caller::Caller;
use support::dice::{Dice, seed};
use support::machine::is_able;
use support::packages::thin_check_is_silent;
use support::proxy::Client;
use support::publisher::Publisher;
use support::service::Service;

/// The plugin name of the callers.
const PLUGIN: &str = "thinsnap";
/// Callers at once.
const CALLERS: u64 = 200;
/// How long they call.
const DURATION: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn root_two_hundred_callers_get_legal_answers_and_leave_no_device() {
    if !is_able("root_two_hundred_callers_get_legal_answers_and_leave_no_device", &["thin_check"]) {
        return;
    }
    let mut service = Service::start("");
    let seed = seed();
    let mut client = Client::new(&service.socket(), PLUGIN);
    let layers = layers(&mut client, 4).await;
    client.cleanup().await.expect("cleanup has nothing to complain of");
    let before = service.status("/devices");
    let end = Instant::now() + DURATION;

    let mut callers = JoinSet::new();
    for n in 0..CALLERS {
        // As containerd does it: all calls over one connection.
        let mut caller = Caller::new(client.clone(), format!("caller-{n:03}"), seed + n, &layers);
        callers.spawn(async move {
            while Instant::now() < end {
                assert!(caller.step().await, "the service answers");
            }
            caller
        });
    }
    let mut fighters = JoinSet::new();
    for n in 0..8 {
        fighters.spawn(fight_for_keys(client.clone(), Dice::new(seed + CALLERS + n), end, layers.clone()));
    }
    let mut publishers = JoinSet::new();
    for (n, layer) in layers.iter().take(4).enumerate() {
        let mut publisher = Publisher::new(client.clone(), format!("publisher-{n}"), layer, service.dir());
        publishers.spawn(async move {
            while Instant::now() < end {
                publisher.publish().await;
            }
            publisher.published
        });
    }
    let meter = tokio::spawn(latencies_of_list(Client::new(&service.socket(), PLUGIN), end));

    let mut answered = 0;
    let mut done = Vec::new();
    while let Some(caller) = callers.join_next().await {
        let caller = caller.unwrap();
        answered += caller.answered;
        done.push(caller);
    }
    fighters.join_all().await;
    let published: u64 = publishers.join_all().await.into_iter().sum();
    let mut lists = meter.await.unwrap();
    lists.sort();
    let worst = lists[lists.len() - 1];
    println!(
        "{answered} calls, {published} commits while mounted; {} lists, p50 {:?}, max {worst:?}",
        lists.len(),
        lists[lists.len() / 2]
    );
    assert!(worst < Duration::from_secs(10), "a List took {worst:?}");

    for caller in &mut done {
        caller.check_marks().await;
        caller.remove_everything().await;
    }
    for layer in layers.iter().rev() {
        client.remove(layer).await.unwrap();
    }
    assert!(client.list("").await.unwrap().is_empty());
    client.cleanup().await.unwrap();
    assert_eq!(service.status("/devices"), before - 4, "the base device is left, and no other");
    assert_eq!(service.status("/limbo"), 0);
    assert_eq!(service.loops(), Vec::<std::path::PathBuf>::new());
    drop((done, client));
    service.stop_and_leave_nothing();
    thin_check_is_silent(&service.metadata());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_list_answers_while_a_base_device_is_made() {
    if !is_able("root_list_answers_while_a_base_device_is_made", &["thin_check"]) {
        return;
    }
    let mut service = Service::start("[snapshotter.cold]\nfs = \"xfs\"\n");
    let mut client = Client::new(&service.socket(), PLUGIN);
    layers(&mut client, 1).await;
    let made = Arc::new(AtomicBool::new(false));
    let mut cold = Client::new(&service.socket(), "cold");
    let prepare = tokio::spawn({
        let made = Arc::clone(&made);
        async move {
            let start = Instant::now();
            cold.prepare("first", "").await.unwrap();
            made.store(true, Ordering::SeqCst);
            (start.elapsed(), cold)
        }
    });
    let mut answers = 0;
    let mut worst = Duration::ZERO;
    while !made.load(Ordering::SeqCst) {
        let start = Instant::now();
        assert_eq!(client.list("").await.unwrap().len(), 1);
        worst = worst.max(start.elapsed());
        answers += 1;
    }
    let (took, mut cold) = prepare.await.unwrap();
    println!("mkfs took {took:?}; meanwhile {answers} lists, the slowest {worst:?}");
    assert!(answers > 2 && worst < took / 2, "{answers} lists, the slowest {worst:?}, in {took:?}");
    cold.remove("first").await.unwrap();
    client.remove("layer 0").await.unwrap();
    client.cleanup().await.unwrap();
    drop((client, cold));
    service.stop_and_leave_nothing();
}

/// A chain of committed snapshots.
async fn layers(client: &mut Client, count: usize) -> Vec<String> {
    let names: Vec<String> = (0..count).map(|n| format!("layer {n}")).collect();
    let mut parent = String::new();
    for name in &names {
        client.prepare("unpack", &parent).await.unwrap();
        client.commit(name, "unpack").await.unwrap();
        parent.clone_from(name);
    }
    names
}

/// Many callers want the same few keys: one of them wins, the others are told what is so.
async fn fight_for_keys(mut client: Client, mut dice: Dice, end: Instant, layers: Vec<String>) {
    while Instant::now() < end {
        let key = format!("prize {}", dice.below(4));
        let name = format!("trophy {}", dice.below(4));
        let (verb, answer, legal) = match dice.below(4) {
            0 => {
                let parent = if dice.below(2) == 0 { &layers[0] } else { &name };
                let legal: &[Code] = &[Code::AlreadyExists, Code::NotFound];
                ("prepare", client.prepare(&key, parent).await.err(), legal)
            }
            1 => {
                let legal: &[Code] = &[Code::AlreadyExists, Code::NotFound];
                ("commit", client.commit(&name, &key).await.err(), legal)
            }
            2 => ("remove", client.remove(&key).await.err(), &[Code::NotFound][..]),
            _ => ("remove", client.remove(&name).await.err(), &[Code::NotFound, Code::FailedPrecondition][..]),
        };
        if let Some(status) = answer {
            assert!(legal.contains(&status.code()), "{verb} {key} {name}: {status}");
        }
    }
    // A trophy may have been made on any other: round after round, until none is left. Other fighters remove them too.
    let mut left = true;
    while left {
        left = false;
        for name in ["prize", "trophy"].iter().flat_map(|what| (0..4).map(move |n| format!("{what} {n}"))) {
            match client.remove(&name).await.err().map(|status| status.code()) {
                None | Some(Code::NotFound) => {}
                Some(Code::FailedPrecondition) => left = true,
                other => panic!("remove {name}: {other:?}"),
            }
        }
        tokio::task::yield_now().await;
    }
}

/// Lists again and again; how long each took.
async fn latencies_of_list(mut client: Client, end: Instant) -> Vec<Duration> {
    let mut took = Vec::new();
    while Instant::now() < end {
        let start = Instant::now();
        client.list("").await.unwrap();
        took.push(start.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    took
}
