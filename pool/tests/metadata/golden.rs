//! Pools made by the kernel and by thin_restore: we read them as they say they are, and change nothing unasked.

use std::sync::Arc;

use crate::facts::{Golden, all, golden};
use crate::judges::{assert_sound, assert_thin_check_accepts, thin_dump, thin_restore};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use thinsnap_pool::{
    DataRun, DeviceId, DumpSource, ErrorKind, MemoryDevice, Metadata, OpenMode, Severity, VirtualBlock, audit, dump,
};

const WHOLE: std::ops::Range<VirtualBlock> = VirtualBlock(0)..VirtualBlock(u64::MAX);

fn open(golden: &Golden, mode: OpenMode) -> thinsnap_pool::Result<(Arc<MemoryDevice>, Metadata)> {
    let device = Arc::new(MemoryDevice::from_bytes(golden.image.clone()));
    Ok((Arc::clone(&device), Metadata::open(device, mode)?))
}

fn runs(metadata: &Metadata, id: DeviceId) -> Value {
    metadata
        .lookup_range(id, WHOLE)
        .unwrap()
        .into_iter()
        .map(|run| json!([run.start.0, run.mapping.block.0, run.len, run.mapping.time]))
        .collect()
}

#[test]
fn every_golden_pool_reads_as_its_maker_says() {
    for golden in all() {
        let (_, metadata) = open(&golden, OpenMode::ReadOnly).unwrap();
        let facts = &golden.facts;
        let superblock = &facts["superblock"];
        assert_eq!(json!(metadata.time()), superblock["time"], "{}", golden.name);
        assert_eq!(json!(metadata.transaction_id()), superblock["trans_id"]);
        assert_eq!(json!(metadata.held_root().map_or(0, |block| block.0)), superblock["held_root"]);
        assert_eq!(json!(metadata.block_size().sectors()), facts["data_block_size_sectors"]);
        assert_eq!(json!(metadata.data_space().total), facts["nr_data_blocks"]);
        assert_eq!(json!(metadata.data_space().used), facts["summary"]["data_allocated"]);
        assert_eq!(json!(metadata.metadata_space().0.used), facts["summary"]["metadata_allocated"]);
        assert_eq!(metadata.needs_check(), golden.name == "11-needs-check");

        let devices = metadata.devices().unwrap();
        let expected = facts["devices"].as_object().unwrap();
        assert_eq!(devices.len(), expected.len(), "{}", golden.name);
        for (id, details) in devices {
            let expected = &expected[&id.to_string()];
            assert_eq!(json!(details.mapped_blocks), expected["mapped_blocks"], "{} device {id}", golden.name);
            assert_eq!(json!(details.transaction_id), expected["transaction_id"]);
            assert_eq!(json!(details.creation_time), expected["creation_time"]);
            assert_eq!(json!(details.snapshotted_time), expected["snapshotted_time"]);
            let runs = runs(&metadata, id);
            if let Some(expected) = expected.get("runs") {
                assert_eq!(&runs, expected, "{} device {id}", golden.name);
            }
            let sum: String = Sha256::digest(runs.to_string()).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(json!(sum), expected["runs_sha256"], "{} device {id}", golden.name);
        }
    }
}

/// 05 gives a rule instead of a list.
#[test]
fn seventy_thousand_scattered_mappings_are_found_one_by_one() {
    let (_, metadata) = open(&golden("05"), OpenMode::ReadOnly).unwrap();
    let id = DeviceId::new(0).unwrap();
    let mut block = 7u64;
    for data_block in 0..70_000 {
        let mapping = metadata.lookup(id, VirtualBlock(block)).unwrap().unwrap();
        assert_eq!((mapping.block.0, mapping.time), (data_block, 0));
        block = (193_085 * block + 12_345) % 131_072;
    }
    let hole = (0..131_072).find(|&b| metadata.lookup(id, VirtualBlock(b)).unwrap().is_none()).unwrap();
    assert!(metadata.lookup_range(id, VirtualBlock(hole)..VirtualBlock(hole + 1)).unwrap().is_empty());
}

#[test]
fn a_pool_that_needs_a_check_opens_for_reading_only() {
    let Err(error) = open(&golden("11"), OpenMode::ReadWrite) else { panic!("opened for writing") };
    assert_eq!(error.kind(), ErrorKind::NeedsCheck);
    assert!(open(&golden("11"), OpenMode::ReadOnly).is_ok());
}

#[test]
fn opening_without_a_change_writes_nothing() {
    for golden in all().into_iter().filter(|golden| golden.name != "11-needs-check") {
        let (device, mut metadata) = open(&golden, OpenMode::ReadWrite).unwrap();
        assert!(metadata.freeze().unwrap().is_none());
        drop(metadata);
        assert_eq!(device.to_bytes(), golden.image, "{}", golden.name);
    }
}

#[test]
fn every_golden_pool_can_be_changed_and_stays_sound() {
    for golden in all().into_iter().filter(|golden| golden.name != "11-needs-check") {
        let (device, mut metadata) = open(&golden, OpenMode::ReadWrite).unwrap();
        let before = metadata.devices().unwrap();
        let mut free = (0..).map(|id| DeviceId::new(id).unwrap()).filter(|id| before.iter().all(|d| d.0 != *id));
        for (origin, _) in &before {
            let snapshot = free.next().unwrap();
            metadata.create_snap(snapshot, *origin).unwrap();
            let run = metadata.reserve_data(8).unwrap();
            metadata.insert(snapshot, VirtualBlock(1), run).unwrap();
            let run = metadata.reserve_data(1).unwrap();
            metadata.insert(*origin, VirtualBlock(2), DataRun { len: 1, ..run }).unwrap();
            metadata.remove_range(*origin, VirtualBlock(4)..VirtualBlock(50)).unwrap();
            let frozen = metadata.freeze().unwrap().unwrap();
            frozen.write(&*device).unwrap();
            metadata.committed(frozen);
            assert_thin_check_accepts(&device.to_bytes(), &golden.name);
            assert_sound(&device.to_bytes(), &golden.name);
        }
        for (origin, _) in &before {
            while !metadata.delete_step(*origin, 20).unwrap() {}
        }
        if let Some(frozen) = metadata.freeze().unwrap() {
            frozen.write(&*device).unwrap();
            metadata.committed(frozen);
        }
        assert_thin_check_accepts(&device.to_bytes(), &golden.name);
        assert_sound(&device.to_bytes(), &golden.name);
    }
}

#[test]
fn the_audit_finds_no_fault_in_what_the_kernel_wrote() {
    for golden in all() {
        let mut last = None;
        let seen = std::cell::RefCell::new(&mut last);
        let report = audit(&MemoryDevice::from_bytes(golden.image.clone()), &|progress| {
            **seen.borrow_mut() = Some(progress);
        })
        .unwrap();
        assert!(report.is_sound() && !report.incomplete, "{}: {:#?}", golden.name, report.findings);
        assert_eq!(json!(report.metadata_used), golden.facts["summary"]["metadata_allocated"]);
        assert_eq!(json!(report.data_used), golden.facts["summary"]["data_allocated"]);
        assert_eq!(report.devices, golden.facts["devices"].as_object().unwrap().len() as u64);
        assert_eq!(report.needs_check, golden.name == "11-needs-check");
        assert_eq!(last.unwrap().checked_blocks, last.unwrap().used_blocks);
        match golden.name.as_str() {
            "11-needs-check" => assert_eq!(report.findings.len(), 1, "the flag is all there is to say"),
            "14-thin-restore-0.9" => {
                assert_eq!(report.findings.len(), 5, "{:#?}", report.findings);
                assert_eq!(report.worst(), Some(Severity::Note));
            }
            _ => assert!(report.findings.is_empty(), "{}: {:#?}", golden.name, report.findings),
        }
    }
}

fn dumped(image: &[u8], source: DumpSource) -> String {
    let mut out = Vec::new();
    dump(&MemoryDevice::from_bytes(image.to_vec()), source, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn a_dump_is_what_thin_dump_prints() {
    for golden in all() {
        if let Some(expected) = thin_dump(&golden.image, &[]) {
            assert_eq!(dumped(&golden.image, DumpSource::Live), expected, "{}", golden.name);
        }
        if golden.facts["superblock"]["held_root"] == 0 {
            let error = dump(&MemoryDevice::from_bytes(golden.image), DumpSource::Held, &mut Vec::new()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
        } else if let Some(expected) = thin_dump(&golden.image, &["-m"]) {
            assert_eq!(dumped(&golden.image, DumpSource::Held), expected, "{}", golden.name);
        }
    }
}

#[test]
fn a_dump_of_ours_restored_by_thin_restore_is_the_same_pool() {
    for golden in all().into_iter().filter(|golden| golden.name != "11-needs-check") {
        let xml = dumped(&golden.image, DumpSource::Live);
        let Some(restored) = thin_restore(&xml, golden.image.len()) else { return };
        assert_sound(&restored, &golden.name);
        assert_eq!(dumped(&restored, DumpSource::Live), xml);
        let restored = Golden { image: restored, ..golden };
        let (_, metadata) = open(&restored, OpenMode::ReadWrite).unwrap();
        assert_eq!(metadata.devices().unwrap().len(), restored.facts["devices"].as_object().unwrap().len());
    }
}
