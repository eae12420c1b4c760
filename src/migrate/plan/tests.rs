//! Claims about who can come along, over records and pools made up here.

use std::process::Command;

use thinsnap_pool::{BlockSize, ByteCount, DeviceId, Inventory, InventoryDevice};

use super::{MigrationPlan, plan};
use crate::migrate::thin_ids::parse_thin_ids;
use crate::migrate::wanted::{Wanted, WantedFs};
use crate::snapshot::{Kind, Name};
use crate::store::REF_LABEL;

/// The first 4 KiB of a fresh ext4 of 64 MiB, or of an ext2.
fn head(kind: &str) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(64 << 20).unwrap();
    let made = Command::new("/sbin/mke2fs").args(["-q", "-t", kind]).arg(file.path()).status().unwrap();
    assert!(made.success());
    let mut bytes = std::fs::read(file.path()).unwrap();
    bytes.truncate(4096);
    bytes
}

fn pool(devices: &[(u32, &[u8])]) -> Inventory {
    let devices = devices.iter().map(|&(id, head)| InventoryDevice {
        id: DeviceId::new(id).unwrap(),
        mapped: ByteCount(64 << 10),
        end: ByteCount(64 << 10),
        head: (!head.is_empty()).then(|| head.to_vec()),
    });
    Inventory {
        identity: [0; 16],
        transaction_id: 0,
        block_size: BlockSize::DEFAULT,
        data_used: ByteCount(0),
        data_total: ByteCount(1 << 30),
        devices: devices.collect(),
    }
}

fn wanted(list: &str) -> Vec<Wanted> {
    parse_thin_ids(list, 7).unwrap()
}

fn names(plan: &MigrationPlan) -> Vec<&str> {
    plan.snapshots.iter().map(|planned| planned.record.name.as_str()).collect()
}

fn why<'a>(plan: &'a MigrationPlan, name: &str) -> &'a str {
    let left = plan.left_out.iter().find(|left| left.name == name);
    left.map_or_else(|| panic!("{name} is not left out: {plan:#?}"), |left| left.why.as_str())
}

#[test]
fn snapshots_come_along_behind_their_parents_and_unknown_devices_stay() {
    let ext4 = head("ext4");
    let list = "3 64M ext4 active web app\n# a comment\n2 64M ext4 committed app base\n1 64M ext4 committed base\n";
    let made = plan(
        wanted(list),
        &[DeviceId::new(9).unwrap()],
        &pool(&[(1, &ext4), (2, &ext4), (3, &ext4), (5, &[]), (9, &[])]),
    );
    assert_eq!(names(&made), ["base", "app", "web"]);
    assert_eq!(made.snapshots[1].record.parent, Some(Name::new("base").unwrap()));
    assert_eq!(made.left_out, []);
    let ids = |ids: &[DeviceId]| ids.iter().map(|id| id.get()).collect::<Vec<_>>();
    assert_eq!((ids(&made.unknown), ids(&made.deleted)), (vec![5], vec![9]));
}

#[test]
fn what_cannot_come_along_is_told_and_takes_its_children_with_it() {
    let (ext4, ext2) = (head("ext4"), head("ext2"));
    let list = "1 64M ext4 committed gone\n2 64M ext4 active above gone\n3 64M ext4 committed bare\n4 64M ext4 active two\n\
                4 64M ext4 active again\n5 64M btrfs active other\n6 32M ext4 active small\n7 64M ext4 active old\n\
                8 64M ext4 active loose nobody\n9 64M ext4 active child two\n10 64M xfs active wrong\n";
    let devices: Vec<(u32, &[u8])> = (2..=10)
        .map(|id| {
            (
                id,
                match id {
                    3 => &[][..],
                    7 => &ext2,
                    _ => &ext4,
                },
            )
        })
        .collect();
    let made = plan(wanted(list), &[], &pool(&devices));
    assert_eq!(names(&made), ["again"]);
    for (name, part) in [
        ("gone", "has no device 1"),
        ("above", "\"gone\" stays behind"),
        ("bare", "no ext4 is on its device"),
        ("two", "is that of \"again\""),
        ("other", "btrfs"),
        ("small", "its file system has 67108864 bytes"),
        ("old", "no ext4"),
        ("loose", "\"nobody\" stays behind"),
        ("child", "\"two\" stays behind"),
        ("wrong", "has ext4, not xfs"),
    ] {
        assert!(why(&made, name).contains(part), "{name}: {}", why(&made, name));
    }
    let circle = plan(
        wanted("1 64M ext4 committed a b\n2 64M ext4 committed b a\n3 64M ext4 committed c c\n"),
        &[],
        &pool(&devices),
    );
    assert!(["a", "b", "c"].iter().all(|name| why(&circle, name).contains("parent")), "{circle:#?}");
}

#[test]
fn a_view_shows_its_parent_s_device_and_its_own_is_deleted() {
    let ext4 = head("ext4");
    let mut all = wanted("1 64M ext4 committed ns/1/sha256:abc\n2 64M ext4 active ns/2/look ns/1/sha256:abc\n");
    all[1].kind = Kind::View;
    let made = plan(all, &[], &pool(&[(1, &ext4), (2, &ext4)]));
    let records: Vec<_> =
        made.snapshots.iter().map(|planned| (planned.record.kind, planned.record.device.get())).collect();
    assert_eq!(records, [(Kind::Committed, 1), (Kind::View, 1)]);
    assert_eq!(made.deleted, [DeviceId::new(2).unwrap()]);
    assert_eq!(made.snapshots[0].record.labels.get(REF_LABEL).map(String::as_str), Some("sha256:abc"));
    assert_eq!(made.snapshots[1].record.labels.get(REF_LABEL), None);
}

#[test]
fn a_wrong_line_of_a_list_is_named_with_the_form_of_a_right_one() {
    for line in [
        "1 64M ext4 active",
        "x 64M ext4 active a",
        "1 64M ext4 view a",
        "1 lots ext4 active a",
        "16777216 1G ext4 active a",
        "1 1 1 1 1 1 1",
    ] {
        let error = parse_thin_ids(&format!("# first\n{line}\n"), 0).unwrap_err();
        assert!(error.to_string().starts_with("line 2"), "{error}");
        assert!(error.advice().is_some());
    }
    assert_eq!(wanted("1 1G zfs active a\n")[0].fs, WantedFs::Other("zfs".to_owned()));
}
