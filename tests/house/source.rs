//! Reads the project's own Rust files, with a copy of each in which comments and literals are blanked out.

use std::fs;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

/// One `.rs` file of the project.
pub(crate) struct SourceFile {
    /// Path from the top of the project.
    pub(crate) path: PathBuf,
    /// The text as it is.
    pub(crate) text: String,
    /// The text with comments turned to spaces and literals to quote marks; lines and columns are kept.
    pub(crate) code: String,
}

impl SourceFile {
    /// Line number of a byte offset of `code`, from 1, and that line as it is in the file.
    pub(crate) fn line_at(&self, offset: usize) -> (usize, &str) {
        let line = self.code[..offset].matches('\n').count();
        (line + 1, self.text.lines().nth(line).unwrap_or_default().trim())
    }
}

/// The top of the project.
pub(crate) fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below `dir` (from the top) with this extension, sorted; build output and hidden ones left out.
pub(crate) fn paths(dir: &str, extension: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = WalkDir::new(top().join(dir))
        .into_iter()
        .filter_entry(|e| {
            let name = e.file_name().to_string_lossy();
            e.depth() == 0 || !(name.starts_with('.') || (e.file_type().is_dir() && name == "target"))
        })
        .filter_map(std::result::Result::ok)
        .filter(|e| e.file_type().is_file() && e.path().extension().is_some_and(|x| x == extension))
        .map(|e| e.path().strip_prefix(top()).unwrap().to_owned())
        .collect();
    found.sort();
    found
}

/// All Rust files below `dir` (from the top).
pub(crate) fn rust_files(dir: &str) -> Vec<SourceFile> {
    paths(dir, "rs")
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(top().join(&path)).unwrap();
            let code = blank_out(&text);
            SourceFile { path, text, code }
        })
        .collect()
}

/// Offsets in `code` at which `word` stands alone (not inside a longer identifier).
pub(crate) fn find_word(code: &str, word: &str) -> Vec<usize> {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(|&at| !part(code[..at].chars().next_back()) && !part(code[at + word.len()..].chars().next()))
        .collect()
}

/// Comments to spaces, literals to quote marks, byte for byte.
fn blank_out(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let (end, fill) = match bytes[at] {
            b'/' if bytes.get(at + 1) == Some(&b'/') => (line_end(bytes, at), b' '),
            b'/' if bytes.get(at + 1) == Some(&b'*') => (block_comment_end(bytes, at), b' '),
            b'"' => (string_end(bytes, at), b'"'),
            b'r' if !continues_word(bytes, at) => match raw_string_end(bytes, at) {
                Some(end) => (end, b'"'),
                None => (at + 1, bytes[at]),
            },
            b'\'' => match char_end(bytes, at) {
                Some(end) => (end, b'"'),
                None => (at + 1, b'\''),
            },
            other => (at + 1, other),
        };
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = fill;
            }
        }
        at = end;
    }
    String::from_utf8(out).unwrap()
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|&b| b == b'\n').map_or(bytes.len(), |n| at + n)
}

fn block_comment_end(bytes: &[u8], start: usize) -> usize {
    let mut depth = 0_usize;
    let mut at = start;
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    at
}

fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// True if the byte at `at` goes on an identifier; the `b` and `c` of `br"` and `cr"` do not.
fn continues_word(bytes: &[u8], at: usize) -> bool {
    let word = |i: usize| bytes[i].is_ascii_alphanumeric() || bytes[i] == b'_';
    match at.checked_sub(1) {
        None => false,
        Some(before) if matches!(bytes[before], b'b' | b'c') => before.checked_sub(1).is_some_and(word),
        Some(before) => word(before),
    }
}

fn raw_string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let hashes = bytes[start + 1..].iter().take_while(|&&b| b == b'#').count();
    let open = start + 1 + hashes;
    if bytes.get(open) != Some(&b'"') {
        return None;
    }
    let mut close = vec![b'"'];
    close.resize(1 + hashes, b'#');
    bytes[open + 1..].windows(close.len()).position(|w| w == close).map(|n| open + 1 + n + close.len())
}

/// The end of a character literal; `None` if this quote mark begins a lifetime.
fn char_end(bytes: &[u8], start: usize) -> Option<usize> {
    match bytes.get(start + 1)? {
        b'\\' => bytes[start + 3..].iter().position(|&b| b == b'\'').map(|n| start + 3 + n + 1),
        first => {
            let width = match first {
                0..=0x7f => 1,
                0x80..=0xdf => 2,
                0xe0..=0xef => 3,
                0xf0..=0xff => 4,
            };
            (bytes.get(start + 1 + width) == Some(&b'\'')).then_some(start + 2 + width)
        }
    }
}
