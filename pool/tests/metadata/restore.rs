//! Dumps read back: ours, thin_dump's of both versions; what comes out is what went in, and every judge accepts it.

use std::io::Cursor;

use crate::facts::{Golden, all, golden};
use crate::judges::{assert_sound, assert_thin_check_accepts, thin_dump, thin_dump_11};
use thinsnap_pool::{DumpSource, ErrorKind, MemoryDevice, RestoreOptions, audit, dump, restore};

const OPTIONS: RestoreOptions = RestoreOptions { identity: [7; 16] };

pub(crate) fn dumped(image: &[u8]) -> String {
    let mut out = Vec::new();
    dump(&MemoryDevice::from_bytes(image.to_vec()), DumpSource::Live, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn restored(xml: &str, size: usize) -> thinsnap_pool::Result<Vec<u8>> {
    // What was there before does not matter.
    let device = MemoryDevice::from_bytes(vec![0xa5; size]);
    restore(&mut Cursor::new(xml), &device, &OPTIONS)?;
    Ok(device.to_bytes())
}

fn healthy() -> impl Iterator<Item = Golden> {
    all().into_iter().filter(|golden| golden.name != "11-needs-check")
}

#[test]
fn a_dump_restored_is_the_same_dump_and_every_judge_accepts_it() {
    for golden in all() {
        let xml = dumped(&golden.image);
        let image = restored(&xml, golden.image.len()).unwrap();
        assert_eq!(dumped(&image), xml, "{}", golden.name);
        assert_sound(&image, &golden.name);
        if golden.name != "11-needs-check" {
            assert_thin_check_accepts(&image, &golden.name);
        }
        if let Some(judge) = thin_dump(&image, &[]) {
            assert_eq!(judge, xml, "{}", golden.name);
        }
    }
}

#[test]
fn dumps_of_both_versions_of_thin_dump_are_read() {
    let mut shared = 0;
    for golden in healthy() {
        let xml = dumped(&golden.image);
        for judge in [thin_dump(&golden.image, &[]), thin_dump_11(&golden.image)].into_iter().flatten() {
            shared += usize::from(judge.contains("<ref "));
            let image = restored(&judge, golden.image.len()).unwrap();
            assert_eq!(dumped(&image).lines().skip(1).collect::<Vec<_>>(), xml.lines().skip(1).collect::<Vec<_>>());
            assert_thin_check_accepts(&image, &golden.name);
            assert_sound(&image, &golden.name);
        }
    }
    assert!(shared > 0 || thin_dump_11(&golden("08").image).is_none(), "no golden pool shares what 1.1 tells once");
}

#[test]
fn what_devices_have_in_common_is_stored_once() {
    let mut xml = String::from(
        "<superblock uuid=\"\" time=\"50\" transaction=\"0\" version=\"2\" data_block_size=\"128\" nr_data_blocks=\"99999\">",
    );
    for id in 0..50u64 {
        xml.push_str(&format!(
            "<device dev_id=\"{id}\" mapped_blocks=\"{}\" transaction=\"0\" creation_time=\"0\" snap_time=\"50\">",
            if id == 0 { 20_000 } else { 20_001 }
        ));
        // One more mapping at the start moves nothing that follows by much.
        if id > 0 {
            xml.push_str(&format!("<single_mapping origin_block=\"0\" data_block=\"{}\" time=\"1\"/>", 30_000 + id));
        }
        xml.push_str("<range_mapping origin_begin=\"7\" data_begin=\"5\" length=\"20000\" time=\"0\"/></device>");
    }
    xml.push_str("</superblock>");
    let image = restored(&xml, 1024 * 4096).unwrap();
    let report = audit(&MemoryDevice::from_bytes(image.clone()), &|_| ()).unwrap();
    assert!(report.is_sound(), "{:#?}", report.findings);
    assert!(report.metadata_used < 350, "{} blocks for 50 devices of 80 leaves", report.metadata_used);
    assert_thin_check_accepts(&image, "shared");
}

#[test]
fn a_dump_that_is_cut_changed_or_too_large_is_refused_and_leaves_no_pool() {
    let golden = golden("03");
    let xml = dumped(&golden.image);
    let changes: [(&str, &str); 9] = [
        ("</superblock>", ""),
        ("length=\"6\"", "length=\"5\""),
        ("nr_data_blocks=\"2048\"", "nr_data_blocks=\"4\""),
        ("nr_data_blocks=\"2048\"", "nr_data_blocks=\"99999999999\""),
        ("dev_id=\"1\"", "dev_id=\"0\""),
        ("time=\"1\"/>", "time=\"9\"/>"),
        ("data_block_size=\"128\"", "data_block_size=\"127\""),
        ("<device dev_id=\"0\"", "<device dev_id=\"x\""),
        ("origin_block=\"0\"", "origin_block=\"18446744073709551615\""),
    ];
    for (from, to) in changes {
        let changed = xml.replacen(from, to, 1);
        if changed == xml {
            continue;
        }
        let device = MemoryDevice::from_bytes(golden.image.clone());
        let error = restore(&mut Cursor::new(&changed), &device, &OPTIONS).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{from} → {to}: {error}");
        assert!(device.to_bytes()[..4096].iter().all(|&byte| byte == 0), "{from} → {to}");
    }
    for cut in (0..xml.len() - 14).step_by(97) {
        assert!(restored(&xml[..cut], golden.image.len()).is_err(), "cut at {cut}");
    }
    let error = restored(&dumped(&crate::facts::golden("05").image), 100 * 4096).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMetadataSpace);
}
