//! containerd's laws of a snapshotter: each a claim, proved through a [`Client`].
//!
//! They cover what containerd's own suite covers for its snapshotters, what its metadata layer and the
//! Kubernetes runtime rely on beyond that, and what a block snapshotter must get right on its own.
//! [`all`] lists them; every law works on keys of its own, so all of them run on one service.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use thinsnap::fs::Mounted;
use thinsnap::snapshot::{Kind, Mount};
use tonic::Code;

use crate::client::{Answer, Client};

/// A law and its claim.
pub(crate) type Law = (&'static str, fn(&Case<'_>));

/// What a law works with.
pub(crate) struct Case<'a> {
    pub(crate) client: &'a dyn Client,
    /// An empty directory.
    pub(crate) dir: PathBuf,
    /// In front of every key of this law, so that laws do not meet.
    pub(crate) prefix: String,
}

macro_rules! laws {
    ($($law:ident),* $(,)?) => { &[$((stringify!($law), $law as fn(&Case<'_>))),*] };
}

/// The laws about records and their states.
pub(crate) fn all() -> Vec<Law> {
    let records: &[Law] = laws![
        a_snapshot_of_nothing_is_an_empty_directory_of_roots,
        stat_tells_what_prepare_view_and_commit_made,
        a_key_that_is_taken_is_refused_whatever_its_kind,
        only_committed_snapshots_can_be_parents,
        an_absent_snapshot_is_not_found_by_any_verb,
        a_view_or_committed_snapshot_cannot_be_committed,
        a_committed_snapshot_has_no_mounts,
        a_snapshot_with_children_cannot_be_removed,
        a_key_is_free_again_after_remove_and_after_commit,
        removing_twice_is_not_found,
        committing_twice_is_refused,
        commit_replaces_labels_and_renews_the_times,
        commit_takes_the_parent_it_has_and_no_other,
        labels_are_replaced_set_and_deleted_by_path,
        labels_that_are_too_long_or_empty_are_not_stored,
        list_finds_everything_once_and_filters_it,
        a_bad_filter_is_an_invalid_argument,
        stat_works_while_listing,
        spaces_never_meet,
        keys_may_be_anything,
        an_empty_or_huge_key_is_refused,
        a_ref_finds_the_committed_snapshot_of_the_same_parent,
        two_prepares_of_one_key_make_one_snapshot,
    ];
    let mut laws = records.to_vec();
    laws.extend_from_slice(crate::mount_laws::MOUNT_LAWS);
    laws
}

/// Runs the laws whose claim is `wanted`; `dir` is an empty directory.
pub(crate) fn run(client: &dyn Client, dir: &Path, wanted: impl Fn(&str) -> bool) {
    for (number, (claim, law)) in all().into_iter().enumerate().filter(|(_, (claim, _))| wanted(claim)) {
        let dir = dir.join(format!("{number}"));
        fs::create_dir(&dir).unwrap();
        println!("law: {claim}");
        let begun = Instant::now();
        law(&Case { client, dir, prefix: format!("law-{number}/") });
        println!("     held in {} ms", begun.elapsed().as_millis());
    }
}

/// The code of a refusal; a success is a broken law.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(answer: Answer<T>) -> Code {
    match answer {
        Ok(value) => panic!("accepted, with {value:?}"),
        Err(failure) => failure.code,
    }
}

impl Case<'_> {
    pub(crate) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Mounts at a directory of its own and runs `work` in it.
    pub(crate) fn inside<T>(&self, mounts: &[Mount], work: impl FnOnce(&Path) -> T) -> T {
        let mounted = self.mounted(mounts);
        let result = work(mounted.path());
        mounted.unmount().unwrap();
        result
    }

    /// One mount, at a new directory.
    pub(crate) fn mounted(&self, mounts: &[Mount]) -> Mounted {
        assert_eq!(mounts.len(), 1, "Kata and Firecracker take exactly one mount");
        let count = fs::read_dir(&self.dir).unwrap().count();
        let target = self.dir.join(format!("mnt-{count}"));
        fs::create_dir(&target).unwrap();
        Mounted::at(&mounts[0], &target).unwrap()
    }

    /// A committed layer `name` on `parent` (an own key, or empty), filled by `work`.
    pub(crate) fn layer(&self, name: &str, parent: &str, work: impl FnOnce(&Path)) -> String {
        let (key, name) = (self.key(&format!("extract {name}")), self.key(name));
        let mounts = self.client.prepare(&key, parent, &[]).unwrap();
        self.inside(&mounts, work);
        self.client.commit(&name, &key).unwrap();
        name
    }

    /// A committed layer without a mount.
    pub(crate) fn empty_layer(&self, name: &str, parent: &str) -> String {
        let (key, name) = (self.key(&format!("extract {name}")), self.key(name));
        self.client.prepare(&key, parent, &[]).unwrap();
        self.client.commit(&name, &key).unwrap();
        name
    }

    /// The names of this law's snapshots that match a filter.
    fn names(&self, filters: &[&str]) -> BTreeSet<String> {
        let all = self.client.list(filters).unwrap();
        let mine: Vec<String> =
            all.into_iter().filter_map(|info| info.name.strip_prefix(&self.prefix).map(str::to_owned)).collect();
        let set: BTreeSet<String> = mine.iter().cloned().collect();
        assert_eq!(set.len(), mine.len(), "a name is listed twice");
        set
    }
}

fn a_snapshot_of_nothing_is_an_empty_directory_of_roots(case: &Case<'_>) {
    for (verb, mounts) in [
        ("prepare", case.client.prepare(&case.key("active"), "", &[]).unwrap()),
        ("view", case.client.view(&case.key("view"), "", &[]).unwrap()),
    ] {
        case.inside(&mounts, |root| {
            let meta = fs::metadata(root).unwrap();
            assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o755, 0, 0), "{verb}");
            assert_eq!(fs::read_dir(root).unwrap().count(), 0, "{verb}: lost+found or the like is seen");
        });
    }
}

fn stat_tells_what_prepare_view_and_commit_made(case: &Case<'_>) {
    let client = case.client;
    let label = [("containerd.io/snapshot/x", "1")];
    let base = case.empty_layer("base", "");
    client.prepare(&case.key("active"), &base, &label).unwrap();
    client.view(&case.key("view"), &base, &label).unwrap();
    for (key, kind) in [("active", Kind::Active), ("view", Kind::View)] {
        let info = client.stat(&case.key(key)).unwrap();
        assert_eq!((info.name.as_str(), info.parent.as_str(), info.kind), (&*case.key(key), &*base, kind));
        assert_eq!(info.labels.get(label[0].0).map(String::as_str), Some("1"));
        assert_eq!(info.created_ns, info.updated_ns);
        assert!(info.created_ns > 1_600_000_000_000_000_000, "nanoseconds since the epoch");
    }
    client.commit(&case.key("top"), &case.key("active")).unwrap();
    let info = client.stat(&case.key("top")).unwrap();
    assert_eq!((info.parent.as_str(), info.kind), (&*base, Kind::Committed));
    assert_eq!(client.stat(&base).unwrap().parent, "");
}

fn a_key_that_is_taken_is_refused_whatever_its_kind(case: &Case<'_>) {
    let base = case.empty_layer("base", "");
    case.client.prepare(&case.key("active"), "", &[]).unwrap();
    case.client.view(&case.key("view"), &base, &[]).unwrap();
    for key in ["base", "active", "view"] {
        assert_eq!(refused(case.client.prepare(&case.key(key), "", &[])), Code::AlreadyExists);
        assert_eq!(refused(case.client.view(&case.key(key), &base, &[])), Code::AlreadyExists);
        case.client.prepare(&case.key("again"), "", &[]).unwrap();
        assert_eq!(refused(case.client.commit(&case.key(key), &case.key("again"))), Code::AlreadyExists);
        case.client.remove(&case.key("again")).unwrap();
    }
}

fn only_committed_snapshots_can_be_parents(case: &Case<'_>) {
    let base = case.empty_layer("base", "");
    case.client.prepare(&case.key("active"), &base, &[]).unwrap();
    case.client.view(&case.key("view"), &base, &[]).unwrap();
    for parent in ["active", "view"] {
        assert_eq!(refused(case.client.prepare(&case.key("x"), &case.key(parent), &[])), Code::InvalidArgument);
        assert_eq!(refused(case.client.view(&case.key("x"), &case.key(parent), &[])), Code::InvalidArgument);
    }
    assert_eq!(refused(case.client.prepare(&case.key("x"), &case.key("none"), &[])), Code::NotFound);
    assert_eq!(refused(case.client.view(&case.key("x"), &case.key("none"), &[])), Code::NotFound);
    assert_eq!(refused(case.client.stat(&case.key("x"))), Code::NotFound, "a refused key stays free");
}

fn an_absent_snapshot_is_not_found_by_any_verb(case: &Case<'_>) {
    let (client, none) = (case.client, case.key("none"));
    assert_eq!(refused(client.stat(&none)), Code::NotFound);
    assert_eq!(refused(client.mounts(&none)), Code::NotFound);
    assert_eq!(refused(client.commit(&case.key("x"), &none)), Code::NotFound);
    assert_eq!(refused(client.remove(&none)), Code::NotFound);
    assert_eq!(refused(client.update(&none, &[("a", "b")], &[])), Code::NotFound);
    assert_eq!(refused(client.usage(&none)), Code::NotFound);
}

fn a_view_or_committed_snapshot_cannot_be_committed(case: &Case<'_>) {
    let base = case.empty_layer("base", "");
    case.client.view(&case.key("view"), &base, &[]).unwrap();
    assert_eq!(refused(case.client.commit(&case.key("x"), &case.key("view"))), Code::FailedPrecondition);
    assert_eq!(refused(case.client.commit(&case.key("x"), &base)), Code::FailedPrecondition);
}

fn a_committed_snapshot_has_no_mounts(case: &Case<'_>) {
    let base = case.empty_layer("base", "");
    assert_eq!(refused(case.client.mounts(&base)), Code::FailedPrecondition);
}

fn a_snapshot_with_children_cannot_be_removed(case: &Case<'_>) {
    let client = case.client;
    let base = case.empty_layer("base", "");
    let middle = case.empty_layer("middle", &base);
    client.prepare(&case.key("active"), &middle, &[]).unwrap();
    client.view(&case.key("view"), &middle, &[]).unwrap();
    for parent in [&base, &middle] {
        let failure = client.remove(parent).unwrap_err();
        assert_eq!(failure.code, Code::FailedPrecondition);
        assert!(failure.message.contains("remove"), "containerd's suite looks for the word: {}", failure.message);
    }
    client.remove(&case.key("active")).unwrap();
    assert_eq!(refused(client.remove(&middle)), Code::FailedPrecondition, "a view is a child too");
    client.remove(&case.key("view")).unwrap();
    client.remove(&middle).unwrap();
    client.remove(&base).unwrap();
    client.cleanup().unwrap();
    assert!(case.names(&[]).is_empty());
}

fn a_key_is_free_again_after_remove_and_after_commit(case: &Case<'_>) {
    let (client, key) = (case.client, case.key("key"));
    for round in 0..3 {
        client.prepare(&key, "", &[]).unwrap();
        client.commit(&case.key(&format!("layer {round}")), &key).unwrap();
        client.prepare(&key, "", &[]).unwrap();
        client.remove(&key).unwrap();
    }
    assert_eq!(refused(client.stat(&key)), Code::NotFound);
}

fn removing_twice_is_not_found(case: &Case<'_>) {
    case.client.prepare(&case.key("a"), "", &[]).unwrap();
    case.client.remove(&case.key("a")).unwrap();
    assert_eq!(refused(case.client.remove(&case.key("a"))), Code::NotFound);
}

fn committing_twice_is_refused(case: &Case<'_>) {
    let client = case.client;
    client.prepare(&case.key("a"), "", &[]).unwrap();
    client.commit(&case.key("layer"), &case.key("a")).unwrap();
    assert_eq!(refused(client.commit(&case.key("layer"), &case.key("a"))), Code::AlreadyExists);
    assert_eq!(refused(client.commit(&case.key("other"), &case.key("a"))), Code::NotFound);
}

fn commit_replaces_labels_and_renews_the_times(case: &Case<'_>) {
    let client = case.client;
    client.prepare(&case.key("a"), "", &[("old", "1"), ("both", "1")]).unwrap();
    let before = client.stat(&case.key("a")).unwrap();
    client.commit_onto(&case.key("layer"), &case.key("a"), &[("both", "2"), ("new", "2")], "").unwrap();
    let info = client.stat(&case.key("layer")).unwrap();
    let labels: Vec<_> = info.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(labels, [("both", "2"), ("new", "2")]);
    assert!(info.created_ns > before.created_ns && info.created_ns == info.updated_ns);
}

fn commit_takes_the_parent_it_has_and_no_other(case: &Case<'_>) {
    let client = case.client;
    let (one, two) = (case.empty_layer("one", ""), case.empty_layer("two", ""));
    client.prepare(&case.key("a"), &one, &[]).unwrap();
    assert_eq!(refused(client.commit_onto(&case.key("x"), &case.key("a"), &[], &two)), Code::InvalidArgument);
    client.commit_onto(&case.key("x"), &case.key("a"), &[], &one).unwrap();
    client.prepare(&case.key("b"), "", &[]).unwrap();
    assert_eq!(refused(client.commit_onto(&case.key("y"), &case.key("b"), &[], &one)), Code::Unimplemented);
}

fn labels_are_replaced_set_and_deleted_by_path(case: &Case<'_>) {
    let (client, key) = (case.client, case.key("a"));
    client.prepare(&key, "", &[("a.b", "1"), ("c", "1")]).unwrap();
    let before = client.stat(&key).unwrap();
    let labels_after = |labels: &[(&str, &str)], paths: &[&str]| {
        let info = client.update(&key, labels, paths).unwrap();
        assert_eq!(info, client.stat(&key).unwrap());
        assert_eq!((info.created_ns, info.kind), (before.created_ns, before.kind));
        assert!(info.updated_ns > before.updated_ns);
        info.labels.into_iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(labels_after(&[("a.b", "2"), ("ignored", "x")], &["labels.a.b"]), "a.b=2 c=1");
    assert_eq!(labels_after(&[("d", "1")], &["labels.d", "labels.c"]), "a.b=2 d=1");
    assert_eq!(labels_after(&[("d", "")], &["labels.d"]), "a.b=2");
    assert_eq!(labels_after(&[("x", "1"), ("y", "")], &["labels"]), "x=1");
    assert_eq!(labels_after(&[("z", "1")], &[]), "z=1");
    assert_eq!(labels_after(&[], &[]), "");
    for path in ["name", "parent", "kind", "created_at", "label"] {
        assert_eq!(refused(client.update(&key, &[], &[path])), Code::InvalidArgument, "{path}");
    }
}

fn labels_that_are_too_long_or_empty_are_not_stored(case: &Case<'_>) {
    let client = case.client;
    let long = "v".repeat(4096);
    assert_eq!(refused(client.prepare(&case.key("a"), "", &[("k", &long)])), Code::InvalidArgument);
    client.prepare(&case.key("a"), "", &[("k", &long[1..]), ("empty", "")]).unwrap();
    assert_eq!(client.stat(&case.key("a")).unwrap().labels.len(), 1);
    assert_eq!(refused(client.update(&case.key("a"), &[("k", &long)], &[])), Code::InvalidArgument);
    assert_eq!(refused(client.commit_onto(&case.key("l"), &case.key("a"), &[("k", &long)], "")), Code::InvalidArgument);
    assert_eq!(client.stat(&case.key("a")).unwrap().labels["k"].len(), 4095, "a refused change changes nothing");
}

fn list_finds_everything_once_and_filters_it(case: &Case<'_>) {
    let client = case.client;
    let base = case.empty_layer("base", "");
    let top = case.empty_layer("top", &base);
    client.prepare(&case.key("active"), &top, &[("colour", "red")]).unwrap();
    client.view(&case.key("view"), &top, &[("colour", "blue")]).unwrap();
    let set = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(case.names(&[]), set(&["base", "top", "active", "view"]));
    assert_eq!(case.names(&[""]), set(&["base", "top", "active", "view"]));
    assert_eq!(case.names(&["kind==active"]), set(&["active"]));
    assert_eq!(case.names(&["labels.colour"]), set(&["active", "view"]));
    assert_eq!(case.names(&["labels.colour==red", "kind==view"]), set(&["active", "view"]));
    assert_eq!(case.names(&["labels.colour==red,kind==view"]), set(&[]));
    assert_eq!(case.names(&[&format!("parent==\"{top}\"")]), set(&["active", "view"]));
    assert_eq!(case.names(&[&format!("name==\"{top}\"")]), set(&["top"]));
    assert_eq!(case.names(&[&format!("name==\"{top}\",kind==view")]), set(&[]));
    assert_eq!(case.names(&[&format!("name==\"{top}\""), &format!("name==\"{base}\"")]), set(&["base", "top"]));
}

fn a_bad_filter_is_an_invalid_argument(case: &Case<'_>) {
    assert_eq!(refused(case.client.list(&["name=x"])), Code::InvalidArgument);
    assert_eq!(refused(case.client.list(&["kind==active", "labels.\"x"])), Code::InvalidArgument);
}

fn stat_works_while_listing(case: &Case<'_>) {
    case.empty_layer("base", "");
    for info in case.client.list(&[]).unwrap().iter().filter(|info| info.name.starts_with(&case.prefix)) {
        assert_eq!(case.client.stat(&info.name).unwrap(), *info);
    }
}

fn spaces_never_meet(case: &Case<'_>) {
    let other = case.client.elsewhere("another-plugin");
    let base = case.empty_layer("base", "");
    assert_eq!(refused(other.stat(&base)), Code::NotFound);
    assert_eq!(refused(other.prepare(&case.key("x"), &base, &[])), Code::NotFound);
    other.prepare(&base, "", &[]).unwrap();
    assert_eq!(other.list(&[]).unwrap().len(), 1, "a garbage collector would remove what is not its own");
    assert_eq!(case.client.stat(&base).unwrap().kind, Kind::Committed);
    other.remove(&base).unwrap();
    assert_eq!(case.client.stat(&base).unwrap().kind, Kind::Committed);
}

fn keys_may_be_anything(case: &Case<'_>) {
    let long = "x".repeat(3000);
    let keys =
        ["k8s.io/42/extract-123456-AbCd sha256:0f", "../../etc/passwd", "/", ".", "牛 \t\n\"'\\%s*?", long.as_str()];
    for key in keys {
        let key = case.key(key);
        let mounts = case.client.prepare(&key, "", &[]).unwrap();
        assert_eq!(case.client.mounts(&key).unwrap(), mounts);
        assert_eq!(case.client.stat(&key).unwrap().name, key);
        case.client.remove(&key).unwrap();
    }
}

fn an_empty_or_huge_key_is_refused(case: &Case<'_>) {
    let huge = "x".repeat(5000);
    for key in ["", huge.as_str()] {
        assert_eq!(refused(case.client.prepare(key, "", &[])), Code::InvalidArgument);
        assert_eq!(refused(case.client.view(key, "", &[])), Code::InvalidArgument);
        assert_eq!(refused(case.client.stat(key)), Code::InvalidArgument);
        assert_eq!(refused(case.client.remove(key)), Code::InvalidArgument);
    }
}

/// containerd's metadata layer then adopts the snapshot into the caller's namespace; any other
/// AlreadyExists becomes an unknown error there.
fn a_ref_finds_the_committed_snapshot_of_the_same_parent(case: &Case<'_>) {
    let client = case.client;
    let reference = case.key("sha256:1");
    let labels = [("containerd.io/snapshot.ref", reference.as_str())];
    let base = case.empty_layer("base", "");
    client.prepare(&case.key("extract"), &base, &labels).unwrap();
    client.prepare(&case.key("again"), &base, &labels).unwrap();
    client.commit_onto(&case.key("sha256:1"), &case.key("extract"), &labels, "").unwrap();
    assert_eq!(refused(client.prepare(&case.key("third"), &base, &labels)), Code::AlreadyExists);
    let found = client
        .list(&[&format!("labels.\"containerd.io/snapshot.ref\"==\"{reference}\",parent==\"{base}\",kind==committed")])
        .unwrap();
    assert_eq!(found.len(), 1);
    client.prepare(&case.key("without parent"), "", &labels).unwrap();
    client.update(&case.key("sha256:1"), &[], &[]).unwrap();
    client.prepare(&case.key("after the label went"), &base, &labels).unwrap();
}

fn two_prepares_of_one_key_make_one_snapshot(case: &Case<'_>) {
    let (client, key) = (case.client, case.key("contested"));
    for _ in 0..5 {
        let answers: Vec<Answer<Vec<Mount>>> = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..4).map(|_| scope.spawn(|| client.prepare(&key, "", &[]))).collect();
            callers.into_iter().map(|caller| caller.join().unwrap()).collect()
        });
        let (won, lost): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
        assert_eq!((won.len(), lost.len()), (1, 3));
        assert!(lost.into_iter().all(|answer| refused(answer) == Code::AlreadyExists));
        client.remove(&key).unwrap();
    }
}
