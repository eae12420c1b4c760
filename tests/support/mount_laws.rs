//! The laws about what is seen when a snapshot is mounted.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use thinsnap::snapshot::Kind;
use thinsnap::snapshotter::UNPACK_LABEL;
use thinsnap::store::REF_LABEL;
use tonic::Code;

use crate::laws::{Case, Law, refused};
use crate::process::wait_until;

pub(crate) const MOUNT_LAWS: &[Law] = &[
    (
        "a_child_sees_its_parents_files_and_changes_only_its_own",
        a_child_sees_its_parents_files_and_changes_only_its_own,
    ),
    ("deleted_moved_and_replaced_files_stay_so", deleted_moved_and_replaced_files_stay_so),
    ("owners_modes_and_times_survive_a_commit", owners_modes_and_times_survive_a_commit),
    ("a_view_shows_its_parent_and_cannot_be_written", a_view_shows_its_parent_and_cannot_be_written),
    ("views_of_one_snapshot_come_and_go_alone", views_of_one_snapshot_come_and_go_alone),
    ("mounts_answers_what_prepare_and_view_did", mounts_answers_what_prepare_and_view_did),
    ("a_snapshot_committed_while_mounted_holds_that_moment", a_snapshot_committed_while_mounted_holds_that_moment),
    ("a_snapshot_removed_while_mounted_goes_when_unmounted", a_snapshot_removed_while_mounted_goes_when_unmounted),
    ("a_name_used_again_holds_the_new_content", a_name_used_again_holds_the_new_content),
    ("usage_counts_what_was_written_here_and_freezes_at_commit", usage_counts_what_was_written_here),
    ("a_size_label_makes_a_snapshot_larger_and_its_children_too", a_size_label_makes_a_snapshot_larger),
    ("a_chain_of_128_layers_shows_them_all", a_chain_of_128_layers_shows_them_all),
    ("siblings_do_not_see_each_other", siblings_do_not_see_each_other),
    ("a_device_is_written_early_while_a_layer_is_unpacked", a_device_is_written_early_while_a_layer_is_unpacked),
];

fn write(root: &Path, name: &str, content: &str) {
    fs::write(root.join(name), content).unwrap();
}

fn read(root: &Path, name: &str) -> String {
    fs::read_to_string(root.join(name)).unwrap()
}

fn a_child_sees_its_parents_files_and_changes_only_its_own(case: &Case<'_>) {
    let base = case.layer("base", "", |root| {
        write(root, "kept", "from base");
        write(root, "changed", "from base");
    });
    let top = case.layer("top", &base, |root| {
        assert_eq!(read(root, "kept"), "from base");
        write(root, "changed", "from top");
        write(root, "new", "from top");
    });
    let mounts = case.client.view(&case.key("see base"), &base, &[]).unwrap();
    case.inside(&mounts, |root| {
        assert_eq!((read(root, "kept"), read(root, "changed")), ("from base".into(), "from base".into()));
        assert!(!root.join("new").exists());
    });
    let mounts = case.client.view(&case.key("see top"), &top, &[]).unwrap();
    case.inside(&mounts, |root| {
        assert_eq!((read(root, "kept"), read(root, "changed")), ("from base".into(), "from top".into()));
        assert_eq!(read(root, "new"), "from top");
    });
}

fn deleted_moved_and_replaced_files_stay_so(case: &Case<'_>) {
    let base = case.layer("base", "", |root| {
        fs::create_dir_all(root.join("dir/deep")).unwrap();
        for name in ["deleted", "moved", "dir/inside", "replaced"] {
            write(root, name, name);
        }
    });
    let middle = case.layer("middle", &base, |root| {
        fs::remove_file(root.join("deleted")).unwrap();
        fs::rename(root.join("moved"), root.join("dir/deep/moved")).unwrap();
        fs::remove_file(root.join("replaced")).unwrap();
        symlink("dir", root.join("replaced")).unwrap();
    });
    let top = case.layer("top", &middle, |root| fs::remove_dir_all(root.join("dir/deep")).unwrap());
    let mounts = case.client.prepare(&case.key("child"), &top, &[]).unwrap();
    case.inside(&mounts, |root| {
        assert!(!root.join("deleted").exists() && !root.join("moved").exists() && !root.join("dir/deep").exists());
        assert_eq!(read(root, "replaced/inside"), "dir/inside");
    });
    let mounts = case.client.view(&case.key("middle again"), &middle, &[]).unwrap();
    case.inside(&mounts, |root| assert_eq!(read(root, "dir/deep/moved"), "moved"));
}

fn owners_modes_and_times_survive_a_commit(case: &Case<'_>) {
    let base = case.layer("base", "", |root| {
        fs::create_dir(root.join("dir")).unwrap();
        fs::set_permissions(root.join("dir"), fs::Permissions::from_mode(0o1777)).unwrap();
        write(root, "file", "x");
        std::os::unix::fs::chown(root.join("file"), Some(1234), Some(5678)).unwrap();
        fs::set_permissions(root.join("file"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::set_permissions(root, fs::Permissions::from_mode(0o711)).unwrap();
        File::options()
            .write(true)
            .open(root.join("file"))
            .and_then(|f| f.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000)))
            .unwrap();
    });
    let mounts = case.client.prepare(&case.key("child"), &base, &[]).unwrap();
    case.inside(&mounts, |root| {
        let file = fs::metadata(root.join("file")).unwrap();
        assert_eq!((file.mode() & 0o7777, file.uid(), file.gid(), file.mtime()), (0o4755, 1234, 5678, 1_000_000_000));
        assert_eq!(fs::metadata(root.join("dir")).unwrap().mode() & 0o7777, 0o1777);
        assert_eq!(fs::metadata(root).unwrap().mode() & 0o7777, 0o711);
    });
}

fn a_view_shows_its_parent_and_cannot_be_written(case: &Case<'_>) {
    let base = case.layer("base", "", |root| write(root, "file", "content"));
    let mounts = case.client.view(&case.key("view"), &base, &[]).unwrap();
    assert!(mounts[0].options.iter().any(|option| option == "ro"), "{:?}", mounts[0].options);
    case.inside(&mounts, |root| {
        assert_eq!(read(root, "file"), "content");
        let error = fs::write(root.join("new"), "x").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
    });
}

fn views_of_one_snapshot_come_and_go_alone(case: &Case<'_>) {
    let client = case.client;
    let base = case.layer("base", "", |root| write(root, "file", "content"));
    let one = client.view(&case.key("one"), &base, &[]).unwrap();
    let two = client.view(&case.key("two"), &base, &[]).unwrap();
    let mounted = case.mounted(&one);
    client.remove(&case.key("two")).unwrap();
    client.cleanup().unwrap();
    assert_eq!(read(mounted.path(), "file"), "content");
    assert_eq!(client.mounts(&case.key("one")).unwrap(), one);
    drop(two);
    let three = client.view(&case.key("three"), &base, &[]).unwrap();
    case.inside(&three, |root| assert_eq!(read(root, "file"), "content"));
    mounted.unmount().unwrap();
    client.remove(&case.key("one")).unwrap();
    client.remove(&case.key("three")).unwrap();
    client.cleanup().unwrap();
    let again = client.view(&case.key("again"), &base, &[]).unwrap();
    case.inside(&again, |root| assert_eq!(read(root, "file"), "content"));
}

fn mounts_answers_what_prepare_and_view_did(case: &Case<'_>) {
    let base = case.empty_layer("base", "");
    let active = case.client.prepare(&case.key("active"), &base, &[]).unwrap();
    let view = case.client.view(&case.key("view"), &base, &[]).unwrap();
    for _ in 0..2 {
        assert_eq!(case.client.mounts(&case.key("active")).unwrap(), active);
        assert_eq!(case.client.mounts(&case.key("view")).unwrap(), view);
    }
}

fn a_snapshot_committed_while_mounted_holds_that_moment(case: &Case<'_>) {
    let client = case.client;
    let mounts = client.prepare(&case.key("active"), "", &[]).unwrap();
    let mounted = case.mounted(&mounts);
    write(mounted.path(), "before", "not yet synced");
    // Deleted but open: an orphan that the committed file system must cope with.
    let mut open = File::create(mounted.path().join("orphan")).unwrap();
    open.write_all(&[1; 100_000]).unwrap();
    fs::remove_file(mounted.path().join("orphan")).unwrap();
    client.commit(&case.key("layer"), &case.key("active")).unwrap();
    write(mounted.path(), "after", "too late");
    let view = client.view(&case.key("view"), &case.key("layer"), &[]).unwrap();
    let check = |root: &Path| {
        assert_eq!(read(root, "before"), "not yet synced");
        assert!(!root.join("after").exists());
    };
    case.inside(&view, check);
    let child = client.prepare(&case.key("child"), &case.key("layer"), &[]).unwrap();
    case.inside(&child, check);
    assert_eq!(read(mounted.path(), "after"), "too late", "the old mount goes on");
    drop(open);
    mounted.unmount().unwrap();
    client.cleanup().unwrap();
    case.inside(&client.mounts(&case.key("view")).unwrap(), check);
}

fn a_snapshot_removed_while_mounted_goes_when_unmounted(case: &Case<'_>) {
    let client = case.client;
    let mounts = client.prepare(&case.key("active"), "", &[]).unwrap();
    let mounted = case.mounted(&mounts);
    write(mounted.path(), "file", "content");
    client.remove(&case.key("active")).unwrap();
    client.cleanup().unwrap();
    assert_eq!(read(mounted.path(), "file"), "content", "its user is not disturbed");
    let new = client.prepare(&case.key("active"), "", &[]).unwrap();
    assert_ne!(new[0].source, mounts[0].source, "the key is free, the old device is not");
    case.inside(&new, |root| assert!(!root.join("file").exists()));
    mounted.unmount().unwrap();
    client.cleanup().unwrap();
}

fn a_name_used_again_holds_the_new_content(case: &Case<'_>) {
    for content in ["first", "second"] {
        let layer = case.layer("layer", "", |root| write(root, "file", content));
        let view = case.client.view(&case.key("view"), &layer, &[]).unwrap();
        case.inside(&view, |root| assert_eq!(read(root, "file"), content));
        case.client.remove(&case.key("view")).unwrap();
        case.client.remove(&layer).unwrap();
    }
}

fn usage_counts_what_was_written_here(case: &Case<'_>) {
    const MIB: u64 = 1 << 20;
    let client = case.client;
    let big = vec![0x5a_u8; 4 << 20];
    let base = case.layer("base", "", |root| fs::write(root.join("big"), &big).unwrap());
    let frozen = client.usage(&base).unwrap().bytes;
    assert!((4 * MIB..8 * MIB).contains(&frozen), "{frozen}");
    let mounts = client.prepare(&case.key("child"), &base, &[]).unwrap();
    assert!(client.usage(&case.key("child")).unwrap().bytes < MIB, "a parent's bytes are not counted");
    case.inside(&mounts, |root| fs::write(root.join("more"), &big[..2 << 20]).unwrap());
    let live = client.usage(&case.key("child")).unwrap().bytes;
    assert!((2 * MIB..6 * MIB).contains(&live), "{live}");
    assert_eq!(client.usage(&base).unwrap().bytes, frozen);
    client.view(&case.key("view"), &base, &[]).unwrap();
    assert!(
        client.usage(&case.key("view")).unwrap().bytes < MIB,
        "a view holds nothing, least of all less than nothing"
    );
}

fn file_system_size(root: &Path) -> u64 {
    let stat = nix::sys::statvfs::statvfs(root).unwrap();
    stat.blocks() * stat.fragment_size()
}

fn a_size_label_makes_a_snapshot_larger(case: &Case<'_>) {
    let client = case.client;
    let plain = case.inside(&client.prepare(&case.key("plain"), "", &[]).unwrap(), file_system_size);
    for bad in ["0", "much", "-1", "1000"] {
        let key = case.key(&format!("bad {bad}"));
        let mounts = client.prepare(&key, "", &[("containerd.io/snapshot/max-size", bad)]).unwrap();
        assert_eq!(case.inside(&mounts, file_system_size), plain, "{bad:?} does not count");
    }
    let wanted = (plain * 3).to_string();
    let base = case.layer("base", "", |root| write(root, "file", "content"));
    let label = [("containerd.io/snapshot/max-size", wanted.as_str())];
    let mounts = client.prepare(&case.key("large"), &base, &label).unwrap();
    case.inside(&mounts, |root| {
        assert!(file_system_size(root) > plain * 2);
        assert_eq!(read(root, "file"), "content");
    });
    client.commit(&case.key("large layer"), &case.key("large")).unwrap();
    let child = client.prepare(&case.key("child"), &case.key("large layer"), &[]).unwrap();
    assert!(case.inside(&child, file_system_size) > plain * 2, "children never shrink");
    let view = client.view(&case.key("view"), &base, &[]).unwrap();
    assert!(case.inside(&view, file_system_size) <= plain, "the parent stays as it was");
}

fn a_chain_of_128_layers_shows_them_all(case: &Case<'_>) {
    let mut parent = String::new();
    for number in 0..128 {
        parent = case.layer(&format!("layer {number}"), &parent, |root| {
            write(root, &format!("file {number}"), &number.to_string());
            write(root, "last", &number.to_string());
        });
    }
    let mounts = case.client.prepare(&case.key("top"), &parent, &[]).unwrap();
    case.inside(&mounts, |root| {
        for number in 0..128 {
            assert_eq!(read(root, &format!("file {number}")), number.to_string());
        }
        assert_eq!(read(root, "last"), "127");
    });
    case.client.remove(&case.key("top")).unwrap();
    for number in (0..128).rev() {
        let name = case.key(&format!("layer {number}"));
        if number > 0 {
            let below = case.key(&format!("layer {}", number - 1));
            assert_eq!(refused(case.client.remove(&below)), Code::FailedPrecondition);
        }
        case.client.remove(&name).unwrap();
    }
    case.client.cleanup().unwrap();
}

fn siblings_do_not_see_each_other(case: &Case<'_>) {
    let base = case.layer("base", "", |root| write(root, "file", "base"));
    let one = case.client.prepare(&case.key("one"), &base, &[]).unwrap();
    let two = case.client.prepare(&case.key("two"), &base, &[]).unwrap();
    let (one, two) = (case.mounted(&one), case.mounted(&two));
    write(one.path(), "file", "one");
    write(two.path(), "file", "two");
    assert_eq!((read(one.path(), "file"), read(two.path(), "file")), ("one".into(), "two".into()));
    assert_eq!(case.client.stat(&case.key("one")).unwrap().kind, Kind::Active);
    one.unmount().unwrap();
    two.unmount().unwrap();
}

/// Bytes that the page cache may hold for a device, if it has a limit of its own; `None`: it has none, or is gone.
fn dirty_limit(bdi: &Path) -> Option<u64> {
    let setting = |name: &str| fs::read_to_string(bdi.join(name)).ok()?.trim().parse::<u64>().ok();
    if setting("strict_limit")? == 0 {
        assert_eq!((setting("min_ratio"), setting("max_ratio")), (Some(0), Some(100)), "half a limit is left");
        return None;
    }
    setting("max_bytes")
}

fn a_device_is_written_early_while_a_layer_is_unpacked(case: &Case<'_>) {
    let client = case.client;
    let bdi_of = |mounts: &[thinsnap::snapshot::Mount]| {
        let number = fs::metadata(&mounts[0].source).unwrap().rdev();
        let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
        std::path::PathBuf::from(format!("/sys/dev/block/{major}:{minor}/bdi"))
    };
    for (label, is_kept) in [(REF_LABEL, true), (UNPACK_LABEL, false)] {
        let key = case.key(&format!("unpack {is_kept}"));
        let bdi = bdi_of(&client.prepare(&key, "", &[(label, "sha256:layer")]).unwrap());
        if !bdi.join("strict_limit").exists() {
            println!("SKIPPED: this kernel sets no strict limit on a device (it needs Linux 6.3)");
            return;
        }
        let limit = dirty_limit(&bdi).expect("a limit");
        // The kernel keeps it as a share of what all devices may have, which changes with the memory in use.
        assert!((24 << 20..40 << 20).contains(&limit), "{limit} bytes");
        // Whatever becomes of the label: the limit goes with the device.
        client.update(&key, &[], &["labels"]).unwrap();
        if is_kept {
            client.commit(&case.key("layer"), &key).unwrap();
        } else {
            client.remove(&key).unwrap();
            client.cleanup().unwrap();
        }
        // The kernel takes a device of device-mapper apart a moment after nobody can open it any more.
        wait_until("the end of the limit", Duration::from_secs(10), || dirty_limit(&bdi).is_none());
    }
    let mounts = client.prepare(&case.key("container"), &case.key("layer"), &[]).unwrap();
    assert_eq!(dirty_limit(&bdi_of(&mounts)), None, "a container writes when the kernel likes");
}
