//! Records of a pax extended header: `LENGTH KEY=VALUE\n`, framed by length because values are binary.

use std::collections::BTreeMap;

use crate::config::Limits;
use crate::image::tar::header::Field;
use crate::image::tar::sparse::{Fragment, decimal, from_numbers, too_many};

/// What a pax header says about the member behind it. An absent or empty value leaves the block's own.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Option<PaxSparse>,
}

/// The `GNU.sparse.` records.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PaxSparse {
    /// 1.0: the map stands before the content.
    pub(super) map_in_content: bool,
    /// The file's own name; the path of the block is made up.
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// 0.0 and 0.1: the map.
    pub(super) map: Vec<Fragment>,
}

/// Splits a header into its records: key and value, in order.
fn records(mut data: &[u8]) -> Field<Vec<(&[u8], &[u8])>> {
    let mut found = Vec::new();
    while !data.is_empty() {
        let blank = data.iter().take(20).position(|b| *b == b' ').ok_or("a pax record without a length")?;
        let len = decimal(&data[..blank]).map_err(|reason| format!("the length of a pax record: {reason}"))?;
        let len = usize::try_from(len).ok().filter(|len| (blank + 2..=data.len()).contains(len));
        let len = len.ok_or("the length of a pax record does not fit its header")?;
        let (record, rest) = data.split_at(len);
        let record = record[blank + 1..].strip_suffix(b"\n").ok_or("a pax record does not end where it says")?;
        let equals = record.iter().position(|b| *b == b'=').ok_or("a pax record without a key")?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if key.is_empty() || key.contains(&0) {
            return Err("a pax record whose key is empty or holds a NUL".to_owned());
        }
        found.push((key, value));
        data = rest;
    }
    Ok(found)
}

/// Reads the header of one member.
pub(super) fn parse(data: &[u8], limits: &Limits) -> Field<Pax> {
    let mut pax = Pax::default();
    let mut sparse = PaxSparse::default();
    let (mut is_sparse, mut major_minor) = (false, (None, None));
    // 0.0 tells its map as a sequence of records whose order is their meaning.
    let mut numbers: Vec<u64> = Vec::new();
    let mut xattrs: BTreeMap<&[u8], &[u8]> = BTreeMap::new();
    for (key, value) in records(data)? {
        let wrong = |reason: String| format!("pax record {}: {reason}", String::from_utf8_lossy(key));
        // A later record of the same key replaces an earlier one (POSIX); an empty value takes it away.
        match key {
            b"path" => pax.path = name(value).map_err(wrong)?,
            b"linkpath" => pax.link = name(value).map_err(wrong)?,
            b"size" => pax.size = optional(value).map_err(wrong)?,
            b"uid" => pax.uid = optional(value).map_err(wrong)?,
            b"gid" => pax.gid = optional(value).map_err(wrong)?,
            b"mtime" => pax.mtime = if value.is_empty() { None } else { Some(time(value).map_err(wrong)?) },
            b"GNU.sparse.major" => major_minor.0 = optional(value).map_err(wrong)?,
            b"GNU.sparse.minor" => major_minor.1 = optional(value).map_err(wrong)?,
            b"GNU.sparse.name" => sparse.name = name(value).map_err(wrong)?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                sparse.real_size = optional(value).map_err(wrong)?;
                is_sparse = true;
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                if (key == b"GNU.sparse.offset") != numbers.len().is_multiple_of(2) {
                    return Err(wrong("out of turn".to_owned()));
                }
                numbers.push(decimal(value).map_err(wrong)?);
            }
            b"GNU.sparse.map" => {
                let list = value.split(|b| *b == b',').filter(|text| !text.is_empty()).map(decimal);
                numbers = list.collect::<Field<_>>().map_err(wrong)?;
            }
            _ => {
                if let Some(attribute) = key.strip_prefix(b"SCHILY.xattr.") {
                    if attribute.is_empty() || attribute.len() > XATTR_NAME_MAX {
                        return Err(wrong("the extended attribute has no name, or too long a one".to_owned()));
                    }
                    if value.len() > limits.xattr_bytes {
                        let reason = format!("the extended attribute is too large: {} bytes", value.len());
                        return Err(wrong(Limits::over("xattr_bytes", reason)));
                    }
                    xattrs.insert(attribute, value);
                    if xattrs.len() > limits.xattrs {
                        let reason = format!("more than {} extended attributes", limits.xattrs);
                        return Err(Limits::over("xattrs", reason));
                    }
                }
                // What is left (comment, atime, uname, vendors' own) does not change what is unpacked.
            }
        }
        if numbers.len() / 2 > limits.sparse_fragments {
            return Err(too_many(limits));
        }
    }
    sparse.map_in_content = match major_minor {
        (None | Some(0), _) => false,
        (Some(1), None | Some(0)) => true,
        (Some(major), minor) => {
            return Err(format!("sparse format {major}.{} is unknown", minor.unwrap_or_default()));
        }
    };
    is_sparse |= sparse.map_in_content || !numbers.is_empty();
    if is_sparse {
        sparse.map = from_numbers(&numbers)?;
        pax.sparse = Some(sparse);
    }
    pax.xattrs = xattrs.into_iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
    Ok(pax)
}

/// Refuses a global header that would change what is unpacked: GNU tar obeys such records and container runtimes pass over
/// them, so that two programs would see two trees.
pub(super) fn check_global(data: &[u8]) -> Field<()> {
    for (key, _) in records(data)? {
        let changes = matches!(key, b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"mtime" | b"hdrcharset")
            || key.starts_with(b"SCHILY.xattr.")
            || key.starts_with(b"GNU.sparse.");
        if changes {
            let key = String::from_utf8_lossy(key);
            return Err(format!("a global pax header sets {key} for all members, which programs read differently"));
        }
    }
    Ok(())
}

/// The kernel's `XATTR_NAME_MAX`.
const XATTR_NAME_MAX: usize = 255;

fn name(value: &[u8]) -> Field<Option<Vec<u8>>> {
    if value.contains(&0) {
        return Err("a NUL in a name".to_owned());
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

fn optional(value: &[u8]) -> Field<Option<u64>> {
    if value.is_empty() { Ok(None) } else { decimal(value).map(Some) }
}

/// Seconds with a fraction, which may be negative: `-1.5` is half a second before -1. Digits behind the ninth are cut.
fn time(value: &[u8]) -> Field<(i64, u32)> {
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    let dot = digits.iter().position(|b| *b == b'.').unwrap_or(digits.len());
    let seconds = i64::try_from(decimal(&digits[..dot])?).map_err(|_| "a time out of range".to_owned())?;
    let fraction = digits.get(dot + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(format!("{:?} is not a time", String::from_utf8_lossy(&value[..value.len().min(40)])));
    }
    let digit = |place: usize| fraction.get(place).map_or(0, |b| u32::from(b - b'0'));
    let nanoseconds = (0..9).fold(0, |sum, place| sum * 10 + digit(place));
    Ok(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}
