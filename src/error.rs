//! The service's error: a kind that maps once to a gRPC code and once to an exit status, and what to do next.

use std::fmt;

/// What went wrong, as far as a client can act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The snapshot, image, container or file is not there.
    NotFound,
    /// The key or name is taken.
    AlreadyExists,
    /// A snapshot with children can neither be removed nor changed.
    HasChildren,
    /// The verb wants an active snapshot (commit) or one with mounts (mounts).
    NotActive,
    /// The parent is not a committed snapshot.
    NotCommitted,
    /// The request itself is wrong: an empty key, a bad filter, an unknown field.
    InvalidArgument,
    /// An archive or image is malformed, or its digest does not match.
    BadArchive,
    /// Somebody else holds it.
    InUse,
    /// The pool, or the file system below it, is full.
    NoSpace,
    /// The pool accepts no changes.
    ReadOnly,
    /// Metadata or records are damaged.
    Corrupt,
    /// Not possible with this build, this machine or this request.
    Unsupported,
    /// The caller may not do this.
    Denied,
    /// The service or the pool cannot be reached.
    Unavailable,
    /// The layer below failed.
    Internal,
}

impl ErrorKind {
    /// The code that a gRPC client sees.
    #[must_use]
    pub fn code(self) -> tonic::Code {
        match self {
            Self::NotFound => tonic::Code::NotFound,
            Self::AlreadyExists => tonic::Code::AlreadyExists,
            Self::HasChildren | Self::NotActive | Self::InUse | Self::ReadOnly => tonic::Code::FailedPrecondition,
            Self::NotCommitted | Self::InvalidArgument | Self::BadArchive => tonic::Code::InvalidArgument,
            Self::NoSpace => tonic::Code::ResourceExhausted,
            Self::Corrupt => tonic::Code::DataLoss,
            Self::Unsupported => tonic::Code::Unimplemented,
            Self::Denied => tonic::Code::PermissionDenied,
            Self::Unavailable => tonic::Code::Unavailable,
            Self::Internal => tonic::Code::Internal,
        }
    }

    /// The exit status of the command line: 1 failed, 2 usage, 3 damage found, 4 no space, 5 in use.
    #[must_use]
    pub fn exit_status(self) -> u8 {
        match self {
            Self::InvalidArgument => 2,
            Self::Corrupt => 3,
            Self::NoSpace => 4,
            Self::InUse => 5,
            Self::NotFound
            | Self::AlreadyExists
            | Self::HasChildren
            | Self::NotActive
            | Self::NotCommitted
            | Self::BadArchive
            | Self::ReadOnly
            | Self::Unsupported
            | Self::Denied
            | Self::Unavailable
            | Self::Internal => 1,
        }
    }
}

/// An error of the service: kind, what was being done, the next step if one is known, and the cause.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    doing: String,
    advice: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What every fallible call of the service returns.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error without a cause below it. `doing` is a phrase: `remove snapshot "web": it has children`.
    pub fn new(kind: ErrorKind, doing: impl Into<String>) -> Self {
        Self { kind, doing: doing.into(), advice: None, source: None }
    }

    /// An error caused by another one.
    pub fn with_source(
        kind: ErrorKind,
        doing: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, doing: doing.into(), advice: None, source: Some(source.into()) }
    }

    /// An I/O error, its kind taken from the errno.
    pub fn io(doing: impl Into<String>, source: std::io::Error) -> Self {
        Self::from(thinsnap_pool::Error::io(doing, source))
    }

    /// The same error with the next step for a person.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// The same error, with what the caller was doing put in front.
    #[must_use]
    pub fn doing(mut self, outer: impl fmt::Display) -> Self {
        self.doing = format!("{outer}: {}", self.doing);
        self
    }

    /// What a caller matches on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The next step, if one is known.
    #[must_use]
    pub fn advice(&self) -> Option<&str> {
        self.advice.as_deref()
    }
}

impl From<thinsnap_pool::Error> for Error {
    fn from(error: thinsnap_pool::Error) -> Self {
        use thinsnap_pool::ErrorKind as Pool;
        let kind = match error.kind() {
            Pool::NotFound => ErrorKind::NotFound,
            Pool::AlreadyExists => ErrorKind::AlreadyExists,
            Pool::InUse => ErrorKind::InUse,
            Pool::OutOfDataSpace | Pool::OutOfMetadataSpace => ErrorKind::NoSpace,
            Pool::ReadOnly | Pool::NeedsCheck => ErrorKind::ReadOnly,
            Pool::DoubtfulLog => ErrorKind::Corrupt,
            Pool::Corrupt => ErrorKind::Corrupt,
            Pool::Unsupported => ErrorKind::Unsupported,
            Pool::Denied => ErrorKind::Denied,
            Pool::Invalid => ErrorKind::InvalidArgument,
            Pool::Unavailable => ErrorKind::Unavailable,
            Pool::Io => ErrorKind::Internal,
        };
        Self { kind, doing: error.to_string(), advice: Some(error.kind().advice().to_owned()), source: None }
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
