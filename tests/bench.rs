//! The benchmark through the installed program: what it refuses, what it writes, that it goes on where it was interrupted.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

mod support {
    pub(crate) mod leftovers;
    pub(crate) mod machine;
    pub(crate) mod process;
}

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};

use flate2::read::MultiGzDecoder;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use support::leftovers::{clear, left_of};
use support::machine::is_able;
use support::process::{must, program, told};

/// `thinsnap bench`, measuring in `dir` and writing into `dir`/out.
fn bench(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thinsnap"));
    command.arg("bench").arg("--dir").arg(dir).arg("--out").arg(dir.join("out")).args(args);
    command
        .env_remove("THINSNAP_ROOT")
        .env_remove("THINSNAP_SOCKET")
        .env_remove("THINSNAP_ENGINE")
        .stdin(Stdio::null());
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A directory on a disk; what belongs to it is taken away also when the test fails.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        clear(self.path());
    }
}

fn json(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap()
}

#[test]
fn a_section_that_does_not_exist_is_refused_with_those_that_do() {
    let place = Place::new();
    let output = bench(place.path(), &["--only", "first-write,no-such"]).env("TMPDIR", place.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("no such section: 'no-such' (there are first-write, "), "{}", said(&output));
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0, "the driver's own files are gone");
}

#[test]
fn root_a_run_that_cannot_end_well_is_refused_before_it_starts() {
    if !is_able("a_run_that_cannot_end_well…", &["python3"]) {
        return;
    }
    let place = Place::new();
    let refused = |dir: &Path| bench(dir, &["--tiny", "--only", "device-io"]).output().unwrap();

    let output = refused(&place.path().join("none"));
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));

    let held = Flock::lock(File::open(place.path()).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
    let output = refused(place.path());
    assert_eq!(output.status.code(), Some(5), "{}", said(&output));
    assert!(said(&output).contains("another run measures"), "{}", said(&output));
    drop(held);

    let small = place.path().join("small");
    fs::create_dir(&small).unwrap();
    mount(Some("none"), &small, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
    let output = refused(&small);
    umount(&small).unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    assert!(said(&output).contains("GiB free, device-io needs 1."), "{}", said(&output));
}

/// Runs until the first piece of the section `snapshots` is done, then sends a signal; returns how it ended and what it said
/// after that.
fn ended_by(command: &mut Command, signal: Signal) -> (ExitStatus, Vec<String>) {
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut words = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let done = words.find(|line| line.contains("snapshots: chain: "));
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
    let rest: Vec<String> = words.collect();
    assert!(done.is_some(), "it ended before");
    (child.wait().unwrap(), rest)
}

#[test]
fn root_what_a_killed_run_left_is_taken_away_by_the_next() {
    if !is_able("what_a_killed_run_left…", &["python3", "fio", "mkfs.ext4"]) {
        return;
    }
    let place = Place::new();
    let mut killed = bench(place.path(), &["--tiny", "--only", "snapshots"]);
    // Its driver's files stay there, too.
    let (status, _) = ended_by(killed.env("TMPDIR", place.path()), Signal::SIGKILL);
    assert_eq!(status.signal(), Some(9));
    assert!(!left_of(place.path()).is_empty(), "nobody could clean up");

    let mut next = bench(place.path(), &["--tiny", "--only", "device-io"]);
    let output = next.env("PATH", all_but_fio(place.path())).output().unwrap();
    assert!(output.status.success(), "{}", told(&next, &output));
    assert!(said(&output).contains("removed what 1 killed run had left"), "{}", said(&output));
    assert_eq!(left_of(place.path()), Vec::<String>::new());
}

#[test]
fn root_an_interrupted_run_leaves_nothing_and_goes_on_to_its_report() {
    if !is_able("an_interrupted_run…", &["python3", "fio", "mkfs.ext4"]) {
        return;
    }
    let place = Place::new();
    let mut command = bench(place.path(), &["--tiny", "--only", "snapshots", "--json"]);
    let (status, rest) = ended_by(&mut command, Signal::SIGINT);
    assert_eq!(status.code(), Some(130), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("interrupted; cleaned up")), "{rest:?}");
    assert_eq!(left_of(place.path()), Vec::<String>::new());
    let names = |dir: &Path| -> Vec<_> { fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect() };
    assert_eq!(names(place.path()), ["out"]);

    let second = command.output().unwrap();
    assert!(second.status.success(), "{}", told(&command, &second));
    assert!(said(&second).contains("going on with the run that was interrupted"), "{}", said(&second));
    assert!(!said(&second).contains("snapshots: chain: "), "what was done is not done again: {}", said(&second));
    assert_eq!(left_of(place.path()), Vec::<String>::new());

    let out = place.path().join("out");
    let answer = json(&second.stdout);
    assert_eq!(answer["not_run"].as_array().unwrap().iter().filter(|entry| entry["stack"] == "thinsnap").count(), 0);
    let aim = answer["aims"].as_array().unwrap().iter().find(|aim| aim["aim"] == "Commit, median").unwrap();
    assert!(aim["found"].as_f64().unwrap() > 0.0 && aim["met"].is_boolean(), "{aim}");
    assert!(!out.join("raw/unfinished").exists());
    figures_are_whole(&out.join("raw"));
    pages_are_whole(&out);

    let raw = out.join("raw");
    let same = bench(place.path(), &["--compare", raw.to_str().unwrap()]).output().unwrap();
    let table = String::from_utf8(same.stdout).unwrap();
    let mean = table.lines().find(|line| line.contains("geometric mean")).unwrap();
    assert!(mean.ends_with(" 1.00"), "figures beside themselves: {table}");
}

/// All but those that boot a machine; of rivals, those that are here.
#[test]
fn root_every_section_measures_what_it_says() {
    if !is_able("every_section…", &["python3", "fio", "mkfs.ext4"]) {
        return;
    }
    let place = Place::new();
    let mut command = bench(place.path(), &["--tiny", "--json"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", told(&command, &output));
    for section in ["first-write", "overwrites", "device-io", "workloads", "snapshots", "images", "footprint"] {
        let record = json(&fs::read(place.path().join(format!("out/raw/{section}.json"))).unwrap());
        let cells = record["results"].as_array().unwrap();
        assert!(cells.iter().any(|cell| cell["stack"] == "thinsnap"), "{section} has not measured thinsnap");
        let failed = |entry: &&Value| entry["why"].as_str().unwrap().starts_with("it failed");
        assert_eq!(record["not_run"].as_array().unwrap().iter().find(failed), None, "{section}");
    }
    assert_eq!(left_of(place.path()), Vec::<String>::new());
}

/// The section's figures, and what fio said in its own words.
fn figures_are_whole(raw: &Path) {
    let record = json(&fs::read(raw.join("snapshots.json")).unwrap());
    assert_eq!(record["size"], "tiny");
    assert!(record["facts"]["kernel"].is_string() && record["facts"]["processor"].is_string(), "{}", record["facts"]);
    let cells = record["results"].as_array().unwrap();
    let of = |table: &str, stack: &str| cells.iter().filter(|c| c["table"] == table && c["stack"] == stack).count();
    assert_eq!((of("depth", "Commit"), of("present", "Usage"), of("reads", "thinsnap")), (2, 2, 2));
    assert!(of("layers", "thinsnap") == 2 && of("layers", "overlayfs on ext4") == 2, "rivals are measured beside it");

    let mut lines = String::new();
    let packed = File::open(raw.join("fio/snapshots.jsonl.gz")).unwrap();
    MultiGzDecoder::new(packed).read_to_string(&mut lines).unwrap();
    assert_eq!(lines.lines().count(), 6);
    assert!(lines.lines().all(|line| json(line.as_bytes())["fio"]["jobs"][0]["read"]["iops"].is_number()));
}

/// The report, and the page: well-formed, with plots, and nothing in it that is fetched from elsewhere.
fn pages_are_whole(out: &Path) {
    let document = fs::read_to_string(out.join("benchmarks.md")).unwrap();
    for words in
        ["## Machine", "## Where thinsnap wins and where it loses", "- Against overlayfs on ext4 it ", "## Aims"]
    {
        assert!(document.contains(words), "{words}: {document}");
    }
    let page = out.join("benchmarks.html");
    must(program("python3").args(["-c", "import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])"]).arg(&page));
    let page = fs::read_to_string(page).unwrap().replace("http://www.w3.org/2000/svg", "");
    for kind in ["<polyline", "<rect", "<polygon"] {
        assert!(page.contains(kind), "lines, bars and latencies are drawn: no {kind}");
    }
    for link in ["http:", "https:", "href", "src=", "url(", "@import", "<script"] {
        assert!(!page.contains(link), "{link} in the page");
    }
}

/// A directory with every program of the machine but fio.
fn all_but_fio(place: &Path) -> PathBuf {
    let programs = place.join("programs");
    fs::create_dir(&programs).unwrap();
    for entry in ["/usr/bin", "/usr/sbin"].iter().flat_map(|dir| fs::read_dir(dir).unwrap()) {
        let entry = entry.unwrap();
        if entry.file_name() != "fio" {
            // A name in both directories is the same program.
            drop(symlink(entry.path(), programs.join(entry.file_name())));
        }
    }
    programs
}

#[test]
fn root_without_fio_its_rows_say_so_and_what_to_install() {
    if !is_able("without_fio…", &["python3"]) {
        return;
    }
    let place = Place::new();
    let mut command = bench(place.path(), &["--tiny", "--only", "device-io", "--json"]);
    let output = command.env("PATH", all_but_fio(place.path())).output().unwrap();
    assert!(output.status.success(), "{}", told(&command, &output));
    let why = "fio is missing: apt-get install fio";
    let absent = json(&output.stdout)["not_run"].clone();
    let stacks: Vec<_> = absent.as_array().unwrap().iter().map(|entry| entry["stack"].as_str().unwrap()).collect();
    assert_eq!(stacks, ["plain loop file", "dm-thin (dmsetup)", "thinsnap", "qcow2"]);
    assert!(absent.as_array().unwrap().iter().all(|entry| entry["why"] == why), "{absent}");
    let document = fs::read_to_string(place.path().join("out/benchmarks.md")).unwrap();
    assert!(document.contains(&format!("| thinsnap | not run: {why} |")), "{document}");
}
