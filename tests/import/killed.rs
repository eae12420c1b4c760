//! An import whose process is killed: what it left is found, removed, and does not stand in the way of the next one.

use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use thinsnap::image::Phase;

use crate::archive::{Member, Tar};
use crate::archive_layout::{Packed, one_image};
use crate::archive_pool::{Bench, request};

/// Tells a copy of this program that it is the one to be killed, and where its pool is.
const DIR_OF_VICTIM: &str = "THINSNAP_TEST_IMPORT_VICTIM";

/// What the victim prints when it is in the middle of the second layer.
const IN_THE_MIDDLE: &str = "in the middle of the second layer";

/// The victim: does nothing in a test run of its own.
#[test]
fn root_an_import_to_be_killed() {
    let Ok(dir) = std::env::var(DIR_OF_VICTIM) else { return };
    let bench = Bench::in_dir(Path::new(&dir));
    let imported = bench.images().import(&request(&Path::new(&dir).join("layout"), "it"), &|progress| {
        if progress.layer == 1 && progress.phase == Phase::Applying && progress.bytes_done > 2 << 20 {
            println!("{IN_THE_MIDDLE}");
            // Until the kill comes: the other end of the pipe is never closed before that.
            let mut nothing = String::new();
            std::io::stdin().read_line(&mut nothing).unwrap();
        }
        ControlFlow::Continue(())
    });
    panic!("the import came to its end: {imported:?}");
}

/// Kills the victim if a test fails before it does.
struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        // Errors if it is dead already, as it should be.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn root_an_import_that_was_killed_half_way_is_cleaned_up_and_works_the_next_time() {
    let dir = TempDir::new().unwrap();
    let noise: Vec<u8> = (0..2_000_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let below = Tar::default().add(Member::file("below", "below")).end();
    let above = Tar::default().add(Member::file("noise", &noise)).add(Member::file("last", "last")).end();
    one_image(&[Packed::gzip(below), Packed::plain(above)], |_, _| {}).write(&dir.path().join("layout"));
    let mut victim = Victim(
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed::root_an_import_to_be_killed", "--nocapture"])
            .env(DIR_OF_VICTIM, dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut said = BufReader::new(victim.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(said.any(|line| line.contains(IN_THE_MIDDLE)), "the victim ended before it could be killed");
    victim.0.kill().unwrap();
    assert_eq!(victim.0.wait().unwrap().signal(), Some(9));

    let bench = Bench::in_dir(dir.path());
    let left: Vec<String> = bench.snapshots().into_iter().map(|snapshot| snapshot.name.as_str().to_owned()).collect();
    assert_eq!(left.len(), 1, "only the whole layer is left: {left:?}");
    assert_eq!(bench.images().list().unwrap(), []);
    let imported = bench.import(&dir.path().join("layout"), "it").unwrap();
    assert_eq!((imported.layers_applied, imported.layers_present), (1, 1));
    bench.look_into("it", |root| {
        assert_eq!(std::fs::read(root.join("noise")).unwrap(), noise);
        assert_eq!(std::fs::read_to_string(root.join("last")).unwrap(), "last");
        assert_eq!(std::fs::read_to_string(root.join("below")).unwrap(), "below");
    });
    assert_eq!(bench.images().remove("it").unwrap().layers_removed, 2);
    assert_eq!(bench.snapshots(), []);
}
