//! Making and opening pools on files: what is refused is named, and not a byte of it is changed.

mod support {
    pub mod direct_exporter;
    #[expect(dead_code, reason = "the tests of the metadata use the rest")]
    pub mod judges;
}

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use support::direct_exporter::DirectExporter;
use support::judges::assert_thin_check_accepts;
use thinsnap_pool::{
    Access, BlockSize, ByteCount, CreateOptions, DeviceId, EmbeddedPool, Error, ErrorKind, PoolPaths, ThinPool,
};

const DATA_SIZE: u64 = 16 << 20;

fn options(dir: &Path) -> CreateOptions {
    CreateOptions {
        paths: PoolPaths::in_dir(dir),
        data_size: Some(ByteCount(DATA_SIZE)),
        metadata_size: Some(ByteCount(2 << 20)),
        block_size: BlockSize::DEFAULT,
    }
}

fn open(dir: &Path) -> Result<Arc<EmbeddedPool>, Error> {
    thinsnap_pool::open_embedded(
        &PoolPaths::in_dir(dir),
        DirectExporter::new(),
        &thinsnap_pool::EmbeddedOptions::default(),
    )
}

/// A pool with a device in it, closed.
fn pool_with_a_device() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    thinsnap_pool::create(&options(dir.path())).unwrap();
    let exporter = DirectExporter::new();
    let pool = thinsnap_pool::open_embedded(
        &PoolPaths::in_dir(dir.path()),
        Arc::clone(&exporter) as _,
        &thinsnap_pool::EmbeddedOptions::default(),
    )
    .unwrap();
    let id = DeviceId::new(1).unwrap();
    pool.create_thin(id).unwrap();
    pool.activate(id, ByteCount(8 << 20), Access::ReadWrite).unwrap();
    exporter.open(id).write_at(&[7; 300_000], 0).unwrap();
    pool.close().unwrap();
    dir
}

fn content(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

fn change(path: &Path, offset: u64, with: impl FnOnce(&mut [u8])) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut block = [0; 4096];
    file.read_exact_at(&mut block, offset).unwrap();
    with(&mut block);
    file.write_all_at(&block, offset).unwrap();
}

/// Writes the checksum that a superblock with these bytes must have, so that the field itself is judged.
fn reseal(block: &mut [u8]) {
    let sum = !crc32c::crc32c(&block[4..]) ^ 160_774;
    block[..4].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn a_new_pool_is_sparse_private_and_to_the_judges_taste() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("a/b");
    thinsnap_pool::create(&options(&inner)).unwrap();
    let metadata = std::fs::read(inner.join("metadata")).unwrap();
    assert_thin_check_accepts(&metadata, "a new pool");
    let mode = std::os::unix::fs::MetadataExt::mode;
    assert_eq!(mode(&std::fs::metadata(inner.join("metadata")).unwrap()) & 0o777, 0o600);
    assert_eq!(mode(&std::fs::metadata(inner.join("data")).unwrap()) & 0o777, 0o600);
    assert_eq!(mode(&std::fs::metadata(&inner).unwrap()) & 0o777, 0o700);
    assert_eq!(std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(inner.join("data")).unwrap()), 0);
    assert_eq!(open(&inner).unwrap().status().unwrap().data.total, ByteCount(DATA_SIZE));
}

#[test]
fn the_default_metadata_grows_with_the_data_within_its_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let size = |data: u64| {
        let inner = dir.path().join(data.to_string());
        let data_size = Some(ByteCount(data));
        thinsnap_pool::create(&CreateOptions { data_size, metadata_size: None, ..options(&inner) }).unwrap();
        open(&inner).unwrap().status().unwrap().metadata.total.0
    };
    assert_eq!(size(1 << 20), 64 << 20);
    assert_eq!(size(100 << 30), 48 * (100 << 30) / 65_536 / 4096 * 4096);
}

#[test]
fn a_pool_is_not_made_over_another_one_or_over_anything_else() {
    let dir = pool_with_a_device();
    let before = content(dir.path());
    let error = thinsnap_pool::create(&options(dir.path())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(error.to_string().contains("holds a pool already"), "{error}");
    assert!(content(dir.path()) == before);

    for name in ["metadata", "data"] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(name), vec![b'x'; 8192]).unwrap();
        let before = content(dir.path());
        let error = thinsnap_pool::create(&options(dir.path())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
        assert!(content(dir.path()) == before, "a foreign {name} was changed, or something was left beside it");
    }
}

#[test]
fn empty_files_that_exist_become_a_pool() {
    let dir = tempfile::tempdir().unwrap();
    for (name, size) in [("metadata", 4 << 20), ("data", 32 << 20)] {
        std::fs::File::create(dir.path().join(name)).unwrap().set_len(size).unwrap();
    }
    thinsnap_pool::create(&CreateOptions { data_size: None, ..options(dir.path()) }).unwrap();
    assert_eq!(open(dir.path()).unwrap().status().unwrap().data.total, ByteCount(32 << 20));
}

#[test]
fn a_failed_creation_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("pool");
    let wrong = [
        CreateOptions { data_size: Some(ByteCount(4096)), ..options(&inner) },
        CreateOptions { metadata_size: Some(ByteCount(4096)), ..options(&inner) },
        CreateOptions { data_size: None, ..options(&inner) },
    ];
    for options in wrong {
        let error = thinsnap_pool::create(&options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(!inner.exists(), "{error}");
    }
}

#[test]
fn a_pool_is_open_once() {
    let dir = pool_with_a_device();
    let first = open(dir.path()).unwrap();
    let error = open(dir.path()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InUse);
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    assert_eq!(thinsnap_pool::create(&options(dir.path())).unwrap_err().kind(), ErrorKind::InUse);
    drop(first);
    open(dir.path()).unwrap();
}

#[test]
fn opening_and_closing_changes_nothing() {
    let dir = pool_with_a_device();
    let before = content(dir.path());
    let pool = open(dir.path()).unwrap();
    pool.usage(DeviceId::new(1).unwrap()).unwrap();
    pool.close().unwrap();
    assert!(content(dir.path()) == before);
}

/// What is done to a pool, and how its opening must be refused.
type Damage = (&'static str, fn(&Path), ErrorKind, &'static str);

const DAMAGES: &[Damage] = &[
    ("no pool at all", |dir| std::fs::remove_file(dir.join("metadata")).unwrap(), ErrorKind::NotFound, "metadata"),
    ("no data", |dir| std::fs::remove_file(dir.join("data")).unwrap(), ErrorKind::NotFound, "data"),
    (
        "a flipped bit in the superblock",
        |dir| change(&dir.join("metadata"), 0, |block| block[100] ^= 1),
        ErrorKind::Corrupt,
        "block 0",
    ),
    (
        "another magic",
        |dir| {
            change(&dir.join("metadata"), 0, |block| {
                block[32] ^= 1;
                reseal(block);
            });
        },
        ErrorKind::Corrupt,
        "block 0",
    ),
    (
        "needs_check",
        |dir| {
            change(&dir.join("metadata"), 0, |block| {
                block[4] |= 1;
                reseal(block);
            });
        },
        ErrorKind::NeedsCheck,
        "",
    ),
    (
        "an unknown incompat flag",
        |dir| {
            change(&dir.join("metadata"), 0, |block| {
                block[360] |= 4;
                reseal(block);
            });
        },
        ErrorKind::Unsupported,
        "",
    ),
    (
        "an unknown compat_ro flag",
        |dir| {
            change(&dir.join("metadata"), 0, |block| {
                block[356] |= 1;
                reseal(block);
            });
        },
        ErrorKind::Unsupported,
        "",
    ),
    (
        "a block that is all zero",
        |dir| change(&dir.join("metadata"), 0, |block| block.fill(0)),
        ErrorKind::NotFound,
        "",
    ),
    (
        "metadata cut short",
        |dir| std::fs::File::options().write(true).open(dir.join("metadata")).unwrap().set_len(1 << 20).unwrap(),
        ErrorKind::Corrupt,
        "room for 256",
    ),
    (
        "metadata cut short to a piece of block 0",
        |dir| std::fs::File::options().write(true).open(dir.join("metadata")).unwrap().set_len(512).unwrap(),
        ErrorKind::NotFound,
        "smaller than a superblock",
    ),
    (
        "data cut short",
        |dir| std::fs::File::options().write(true).open(dir.join("data")).unwrap().set_len(8 << 20).unwrap(),
        ErrorKind::Corrupt,
        "8388608",
    ),
    (
        "a foreign file as metadata",
        |dir| std::fs::write(dir.join("metadata"), b"ELF".repeat(700_000)).unwrap(),
        ErrorKind::Corrupt,
        "block 0",
    ),
    (
        "a symbolic link to the data",
        |dir| {
            std::fs::rename(dir.join("data"), dir.join("elsewhere")).unwrap();
            std::os::unix::fs::symlink("elsewhere", dir.join("data")).unwrap();
        },
        ErrorKind::Invalid,
        "symbolic link",
    ),
];

#[test]
fn a_damaged_pool_is_refused_by_name_and_left_as_it_is() {
    let mut wrong = Vec::new();
    for (what, damage, kind, words) in DAMAGES {
        let dir = pool_with_a_device();
        damage(dir.path());
        let before = content(dir.path());
        match open(dir.path()) {
            Ok(_) => wrong.push(format!("{what}: opened")),
            Err(e) if e.kind() != *kind || !e.to_string().contains(words) => {
                wrong.push(format!("{what}: {:?} instead of {kind:?} with {words:?}: {e}", e.kind()));
            }
            Err(e) => assert!(!e.kind().advice().is_empty()),
        }
        if content(dir.path()) != before {
            wrong.push(format!("{what}: something was written"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_damaged_tree_node_is_named_when_it_is_met() {
    let dir = pool_with_a_device();
    // Every block but the superblock: whichever is read, its number is told and nothing is written.
    let mut met = 0;
    for number in 1..40_u64 {
        let path = dir.path().join("metadata");
        let good = std::fs::read(&path).unwrap();
        change(&path, number * 4096, |block| block[2000] ^= 0x10);
        let before = content(dir.path());
        let usage = open(dir.path()).and_then(|pool| pool.usage(DeviceId::new(1).unwrap()));
        if let Err(e) = usage {
            assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
            assert!(e.to_string().contains(&format!("block {number}")), "block {number}: {e}");
            met += 1;
        }
        assert!(content(dir.path()) == before);
        std::fs::write(&path, good).unwrap();
    }
    assert!(met >= 6, "only {met} blocks of the pool were read at all");
}

/// Pools on disks need loop devices, hence root.
#[test]
fn root_a_pool_on_two_disks_works_and_is_locked() {
    let dir = tempfile::tempdir().unwrap();
    let (Some(metadata), Some(data)) =
        (LoopDisk::new(dir.path(), "m", 8 << 20), LoopDisk::new(dir.path(), "d", 32 << 20))
    else {
        println!("SKIPPED: no loop device can be had (not root, or the module is missing)");
        return;
    };
    let paths = PoolPaths { metadata: metadata.path.clone(), data: data.path.clone() };
    let create =
        CreateOptions { paths: paths.clone(), data_size: None, metadata_size: None, block_size: BlockSize::DEFAULT };
    thinsnap_pool::create(&create).unwrap();
    assert_eq!(thinsnap_pool::create(&create).unwrap_err().kind(), ErrorKind::AlreadyExists);
    let exporter = DirectExporter::new();
    let pool =
        thinsnap_pool::open_embedded(&paths, Arc::clone(&exporter) as _, &thinsnap_pool::EmbeddedOptions::default())
            .unwrap();
    assert_eq!(pool.status().unwrap().data.total, ByteCount(32 << 20));
    assert_eq!(pool.status().unwrap().metadata.total, ByteCount(8 << 20));
    let second =
        thinsnap_pool::open_embedded(&paths, DirectExporter::new(), &thinsnap_pool::EmbeddedOptions::default())
            .err()
            .unwrap();
    assert_eq!(second.kind(), ErrorKind::InUse, "{second}");

    let id = DeviceId::new(1).unwrap();
    for round in 1..=2 {
        pool.create_thin(id).unwrap();
        pool.activate(id, ByteCount(64 << 20), Access::ReadWrite).unwrap();
        let volume = exporter.open(id);
        // The second round gets the blocks of the first.
        for block in 0..400_u64 {
            volume.write_at(&[round; 512], block * 65_536 + 1024).unwrap();
        }
        let mut all = vec![0; 400 * 65_536];
        volume.read_at(&mut all, 0).unwrap();
        for block in all.chunks_exact(65_536) {
            assert!(block[1024..1536].iter().all(|&byte| byte == round));
            assert!(block[..1024].iter().chain(&block[1536..]).all(|&byte| byte == 0), "old bytes on a disk");
        }
        drop(volume);
        pool.delete(id).unwrap();
    }
    pool.close().unwrap();
    drop(pool);
    assert_thin_check_accepts(&std::fs::read(&metadata.path).unwrap(), "on a disk");
}

/// A loop device on a file, detached when dropped.
struct LoopDisk {
    path: PathBuf,
}

impl LoopDisk {
    fn new(dir: &Path, name: &str, size: u64) -> Option<Self> {
        let file = dir.join(name);
        std::fs::File::create(&file).unwrap().set_len(size).unwrap();
        let output = std::process::Command::new("losetup").args(["--find", "--show"]).arg(&file).output().ok()?;
        let path = String::from_utf8(output.stdout).unwrap();
        output.status.success().then(|| Self { path: PathBuf::from(path.trim_end()) })
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        std::process::Command::new("losetup").arg("--detach").arg(&self.path).status().unwrap();
    }
}
