//! A whole archive of images: OCI layout or `docker save`, its documents linked by right digests.

use std::io::Write;

use sha2::{Digest, Sha256};
use thinsnap::image::{ImportRequest, Platform, inspect};

use crate::archive_layer::limits;
use crate::scratch::{file_of, scratch};

/// Looks into an archive of images. Parts stand between bytes 0xff; a part's first byte says what it is: `b` a blob,
/// `i` index.json, `v` oci-layout, `m` manifest.json, `f` a file, its name up to a NUL. In a part, `@3` stands for
/// the digest of the third part and `#3` for its length, so that a fuzzer need not guess digests. An archive
/// without parts is taken as it is.
pub fn archive_layout(bytes: &[u8]) {
    let archive = if bytes.contains(&0xff) { tar_of(bytes) } else { bytes.to_vec() };
    let (_file, source) = file_of(&archive);
    let work = scratch();
    let request = ImportRequest {
        source,
        name: None,
        reference: None,
        platform: Some(Platform { os: "linux".to_owned(), architecture: "amd64".to_owned(), variant: None }),
        limits: limits(),
    };
    match inspect(&request, work.path()) {
        Ok(image) => assert!(!image.layers.is_empty()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    let left = std::fs::read_dir(work.path()).expect("a scratch directory").count();
    assert_eq!(left, 0, "a temporary file is left");
}

fn tar_of(bytes: &[u8]) -> Vec<u8> {
    let mut parts: Vec<(String, usize)> = Vec::new();
    let mut tar = Vec::new();
    for part in bytes.split(|byte| *byte == 0xff).take(64) {
        let (kind, content) = part.split_first().map_or((b'b', part), |(kind, content)| (*kind, content));
        let (name, content) = match (kind, content.iter().position(|byte| *byte == 0)) {
            (b'f', Some(end)) => (Some(content[..end].to_vec()), &content[end + 1..]),
            _ => (None, content),
        };
        let content = link(content, &parts);
        let hex: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
        let name = match (kind, name) {
            (_, Some(name)) => name,
            (b'i', None) => b"index.json".to_vec(),
            (b'v', None) => b"oci-layout".to_vec(),
            (b'm', None) => b"manifest.json".to_vec(),
            (_, None) => format!("blobs/sha256/{hex}").into_bytes(),
        };
        parts.push((format!("sha256:{hex}"), content.len()));
        add(&mut tar, &name, &content);
    }
    tar.extend_from_slice(&[0; 1024]);
    tar
}

/// Puts digests and lengths in the place of `@3` and `#3`.
fn link(content: &[u8], parts: &[(String, usize)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len());
    let mut rest = content.iter();
    while let Some(&byte) = rest.next() {
        let part = rest.as_slice().first().and_then(|digit| parts.get(usize::from(digit.wrapping_sub(b'0'))));
        match (byte, part) {
            (b'@', Some((digest, _))) => out.extend_from_slice(digest.as_bytes()),
            (b'#', Some((_, len))) => out.extend_from_slice(len.to_string().as_bytes()),
            _ => {
                out.push(byte);
                continue;
            }
        }
        rest.next();
    }
    out
}

fn add(tar: &mut Vec<u8>, name: &[u8], content: &[u8]) {
    let mut block = [0; 512];
    let len = name.len().min(100);
    block[..len].copy_from_slice(&name[..len]);
    block[100..108].copy_from_slice(b"0000644\0");
    write!(&mut block[124..136], "{:011o}", content.len()).expect("eleven digits fit");
    block[156] = b'0';
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.extend_from_slice(&block);
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(512), 0);
}
