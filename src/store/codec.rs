//! Records to bytes and back: one version byte, then bincode; every decode has a size limit.
//!
//! The version byte lets a later build read older records; a newer one is refused, never guessed.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result};

/// Largest record, in bytes; containerd's snapshots with all their labels stay below 16 KiB.
pub(crate) const RECORD_LEN_MAX: usize = 1 << 20;
/// The version that this build writes.
const VERSION: u8 = 1;

const CONFIG: Configuration<LittleEndian, Varint, Limit<RECORD_LEN_MAX>> =
    bincode::config::standard().with_limit::<RECORD_LEN_MAX>();

/// Errors with `InvalidArgument` if the record is larger than [`RECORD_LEN_MAX`].
pub(crate) fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>> {
    let mut bytes = vec![VERSION];
    bincode::serde::encode_into_std_write(record, &mut bytes, CONFIG)
        .map_err(|e| Error::with_source(ErrorKind::Internal, "encode a record of the store", e))?;
    too_large(bytes.len())?;
    Ok(bytes)
}

/// Errors with `Corrupt` on anything but a whole record, `Unsupported` on a newer version.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let corrupt = |what: &str| Error::new(ErrorKind::Corrupt, format!("decode a record of the store: {what}"));
    match bytes.split_first() {
        None => Err(corrupt("it is empty")),
        Some((&version, _)) if version > VERSION => Err(Error::new(
            ErrorKind::Unsupported,
            format!("decode a record of the store: version {version} is newer than {VERSION}, which this build reads"),
        )),
        Some((0, _)) => Err(corrupt("version 0")),
        Some((_, body)) => {
            let (record, used) = bincode::serde::decode_from_slice(body, CONFIG)
                .map_err(|e| Error::with_source(ErrorKind::Corrupt, "decode a record of the store", e))?;
            if used != body.len() {
                return Err(corrupt(&format!("{} bytes after its end", body.len() - used)));
            }
            Ok(record)
        }
    }
}

/// JSON, for the records of rooms above that people may want to read.
pub(crate) fn encode_json<T: Serialize>(record: &T) -> Result<Vec<u8>> {
    let bytes = serde_json::to_vec(record)
        .map_err(|e| Error::with_source(ErrorKind::Internal, "encode a record of the store as JSON", e))?;
    too_large(bytes.len())?;
    Ok(bytes)
}

/// Errors with `Corrupt`.
pub(crate) fn decode_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|e| Error::with_source(ErrorKind::Corrupt, "decode a JSON record of the store", e))
}

fn too_large(len: usize) -> Result<()> {
    if len > RECORD_LEN_MAX {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("a record of {len} bytes is larger than {RECORD_LEN_MAX}, the most that the store takes"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{RECORD_LEN_MAX, decode, decode_json, encode, encode_json};
    use crate::error::ErrorKind;
    use crate::snapshot::Labels;

    fn labels() -> Labels {
        (0..100).map(|i| (format!("key {i}"), "v".repeat(i))).collect()
    }

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        assert_eq!(decode::<Labels>(&encode(&labels()).unwrap()).unwrap(), labels());
        assert_eq!(decode_json::<Labels>(&encode_json(&labels()).unwrap()).unwrap(), labels());
    }

    #[test]
    fn every_cut_of_a_record_is_corrupt() {
        let bytes = encode(&labels()).unwrap();
        for len in 0..bytes.len() {
            assert_eq!(decode::<Labels>(&bytes[..len]).unwrap_err().kind(), ErrorKind::Corrupt, "{len}");
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert_eq!(decode::<Labels>(&longer).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn a_length_that_promises_more_than_the_limit_allocates_nothing() {
        let mut bytes = vec![1, 253];
        bytes.extend_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(decode::<String>(&bytes).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(decode::<Vec<u64>>(&bytes).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn a_newer_version_is_refused() {
        let mut bytes = encode(&labels()).unwrap();
        bytes[0] = 2;
        assert_eq!(decode::<Labels>(&bytes).unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn a_record_over_the_limit_is_not_written() {
        let big = "x".repeat(RECORD_LEN_MAX);
        assert_eq!(encode(&big).unwrap_err().kind(), ErrorKind::InvalidArgument);
        assert_eq!(encode_json(&big).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}
