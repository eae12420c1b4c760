//! Content digests, and the chain ids that name layers by all that is below them.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::error::{Error, ErrorKind};

/// A SHA-256 digest. Its text is `sha256:` and 64 hexadecimal digits; nothing else is ever made into a file name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Digest {
    hex: String,
}

impl Digest {
    /// The digest of `bytes`.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::default();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The 64 digits.
    pub(super) fn hex(&self) -> &str {
        &self.hex
    }

    /// The OCI chain id of a layer on `parent`: the lowest layer's is its own diff id.
    pub(super) fn chain(parent: Option<&Self>, diff_id: &Self) -> Self {
        match parent {
            None => diff_id.clone(),
            Some(parent) => Self::of(format!("{parent} {diff_id}").as_bytes()),
        }
    }

    /// From 64 digits without the algorithm's name.
    pub(super) fn from_hex(hex: &str) -> Option<Self> {
        let good = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        good.then(|| Self { hex: hex.to_owned() })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let shown: String = text.chars().take(160).collect();
        if let Some(digest) = text.strip_prefix("sha256:").and_then(Self::from_hex) {
            return Ok(digest);
        }
        let known = text.split(':').next().is_some_and(|algorithm| matches!(algorithm, "sha512" | "sha384" | "blake3"));
        Err(if known {
            Error::new(ErrorKind::Unsupported, format!("digest {shown:?}: only sha256 is supported"))
        } else {
            Error::new(ErrorKind::BadArchive, format!("{shown:?} is not a digest"))
        })
    }
}

/// Computes a digest piece by piece.
#[derive(Default)]
pub(super) struct Hasher(Sha256);

impl Hasher {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn finish(self) -> Digest {
        use fmt::Write as _;
        let mut hex = String::with_capacity(64);
        for byte in self.0.finalize() {
            write!(hex, "{byte:02x}").expect("writing to a string cannot fail");
        }
        Digest { hex }
    }
}
