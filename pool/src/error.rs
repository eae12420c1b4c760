//! One error for the whole pool: a kind to match on, a phrase of what was being done, and the cause.
//!
//! Callers match on [`ErrorKind`], never on text; text may change in any release, kinds may not.

use std::fmt;

/// What went wrong, as far as a caller can act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum ErrorKind {
    /// The device, pool or file is not there.
    NotFound,
    /// The device or pool exists already.
    AlreadyExists,
    /// Somebody else holds it: another process has the pool, an opener has the device.
    InUse,
    /// No free data block is left for a write that needs one.
    OutOfDataSpace,
    /// No free metadata block is left for a change that needs one.
    OutOfMetadataSpace,
    /// The pool accepts no changes, because of an earlier failure or because it was opened so.
    ReadOnly,
    /// The metadata carries the needs_check flag.
    NeedsCheck,
    /// A checksum, a magic number or an invariant of the on-disk format does not hold.
    Corrupt,
    /// The format, the platform or the request asks for something that this build does not do.
    Unsupported,
    /// The caller may not do this.
    Denied,
    /// The request itself is wrong: a value out of range, a size that is no multiple.
    Invalid,
    /// The process that serves the pool cannot be reached.
    Unavailable,
    /// The layer below reported an I/O error.
    Io,
    /// The log of acknowledged changes cannot be believed, or does not fit the metadata.
    DoubtfulLog,
}

impl ErrorKind {
    /// The next step for a person who meets this kind of error.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Self::NotFound => "check the name or the path; `thinsnap pool status` lists what is there",
            Self::AlreadyExists => "choose another name, or remove the existing one first",
            Self::InUse => "stop the other user first; `thinsnap doctor` says who holds the pool",
            Self::OutOfDataSpace => {
                "grow the pool (thinsnap pool grow --data SIZE) or remove unused snapshots (thinsnap snapshot ls)"
            }
            Self::OutOfMetadataSpace => {
                "grow the metadata (thinsnap pool grow --metadata SIZE) or remove unused snapshots"
            }
            Self::ReadOnly => "see `thinsnap pool status` for the reason, then run `thinsnap pool check`",
            Self::NeedsCheck => "stop the service, run `thinsnap pool check`, then `thinsnap pool repair --apply`",
            Self::Corrupt => "stop the service; `thinsnap pool repair --dry-run` says what can be saved",
            Self::Unsupported => "run `thinsnap doctor` to see what this machine and this build can do",
            Self::Denied => "run as root, or as a member of the group that owns the socket",
            Self::Invalid => "see --help for the values that are accepted",
            Self::Unavailable => {
                "start the service again (thinsnap serve); mounted containers are not disturbed by that"
            }
            Self::DoubtfulLog => {
                "nothing was changed; find out what touched the pool or the log. To give up the writes that it holds: \
                 `thinsnap pool discard-intent-log`, then check the file systems that were mounted"
            }
            Self::Io => "look at the kernel log (dmesg) for the device below, then run `thinsnap pool check`",
        }
    }
}

/// An error of the pool: kind, what was being done, and the cause below it if there is one.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    doing: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What every fallible call of the pool returns.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error without a cause below it. `doing` is a phrase: "create snapshot 17 of 4: origin is absent".
    pub fn new(kind: ErrorKind, doing: impl Into<String>) -> Self {
        Self { kind, doing: doing.into(), source: None }
    }

    /// An error caused by another one.
    pub fn with_source(
        kind: ErrorKind,
        doing: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, doing: doing.into(), source: Some(source.into()) }
    }

    /// An I/O error, its kind taken from the errno (ENOSPC, EBUSY, ENOENT, EACCES … are told apart).
    pub fn io(doing: impl Into<String>, source: std::io::Error) -> Self {
        let kind = match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => ErrorKind::OutOfDataSpace,
            Some(libc::EBUSY | libc::ETXTBSY) => ErrorKind::InUse,
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => ErrorKind::NotFound,
            Some(libc::EEXIST) => ErrorKind::AlreadyExists,
            Some(libc::EACCES | libc::EPERM) => ErrorKind::Denied,
            Some(libc::EROFS) => ErrorKind::ReadOnly,
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY) => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        };
        Self { kind, doing: doing.into(), source: Some(Box::new(source)) }
    }

    /// What a caller matches on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The same error, with what the caller was doing put in front.
    #[must_use]
    pub fn doing(mut self, outer: impl fmt::Display) -> Self {
        self.doing = format!("{outer}: {}", self.doing);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.doing)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|s| s as &(dyn std::error::Error + 'static))
    }
}
