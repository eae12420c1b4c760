//! The golden pools: metadata written by the kernel and by thin_restore, and what each of them holds.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// One golden pool.
pub(crate) struct Golden {
    /// For instance `03-thin-snapshot-broken-sharing`.
    pub(crate) name: String,
    /// The metadata device.
    pub(crate) image: Vec<u8>,
    /// What it holds.
    pub(crate) facts: Value,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The golden pool whose name begins with `number`.
pub(crate) fn golden(number: &str) -> Golden {
    load(names().into_iter().find(|name| name.starts_with(number)).expect("a golden pool of that number"))
}

/// Every golden pool, by name.
pub(crate) fn all() -> Vec<Golden> {
    names().into_iter().map(load).collect()
}

fn names() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder())
        .unwrap()
        .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".json")?.to_owned()))
        .collect();
    names.sort();
    assert_eq!(names.len(), 10, "ten golden pools");
    names
}

fn load(name: String) -> Golden {
    let packed = fs::File::open(folder().join(format!("{name}.img.xz"))).unwrap();
    let mut image = Vec::new();
    xz2::read::XzDecoder::new(packed).read_to_end(&mut image).unwrap();
    let facts = serde_json::from_slice(&fs::read(folder().join(format!("{name}.json"))).unwrap()).unwrap();
    Golden { name, image, facts }
}
