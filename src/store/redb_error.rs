//! redb's errors in the service's kinds, each mapped once.

use std::io;

use crate::error::{Error, ErrorKind};

/// `doing` in front of what redb says.
pub(crate) fn storage_error(doing: &str, error: impl Into<redb::Error>) -> Error {
    let error = error.into();
    let kind = match &error {
        redb::Error::Corrupted(_) | redb::Error::RepairAborted | redb::Error::UpgradeRequired(_) => ErrorKind::Corrupt,
        redb::Error::DatabaseAlreadyOpen => ErrorKind::InUse,
        redb::Error::Io(cause) => io_kind(cause),
        // redb trusts nothing in memory after an I/O error, until the file is opened again.
        redb::Error::PreviousIo => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    };
    Error::with_source(kind, doing.to_owned(), error).advise(advice(kind))
}

fn io_kind(cause: &io::Error) -> ErrorKind {
    match cause.kind() {
        // What redb answers to a file that is none of its own, or that ends too early.
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => ErrorKind::Corrupt,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        io::ErrorKind::ReadOnlyFilesystem => ErrorKind::ReadOnly,
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        _ => ErrorKind::Internal,
    }
}

fn advice(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Corrupt => {
            "stop the service and copy the store aside; the devices in the pool are untouched by damage to the store"
        }
        ErrorKind::InUse => "another thinsnap process has the store: stop it, or talk to it through its socket",
        ErrorKind::NoSpace => "free space on the file system that holds the store",
        ErrorKind::Unavailable => "see the log for the cause, mend it, and start the service again",
        _ => "look at the kernel log (dmesg) for the disk that holds the store",
    }
}
