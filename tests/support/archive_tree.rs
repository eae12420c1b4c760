//! Reads a directory tree into a value that can be compared: everything that an image says about it.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// A file of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// `f`, `d`, `l`, `c`, `b`, `p` or `s`.
    pub(crate) kind: char,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    /// Seconds and nanoseconds; 0 where the comparison leaves it out.
    pub(crate) mtime: (i64, i64),
    /// Content of a file, its digest if it is long; target of a symlink; number of a device.
    pub(crate) content: Vec<u8>,
    /// The first path of the same inode, if there are several, and how many there are.
    pub(crate) links: Option<(String, u64)>,
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
}

/// A tree by path; the root is the empty one.
pub(crate) type Tree = BTreeMap<String, Node>;

/// Whether times are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Times {
    Compared,
    /// Directories' times are left out: programs differ on directories that a layer changes without naming them.
    OfFiles,
}

/// Reads the tree at `root`.
pub(crate) fn read_tree(root: &Path, times: Times) -> Tree {
    let mut tree = Tree::new();
    let mut first_of_inode = BTreeMap::new();
    for entry in walkdir::WalkDir::new(root).sort_by_file_name() {
        let entry = entry.unwrap();
        let path = entry.path();
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().escape_ascii().to_string();
        let metadata = path.symlink_metadata().unwrap();
        let file_type = metadata.file_type();
        let (kind, content) = if file_type.is_file() {
            ('f', content_of(path))
        } else if file_type.is_dir() {
            ('d', Vec::new())
        } else if file_type.is_symlink() {
            ('l', std::fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec())
        } else if file_type.is_char_device() {
            ('c', metadata.rdev().to_string().into_bytes())
        } else if file_type.is_block_device() {
            ('b', metadata.rdev().to_string().into_bytes())
        } else if file_type.is_fifo() {
            ('p', Vec::new())
        } else {
            ('s', Vec::new())
        };
        let links = (kind != 'd' && metadata.nlink() > 1).then(|| {
            let first = first_of_inode.entry(metadata.ino()).or_insert_with(|| name.clone());
            (first.clone(), metadata.nlink())
        });
        let mtime = match (times, kind) {
            (Times::OfFiles, 'd') => (0, 0),
            _ => (metadata.mtime(), metadata.mtime_nsec()),
        };
        let xattrs = xattr::list(path).unwrap().map(|key| {
            let value = xattr::get(path, &key).unwrap().unwrap_or_default();
            (key.to_string_lossy().into_owned(), value)
        });
        let node = Node {
            kind,
            mode: metadata.mode() & 0o7777,
            owner: (metadata.uid(), metadata.gid()),
            mtime,
            content,
            links,
            xattrs: xattrs.collect(),
        };
        tree.insert(name, node);
    }
    tree
}

/// Panics with the differences, a line each, if the trees differ.
pub(crate) fn assert_same(ours: &Tree, theirs: &Tree) {
    let paths: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    let mut differences = Vec::new();
    for path in paths {
        match (ours.get(path), theirs.get(path)) {
            (Some(a), Some(b)) if a == b => {}
            (Some(a), Some(b)) => differences.push(format!("{path}:\n   ours   {a:?}\n   theirs {b:?}")),
            (Some(a), None) => differences.push(format!("{path}: only ours: {a:?}")),
            (None, b) => differences.push(format!("{path}: only theirs: {b:?}")),
        }
    }
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

fn content_of(path: &Path) -> Vec<u8> {
    shown_content(&std::fs::read(path).unwrap())
}

/// Content as it is compared: short ones as they are, long ones as length and digest.
pub(crate) fn shown_content(bytes: &[u8]) -> Vec<u8> {
    const SHOWN_MAX: usize = 256;
    if bytes.len() <= SHOWN_MAX {
        return bytes.to_vec();
    }
    use sha2::Digest;
    let digest = sha2::Sha256::digest(bytes);
    format!("{} bytes, {}", bytes.len(), digest.iter().map(|b| format!("{b:02x}")).collect::<String>()).into_bytes()
}
