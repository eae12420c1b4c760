//! Words of the configuration that choose between ways of working.

use thinsnap_pool::{Engine, Export};

use crate::error::{Error, ErrorKind, Result};

/// Who moves the blocks, as people write it: `auto`, `kernel` or `embedded`.
pub fn parse_engine(word: &str) -> Result<Engine> {
    match word {
        "auto" => Ok(Engine::Auto),
        "kernel" => Ok(Engine::Kernel),
        "embedded" => Ok(Engine::Embedded),
        _ => Err(unknown(word, "engine", "write auto, kernel or embedded")),
    }
}

/// How the embedded engine shows its devices, as people write it: `auto`, `ublk` or `fuse`.
pub fn parse_export(word: &str) -> Result<Export> {
    match word {
        "auto" => Ok(Export::Auto),
        "ublk" => Ok(Export::Ublk),
        "fuse" => Ok(Export::Fuse),
        _ => Err(unknown(word, "export", "write auto, ublk or fuse")),
    }
}

/// What [`parse_export`] reads.
pub(crate) fn word_of(export: Export) -> &'static str {
    match export {
        Export::Auto => "auto",
        Export::Ublk => "ublk",
        Export::Fuse => "fuse",
    }
}

fn unknown(word: &str, what: &str, advice: &str) -> Error {
    let word = word.chars().take(40).collect::<String>();
    Error::new(ErrorKind::InvalidArgument, format!("{word:?} is no {what}")).advise(advice)
}
