//! The 512-byte header block of a tar member: v7, ustar, GNU and star; bytes in, values out.

use crate::error::{Error, ErrorKind, Result};

/// A tar archive is made of blocks of this size.
pub(super) const BLOCK_SIZE: usize = 512;

/// Which dialect a block is written in; it tells what stands behind the link name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// A header block whose checksum is right.
pub(super) struct Header<'a> {
    block: &'a [u8; BLOCK_SIZE],
    dialect: Dialect,
}

impl<'a> Header<'a> {
    /// Checks the checksum. `at` is the block's offset, for the error.
    pub(super) fn parse(block: &'a [u8; BLOCK_SIZE], at: u64) -> Result<Self> {
        let told = unsigned(&block[148..156])
            .map_err(|reason| bad_block(at, &format!("it is not a tar header: its checksum {reason}")))?;
        let summed = block.iter().enumerate().map(|(i, &b)| if (148..156).contains(&i) { b' ' } else { b });
        // Some very old programs summed signed bytes; both sums are taken by every reader.
        let plain: u64 = summed.clone().map(u64::from).sum();
        let signed: i64 = summed.map(|b| i64::from(i8::from_ne_bytes([b]))).sum();
        if told != plain && i64::try_from(told) != Ok(signed) {
            return Err(bad_block(at, "it is not a tar header: its checksum is wrong"));
        }
        let dialect = match (&block[257..263], &block[263..265], &block[508..512]) {
            (b"ustar\0", _, b"tar\0") => Dialect::Star,
            (b"ustar\0", _, _) => Dialect::Ustar,
            (b"ustar ", b" \0", _) => Dialect::Gnu,
            _ => Dialect::V7,
        };
        Ok(Self { block, dialect })
    }

    /// The type flag.
    pub(super) fn flag(&self) -> u8 {
        self.block[156]
    }

    /// The path, prefix and name joined.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.block[..100]);
        let prefix = match self.dialect {
            Dialect::Ustar => text(&self.block[345..500]),
            Dialect::Star => text(&self.block[345..476]),
            Dialect::V7 | Dialect::Gnu => &[],
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    /// The link target.
    pub(super) fn link(&self) -> &'a [u8] {
        text(&self.block[157..257])
    }

    pub(super) fn mode(&self) -> Field<u64> {
        unsigned(&self.block[100..108])
    }

    pub(super) fn uid(&self) -> Field<u64> {
        unsigned(&self.block[108..116])
    }

    pub(super) fn gid(&self) -> Field<u64> {
        unsigned(&self.block[116..124])
    }

    /// Bytes of content in the archive.
    pub(super) fn size(&self) -> Field<u64> {
        unsigned(&self.block[124..136])
    }

    /// Seconds since the epoch.
    pub(super) fn mtime(&self) -> Field<i64> {
        number(&self.block[136..148])
    }

    /// Major and minor number; v7 has none.
    pub(super) fn device(&self) -> Field<(u64, u64)> {
        match self.dialect {
            Dialect::V7 => Ok((0, 0)),
            Dialect::Ustar | Dialect::Star | Dialect::Gnu => {
                Ok((unsigned(&self.block[329..337])?, unsigned(&self.block[337..345])?))
            }
        }
    }

    /// For GNU's sparse files: the four fragments in the header, whether blocks with more follow, and the size of the
    /// file that comes of it. `None` in another dialect.
    pub(super) fn sparse(&self) -> Option<(&'a [u8], bool, Field<u64>)> {
        (self.dialect == Dialect::Gnu)
            .then(|| (&self.block[386..482], self.block[482] != 0, unsigned(&self.block[483..495])))
    }
}

/// A decoded field, or what is wrong with it.
pub(super) type Field<T> = std::result::Result<T, String>;

/// A number that cannot be negative.
pub(super) fn unsigned(field: &[u8]) -> Field<u64> {
    let value = number(field)?;
    u64::try_from(value).map_err(|_| format!("holds the negative number {value}"))
}

/// A number in octal, or in GNU's base 256: two's complement with the top bit set.
fn number(field: &[u8]) -> Field<i64> {
    if field.first().is_some_and(|first| first & 0x80 != 0) {
        return base_256(field);
    }
    let start = field.iter().position(|b| !matches!(b, b' ' | 0)).unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(|b| matches!(b, b' ' | 0)).unwrap_or(digits.len());
    let mut value: i64 = 0;
    for &digit in &digits[..end] {
        if !(b'0'..=b'7').contains(&digit) {
            return Err(format!("holds {:?}, not an octal number", String::from_utf8_lossy(field)));
        }
        // Twelve octal digits are 36 bits: this cannot overflow.
        value = value << 3 | i64::from(digit - b'0');
    }
    Ok(value)
}

fn base_256(field: &[u8]) -> Field<i64> {
    let negative = field[0] & 0x40 != 0;
    let mut value: i128 = if negative { -1 } else { 0 };
    for (i, &byte) in field.iter().enumerate() {
        // The first byte's top bit says "base 256", the next one is the sign.
        let byte = if i == 0 { if negative { byte | 0x80 } else { byte & 0x3f } } else { byte };
        value = value << 8 | i128::from(byte);
    }
    i64::try_from(value).map_err(|_| "holds a number of more than 63 bits".to_owned())
}

/// Text up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|b| *b == 0).unwrap_or(field.len())]
}

/// A `BadArchive` error that names a block by its offset.
pub(super) fn bad_block(at: u64, reason: &str) -> Error {
    Error::new(ErrorKind::BadArchive, format!("archive block at byte {at}: {reason}"))
}
