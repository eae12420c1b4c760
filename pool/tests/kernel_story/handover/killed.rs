//! The embedded engine in a process of its own, which is killed in the middle of its writes.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use thinsnap_pool::{
    Access, BlockDevice, DeviceId, EmbeddedOptions, EmbeddedPool, Exporter, PoolPaths, ThinPool, open_embedded,
};

use super::Direct;
use super::model::{Op, Progress, SIZE, Storm};
use crate::kernel_story::disks::Disks;
use crate::support::direct_exporter::DirectExporter;

/// What the process is to do, as JSON.
const ORDERS: &str = "THINSNAP_HANDOVER_ORDERS";
const TEST: &str = "kernel_story::handover::killed::root_a_process_that_is_to_be_killed_says_how_far_it_came";

#[derive(serde::Serialize, serde::Deserialize)]
struct Orders {
    paths: [String; 3],
    ops: Vec<Op>,
    storm: Storm,
}

/// Has another process do `ops`, then begin `storm`, and kills it after so many pages; how far it had come then.
pub(super) fn kill_in_a_storm(disks: &Disks, ops: &[Op], storm: &Storm, pages: usize) -> Progress {
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let paths = disks.paths();
    let orders = Orders {
        paths: [text(&paths.metadata), text(&paths.data), text(&disks.log())],
        ops: ops.to_vec(),
        storm: storm.clone(),
    };
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", TEST, "--ignored", "--nocapture"])
        .env(ORDERS, serde_json::to_string(&orders).unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut progress = Progress::default();
    let mut done = false;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["done"] => done = true,
            ["page", acknowledged, flushed] => {
                progress = Progress { acknowledged: acknowledged.parse().unwrap(), flushed: flushed.parse().unwrap() };
                if progress.acknowledged == pages {
                    child.kill().unwrap();
                }
            }
            _ => {}
        }
    }
    assert!(!child.wait().unwrap().success(), "it was killed");
    assert!(done, "the operations before the storm were done");
    progress
}

/// No test by itself: what [`kill_in_a_storm`] starts.
#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_a_process_that_is_to_be_killed_says_how_far_it_came() {
    let Ok(orders) = std::env::var(ORDERS) else { return };
    let Orders { paths: [metadata, data, log], ops, storm } = serde_json::from_str(&orders).unwrap();
    let paths = PoolPaths { metadata: metadata.into(), data: data.into() };
    let options = EmbeddedOptions { intent_log: Some(log.into()), ..EmbeddedOptions::default() };
    let exporter = DirectExporter::new();
    let shown: std::sync::Arc<dyn Exporter> = std::sync::Arc::clone(&exporter) as _;
    let pool: std::sync::Arc<EmbeddedPool> = open_embedded(&paths, shown, &options).unwrap();
    let open = |id: DeviceId, _: &Path| Box::new(Direct(exporter.open(id))) as _;
    for op in ops {
        op.perform(&*pool, &open);
    }
    let say = |words: String| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{words}").and_then(|()| out.flush()).unwrap();
    };
    // The test runner may have begun a line of its own.
    say("\ndone".to_owned());
    pool.activate(storm.id, SIZE, Access::ReadWrite).unwrap();
    let device = exporter.open(storm.id);
    storm.run(
        &|bytes, offset| device.write_at(bytes, offset).is_ok(),
        &|| BlockDevice::flush(&*device).is_ok(),
        &mut |progress| say(format!("page {} {}", progress.acknowledged, progress.flushed)),
    );
    // The parent counts pages, and kills at one of them.
    loop {
        std::thread::park();
    }
}
