//! Layers of random trees, of other programs' sparse files, and of random bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use crate::archive::{Member, Tar, gzip, zstd};
use crate::archive_images::{have, run};
use crate::archive_tree::{Times, Tree, assert_same, read_tree};
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
use proptest::test_runner::TestCaseError;
use tempfile::TempDir;
use thinsnap::error::{Error, ErrorKind};
use thinsnap::image::{AppliedLayer, Limits, apply_layer};

fn lay_down(bytes: &[u8], root: &Path) -> Result<AppliedLayer, Error> {
    let archive = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(archive.path(), bytes).unwrap();
    lay_down_file(archive.path(), root)
}

fn lay_down_file(archive: &Path, root: &Path) -> Result<AppliedLayer, Error> {
    let root = File::open(root).unwrap();
    apply_layer(archive, root.as_fd(), &Limits::default())
}

/// One thing in a random tree.
#[derive(Debug, Clone)]
enum Thing {
    File(Vec<u8>),
    Directory,
    Symlink(String),
    /// To the file of this number, counted round.
    HardLink(usize),
    Fifo,
}

#[derive(Debug, Clone)]
struct Planned {
    thing: Thing,
    mode: u32,
    owner: (u64, u64),
    mtime: u64,
    xattr: Option<Vec<u8>>,
}

fn planned() -> impl Strategy<Value = Planned> {
    let thing = prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 0..2000).prop_map(Thing::File),
        1 => (0usize..200_000).prop_map(|len| Thing::File(vec![0; len])),
        4 => Just(Thing::Directory),
        2 => "[a-z/.]{1,30}".prop_map(Thing::Symlink),
        2 => any::<usize>().prop_map(Thing::HardLink),
        1 => Just(Thing::Fifo),
    ];
    let xattr = proptest::option::weighted(0.2, proptest::collection::vec(any::<u8>(), 0..50));
    (thing, 0u32..0o10000, (0u64..70_000, 0u64..70_000), 0u64..4_000_000_000, xattr)
        .prop_map(|(thing, mode, owner, mtime, xattr)| Planned { thing, mode, owner, mtime, xattr })
}

/// Paths below each other as their parents are directories; names of one to three letters, so that some meet.
fn placed(things: Vec<(Planned, String, usize)>) -> BTreeMap<String, Planned> {
    let mut tree: BTreeMap<String, Planned> = BTreeMap::new();
    for (planned, name, at) in things {
        let directories: Vec<String> = tree
            .iter()
            .filter(|(_, planned)| matches!(planned.thing, Thing::Directory))
            .map(|(path, _)| format!("{path}/"))
            .collect();
        let parent = match at % (directories.len() + 1) {
            0 => String::new(),
            i => directories[i - 1].clone(),
        };
        tree.entry(format!("{parent}{name}")).or_insert(planned);
    }
    tree
}

/// The tree as an archive, directories last so that their times must survive, and as it should come out.
fn archive_of(tree: &BTreeMap<String, Planned>) -> (Vec<u8>, Tree) {
    let files: Vec<&String> =
        tree.iter().filter(|(_, planned)| matches!(planned.thing, Thing::File(_))).map(|(path, _)| path).collect();
    let (mut first, mut last, mut expected) = (Vec::new(), Vec::new(), Tree::new());
    let mut links: BTreeMap<&String, Vec<&String>> = BTreeMap::new();
    for (path, planned) in tree {
        let member = match &planned.thing {
            Thing::File(data) => Member::file(path, data),
            Thing::Directory => Member::directory(format!("{path}/")),
            Thing::Symlink(target) => Member::symlink(path, target),
            Thing::Fifo => Member::node(b'6', path, (0, 0)),
            Thing::HardLink(_) if files.is_empty() => continue,
            Thing::HardLink(number) => {
                links.entry(files[number % files.len()]).or_default().push(path);
                continue;
            }
        };
        let mut member = member.mode(planned.mode).owner(planned.owner.0, planned.owner.1).mtime(planned.mtime);
        let mut xattrs = BTreeMap::new();
        if let (Some(value), Thing::File(_) | Thing::Directory) = (&planned.xattr, &planned.thing) {
            member = member.pax("SCHILY.xattr.user.note", value);
            xattrs.insert("user.note".to_owned(), value.clone());
        }
        let (kind, content, mode) = match &planned.thing {
            Thing::File(_) => ('f', member.data.clone(), planned.mode),
            Thing::Directory => ('d', Vec::new(), planned.mode),
            Thing::Symlink(target) => ('l', target.clone().into_bytes(), 0o777),
            Thing::Fifo => ('p', Vec::new(), planned.mode),
            Thing::HardLink(_) => unreachable!("handled above"),
        };
        let node = crate::archive_tree::Node {
            kind,
            mode,
            owner: (u32::try_from(planned.owner.0).unwrap(), u32::try_from(planned.owner.1).unwrap()),
            mtime: (i64::try_from(planned.mtime).unwrap(), 0),
            content: crate::archive_tree::shown_content(&content),
            links: None,
            xattrs,
        };
        expected.insert(path.clone(), node);
        if kind == 'd' { last.push(member) } else { first.push(member) }
    }
    for (target, names) in links {
        let mut all: Vec<&String> = names.clone();
        all.push(target);
        all.sort();
        let mut node = expected[target].clone();
        // The walk goes by components: `a/b` before `a-b`.
        let by_components = |path: &&String| path.split('/').map(str::to_owned).collect::<Vec<_>>();
        let first_name = all.iter().copied().min_by_key(by_components).unwrap();
        node.links = Some((first_name.clone(), all.len() as u64));
        for name in &all {
            expected.insert((*name).clone(), node.clone());
        }
        first.extend(names.iter().map(|name| Member::hard_link(name, target)));
    }
    let tar = first.into_iter().chain(last).fold(Tar::default(), Tar::add);
    (tar.end(), expected)
}

fn check_tree(things: Vec<(Planned, String, usize)>) -> Result<(), TestCaseError> {
    let tree = placed(things);
    let (bytes, expected) = archive_of(&tree);
    let dir = TempDir::new().unwrap();
    for packed in [bytes.clone(), gzip(&bytes), zstd(&bytes)] {
        let root = TempDir::new_in(dir.path()).unwrap();
        lay_down(&packed, root.path()).unwrap();
        let mut ours = read_tree(root.path(), Times::Compared);
        ours.remove("");
        assert_same(&ours, &expected);
        // Once more over itself: everything is replaced by the same.
        lay_down(&packed, root.path()).unwrap();
        let mut ours = read_tree(root.path(), Times::Compared);
        ours.remove("");
        assert_same(&ours, &expected);
    }
    Ok(())
}

/// Whatever comes of it, it is an answer: no panic, and nothing beside the root.
fn check_garbage(bytes: &[u8]) -> Result<(), TestCaseError> {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    match lay_down(bytes, &root) {
        Ok(_) => {}
        Err(error) => {
            let kind = error.kind();
            assert!(matches!(kind, ErrorKind::BadArchive | ErrorKind::Unsupported), "{kind:?}: {error}");
        }
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    Ok(())
}

fn good_archive() -> Vec<u8> {
    Tar::default()
        .add(Member::directory("d").mode(0o700))
        .add(Member::file("d/file", vec![7; 3000]).pax("SCHILY.xattr.user.a", "1").pax("mtime", "1.5"))
        .add(Member::hard_link("link", "d/file"))
        .add(Member::symlink("way", "d"))
        .add(Member::file("way/through", "x"))
        .extended(b'L', &[b'l'; 300])
        .add(Member::file("short", "x"))
        .add(Member::file("sparse", "xxxx").pax("GNU.sparse.map", "0,2,9000,2").pax("GNU.sparse.size", "10000"))
        .add(Member::file("d/.wh.file", ""))
        .end()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn root_a_random_tree_comes_out_as_it_went_in(
        things in proptest::collection::vec((planned(), "[a-z]{1,3}", any::<usize>()), 0..40)
    ) {
        check_tree(things)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn root_random_bytes_are_an_error_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        check_garbage(&bytes)?;
    }

    #[test]
    fn root_a_good_archive_with_random_changes_is_an_answer_and_no_panic(
        changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..8),
        seal in any::<bool>(),
        cut in any::<usize>(),
    ) {
        let mut bytes = good_archive();
        let len = bytes.len();
        for (at, value) in changes {
            bytes[at % len] = value;
        }
        if seal {
            // Checksums made right again, so that the change gets past the first door.
            for block in bytes.as_chunks_mut::<{ crate::archive::BLOCK }>().0 {
                if &block[257..262] == b"ustar" {
                    crate::archive::seal(block);
                }
            }
        }
        bytes.truncate(len - cut % 600);
        check_garbage(&bytes)?;
        check_garbage(&gzip(&bytes))?;
    }
}

#[test]
fn root_sparse_files_of_every_format_of_gnu_tar_come_out_whole_and_sparse() {
    if !have(&["tar"]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    let name = format!("{}-sparse", "n".repeat(120));
    let file = File::create(source.join(&name)).unwrap();
    // Many fragments, so that GNU's old format needs blocks behind the header; the end is beyond 8 GiB.
    for i in 0..60u64 {
        file.write_all_at(format!("fragment {i}").as_bytes(), i * 300_000).unwrap();
    }
    file.write_all_at(b"far away", 9 << 30).unwrap();
    file.set_len((9 << 30) + 1_000_000).unwrap();
    std::fs::set_permissions(source.join(&name), PermissionsExt::from_mode(0o640)).unwrap();
    let content = |path: &Path| {
        let file = File::open(path).unwrap();
        let mut seen = Vec::new();
        for at in (0..60u64).map(|i| i * 300_000).chain([9 << 30, (9 << 30) + 999_990]) {
            let mut bytes = [0; 10];
            file.read_exact_at(&mut bytes, at).unwrap();
            seen.push(bytes);
        }
        (file.metadata().unwrap().len(), file.metadata().unwrap().mode(), seen)
    };
    for format in ["--format=gnu", "--sparse-version=0.0", "--sparse-version=0.1", "--sparse-version=1.0"] {
        let archive = dir.path().join("sparse.tar");
        let posix = if format.starts_with("--sparse") { "--format=posix" } else { format };
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        run("tar", &["-C", &text(&source), posix, "--sparse", format, "-cf", &text(&archive), "."]);
        let root = TempDir::new_in(dir.path()).unwrap();
        lay_down_file(&archive, root.path()).unwrap_or_else(|e| panic!("{format}: {e}"));
        let laid = root.path().join(&name);
        assert_eq!(content(&laid), content(&source.join(&name)), "{format}");
        let allocated = laid.metadata().unwrap().blocks() * 512;
        assert!(allocated < 10 << 20, "{format}: {allocated} bytes are allocated");
    }
}

#[test]
fn root_zeros_in_a_large_file_become_holes() {
    let root = TempDir::new().unwrap();
    let mut data = vec![0; 8 << 20];
    data[5_000_000..5_000_100].fill(7);
    data[100..200].fill(8);
    lay_down(&Tar::default().add(Member::file("f", &data)).add(Member::file("z", vec![0; 4 << 20])).end(), root.path())
        .unwrap();
    assert_eq!(std::fs::read(root.path().join("f")).unwrap(), data);
    assert_eq!(root.path().join("f").metadata().unwrap().blocks() * 512, 2 * 65536);
    let zeros = root.path().join("z").metadata().unwrap();
    assert_eq!((zeros.len(), zeros.blocks()), (4 << 20, 0));
}

#[test]
fn root_gnu_tar_and_we_make_the_same_tree_of_its_archives() {
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir_all(source.join("a/b/c")).unwrap();
    std::fs::write(source.join("a/file"), vec![9; 100_000]).unwrap();
    std::fs::hard_link(source.join("a/file"), source.join("a/b/linked")).unwrap();
    std::os::unix::fs::symlink("../a", source.join("a/b/up")).unwrap();
    std::fs::write(source.join("a/b").join("n".repeat(255)), "long").unwrap();
    let deep = source.join("d".repeat(200)).join("e".repeat(200));
    std::fs::create_dir_all(&deep).unwrap();
    std::os::unix::fs::symlink("t".repeat(300), deep.join("s")).unwrap();
    std::os::unix::fs::chown(source.join("a/file"), Some(3_000_000), Some(7)).unwrap();
    std::fs::set_permissions(source.join("a/file"), PermissionsExt::from_mode(0o2755)).unwrap();
    xattr::set(source.join("a"), "user.binary", b"=\n\0\xff").unwrap();
    run("mknod", &[source.join("disk").to_str().unwrap(), "b", "259", "70000"]);
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    for format in ["gnu", "posix"] {
        let archive = dir.path().join("it.tar");
        let format = format!("--format={format}");
        let xattrs = if format.ends_with("posix") { "--xattrs" } else { "--no-xattrs" };
        run("tar", &["-C", &text(&source), &format, xattrs, "-cf", &text(&archive), "."]);
        let (ours, theirs) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        run("tar", &["-C", &text(theirs.path()), xattrs, "--xattrs-include=*", "-xpf", &text(&archive)]);
        lay_down_file(&archive, ours.path()).unwrap();
        assert_same(&read_tree(ours.path(), Times::Compared), &read_tree(theirs.path(), Times::Compared));
    }
}
