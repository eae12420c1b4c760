//! Maps of sparse files: GNU's old format and its three pax formats (0.0, 0.1, 1.0).

use crate::config::Limits;
use crate::image::tar::header::{Field, unsigned};

/// A run of content in a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct Fragment {
    /// Where it goes in the file.
    pub(in crate::image) offset: u64,
    /// Bytes.
    pub(in crate::image) len: u64,
}

/// What is said about a file of too many fragments.
pub(super) fn too_many(limits: &Limits) -> String {
    Limits::over("sparse_fragments", format_args!("more than {} fragments in a sparse file", limits.sparse_fragments))
}

/// Appends the fragments of an old GNU block: pairs of 12-byte numbers. An empty one ends the list.
pub(super) fn push_old(fields: &[u8], map: &mut Vec<Fragment>) -> Field<()> {
    for pair in fields.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        map.push(Fragment { offset: unsigned(&pair[..12])?, len: unsigned(&pair[12..])? });
    }
    Ok(())
}

/// The fragments in a list of decimal numbers, offset and length by turns.
pub(super) fn from_numbers(numbers: &[u64]) -> Field<Vec<Fragment>> {
    if !numbers.len().is_multiple_of(2) {
        return Err("its sparse map has an offset without a length".to_owned());
    }
    Ok(numbers.chunks_exact(2).map(|pair| Fragment { offset: pair[0], len: pair[1] }).collect())
}

/// A decimal number without sign or blanks.
pub(super) fn decimal(text: &[u8]) -> Field<u64> {
    let good = !text.is_empty() && text.len() <= 19 && text.iter().all(u8::is_ascii_digit);
    let parsed = if good { std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()) } else { None };
    parsed.ok_or_else(|| format!("{:?} is not a number", String::from_utf8_lossy(&text[..text.len().min(40)])))
}

/// Checks that the fragments go upwards, do not overlap, end within the file and hold `content` bytes.
pub(super) fn check(map: &[Fragment], real_size: u64, content: u64) -> Field<()> {
    let (mut end, mut sum) = (0u64, 0u64);
    for fragment in map {
        if fragment.offset < end {
            return Err("the fragments of its sparse map overlap or go backwards".to_owned());
        }
        end = fragment.offset.checked_add(fragment.len).ok_or("its sparse map overflows")?;
        // Cannot overflow: the fragments do not overlap, so the sum is at most `end`.
        sum += fragment.len;
    }
    if end > real_size {
        return Err(format!("its sparse map ends at {end}, behind the file's size {real_size}"));
    }
    if sum != content {
        return Err(format!("its sparse map holds {sum} bytes, the archive {content}"));
    }
    Ok(())
}
