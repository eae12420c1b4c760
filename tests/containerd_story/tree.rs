//! A file tree in words, so that two trees can be compared and their differences read.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use sha2::{Digest, Sha256};
use walkdir::WalkDir;

/// Every entry of a tree by its path, with all that an image says about it. Times of files only: a
/// directory's is that of the last entry unpacked into it.
pub(crate) fn described(root: &Path) -> BTreeMap<String, String> {
    let mut first_names = HashMap::new();
    let mut tree = BTreeMap::new();
    for entry in WalkDir::new(root).sort_by_file_name() {
        let entry = entry.expect("the tree can be walked");
        let path = entry.path();
        let name = path.strip_prefix(root).expect("a walk stays below its root").display().to_string();
        let meta = entry.metadata().expect("an entry of the tree can be looked at");
        let kind = meta.file_type();
        let what = if kind.is_dir() {
            "directory".to_owned()
        } else if kind.is_symlink() {
            format!("link to {}", fs::read_link(path).expect("a link can be read").display())
        } else if kind.is_file() {
            let first = first_names.entry(meta.ino()).or_insert_with(|| name.clone());
            let bytes = fs::read(path).expect("a file can be read");
            let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            format!("file of {}, {} bytes {hash}, at {}, {} links", first, bytes.len(), meta.mtime(), meta.nlink())
        } else if kind.is_fifo() {
            "fifo".to_owned()
        } else {
            format!("device {:#x}", meta.rdev())
        };
        let attributes: Vec<String> = xattr::list(path)
            .expect("attributes can be listed")
            .map(|key| {
                let value = xattr::get(path, &key).expect("an attribute can be read").unwrap_or_default();
                format!("{}={}", key.to_string_lossy(), String::from_utf8_lossy(&value).escape_debug())
            })
            .collect();
        let line = format!("{:o} {}:{} {what} {}", meta.mode(), meta.uid(), meta.gid(), attributes.join(" "));
        tree.insert(name, line);
    }
    tree
}

/// Panics with the entries that differ.
pub(crate) fn assert_same(what: &str, found: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) {
    let mut differences = Vec::new();
    for (name, line) in wanted {
        if found.get(name) != Some(line) {
            differences.push(format!("{name:?}: wanted {line:?}, found {:?}", found.get(name)));
        }
    }
    differences.extend(found.keys().filter(|name| !wanted.contains_key(*name)).map(|name| format!("{name:?}: extra")));
    assert!(differences.is_empty(), "{what}:\n{}", differences.join("\n"));
}
