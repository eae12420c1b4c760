//! Lines that kernels printed, word by word.

use super::{PoolLine, PoolReport};
use crate::error::ErrorKind;
use crate::status::PoolMode;

fn report(line: &str) -> PoolReport {
    match PoolLine::parse(line).unwrap() {
        PoolLine::Working(report) => report,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn a_working_pool_tells_counts_mode_and_features() {
    // Linux 6.12, a new pool.
    let told = report("0 111/1024 0/1024 - rw discard_passdown queue_if_no_space - 256 ");
    assert_eq!((told.transaction_id, told.held_root, told.mode), (0, None, PoolMode::Write));
    assert_eq!((told.data_used, told.data_total), (0, 1024));
    assert_eq!((told.metadata_used, told.metadata_total, told.reserve()), (111, 1024, 102));
    assert_eq!(told.metadata_counted(), 9);
    assert!(!told.fails_without_space && !told.needs_check && !told.metadata_full());
    assert_eq!(told.metadata_low_water, Some(256));

    let held = report("7 113/1024 3/1024 25 rw no_discard_passdown error_if_no_space - 256 ");
    assert_eq!((held.transaction_id, held.held_root), (7, Some(25)));
    assert!(held.fails_without_space);
    assert_eq!(held.discards, "no_discard_passdown");
}

#[test]
fn two_kernels_say_the_same_of_the_same_pool() {
    // 6.1.0-50-amd64 and 6.12.117+deb13-amd64, word by word alike: new, with a held metadata snapshot, full.
    let lines = [
        "0 111/1024 0/10 - rw discard_passdown queue_if_no_space - 256 ",
        "7 113/1024 3/10 32 rw discard_passdown queue_if_no_space - 256 ",
        "7 112/1024 10/10 - out_of_data_space no_discard_passdown error_if_no_space - 256 ",
    ];
    let [new, held, full] = lines.map(report);
    assert_eq!((new.transaction_id, new.data_used, new.data_total, new.held_root), (0, 0, 10, None));
    assert_eq!((held.transaction_id, held.data_used, held.held_root), (7, 3, Some(32)));
    // The snapshot has the copy of the superblock, and shares the rest.
    assert_eq!((held.metadata_counted(), full.metadata_counted()), (11, 10));
    assert_eq!(
        (full.mode, full.fails_without_space, full.metadata_low_water),
        (PoolMode::OutOfDataSpace, true, Some(256))
    );
}

#[test]
fn a_pool_in_trouble_tells_which() {
    let full = report("0 112/1024 10/10 - out_of_data_space discard_passdown error_if_no_space - 256 ");
    assert_eq!(full.mode, PoolMode::OutOfDataSpace);
    let waiting = report("0 112/1024 10/10 - out_of_data_space discard_passdown queue_if_no_space - 256 ");
    assert!(!waiting.fails_without_space);
    let check = report("0 40/40 0/1024 - ro discard_passdown queue_if_no_space needs_check 10 ");
    assert_eq!((check.mode, check.needs_check, check.metadata_full()), (PoolMode::ReadOnly, true, true));
    let asked_for = report("0 112/1024 3/1024 - ro ignore_discard queue_if_no_space - 256 ");
    assert_eq!((asked_for.mode, asked_for.needs_check), (PoolMode::ReadOnly, false));
    assert_eq!(PoolLine::parse("Fail").unwrap(), PoolLine::Failed);
    assert_eq!(PoolLine::parse("Error").unwrap(), PoolLine::Unknown);
}

#[test]
fn older_kernels_say_less() {
    let told = report("1 406/4096 100/1024 - rw discard_passdown queue_if_no_space");
    assert!(!told.needs_check);
    assert_eq!(told.metadata_low_water, None);
    assert!(report("1 406/4096 100/1024 - ro discard_passdown queue_if_no_space needs_check").needs_check);
}

#[test]
fn words_that_are_not_known_are_not_guessed() {
    for line in [
        "",
        "Failed",
        "0 111/1024 0/1024",
        "0 111 0/1024 - rw discard_passdown queue_if_no_space - 256",
        "-1 111/1024 0/1024 - rw discard_passdown queue_if_no_space - 256",
        "0 111/1024 0/1024 x rw discard_passdown queue_if_no_space - 256",
        "0 111/1024 0/1024 - half discard_passdown queue_if_no_space - 256",
        "0 111/1024 0/1024 - rw discard_tomorrow queue_if_no_space - 256",
        "0 111/1024 0/1024 - rw discard_passdown wait_if_no_space - 256",
        "0 111/1024 0/1024 - rw discard_passdown queue_if_no_space maybe 256",
    ] {
        assert_eq!(PoolLine::parse(line).unwrap_err().kind(), ErrorKind::Unsupported, "{line:?}");
    }
}
