//! Errors on the wire: the kind as a gRPC code, and kind, text and advice whole for our own client.
//!
//! containerd sees a code and one line of text. The command line needs more: several kinds share a code, and
//! the exit status hangs on the kind. So the three parts also travel as metadata, which containerd ignores.

use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::error::{Error, ErrorKind};

/// Largest message accepted and sent: containerd's own limit.
pub const MESSAGE_SIZE_MAX: usize = 16 << 20;

/// Longest text and longest advice, in characters. A status travels in HTTP/2 headers, percent-encoded; hyper
/// refuses header lists above 16 KiB, and then the client would see no error text at all.
const TEXT_CHARS_MAX: usize = 900;

const KIND_KEY: &str = "thinsnap-kind";
const TEXT_KEY: &str = "thinsnap-text-bin";
const ADVICE_KEY: &str = "thinsnap-advice-bin";

const KINDS: [(ErrorKind, &str); 15] = [
    (ErrorKind::NotFound, "not_found"),
    (ErrorKind::AlreadyExists, "already_exists"),
    (ErrorKind::HasChildren, "has_children"),
    (ErrorKind::NotActive, "not_active"),
    (ErrorKind::NotCommitted, "not_committed"),
    (ErrorKind::InvalidArgument, "invalid_argument"),
    (ErrorKind::BadArchive, "bad_archive"),
    (ErrorKind::InUse, "in_use"),
    (ErrorKind::NoSpace, "no_space"),
    (ErrorKind::ReadOnly, "read_only"),
    (ErrorKind::Corrupt, "corrupt"),
    (ErrorKind::Unsupported, "unsupported"),
    (ErrorKind::Denied, "denied"),
    (ErrorKind::Unavailable, "unavailable"),
    (ErrorKind::Internal, "internal"),
];

/// The status that a client gets for an error.
#[must_use]
pub fn status_of(error: &Error) -> Status {
    let text = printable(&error.to_string());
    let advice = error.advice().map(printable);
    let mut metadata = MetadataMap::new();
    if let Some((_, name)) = KINDS.iter().find(|(kind, _)| *kind == error.kind()) {
        metadata.insert(KIND_KEY, MetadataValue::from_static(name));
    }
    metadata.insert_bin(TEXT_KEY, MetadataValue::from_bytes(text.as_bytes()));
    let message = match &advice {
        Some(advice) => {
            metadata.insert_bin(ADVICE_KEY, MetadataValue::from_bytes(advice.as_bytes()));
            format!("{text}; try: {advice}")
        }
        None => text,
    };
    Status::with_metadata(error.kind().code(), message, metadata)
}

/// The error that a status stands for: whole if it came from [`status_of`], else told from the code alone.
#[must_use]
pub fn error_of(status: &Status) -> Error {
    let text_at = |key: &str| {
        let value = status.metadata().get_bin(key)?.to_bytes().ok()?;
        String::from_utf8(value.to_vec()).ok()
    };
    let kind = status
        .metadata()
        .get(KIND_KEY)
        .and_then(|name| KINDS.iter().find(|(_, known)| name.as_encoded_bytes() == known.as_bytes()))
        .map_or_else(|| kind_of(status.code()), |(kind, _)| *kind);
    let error = Error::new(kind, text_at(TEXT_KEY).unwrap_or_else(|| status.message().to_owned()));
    match text_at(ADVICE_KEY) {
        Some(advice) => error.advise(advice),
        None => error,
    }
}

/// The kind that comes nearest to a code: for statuses made by the transport or by another program.
fn kind_of(code: Code) -> ErrorKind {
    match code {
        Code::NotFound => ErrorKind::NotFound,
        Code::AlreadyExists => ErrorKind::AlreadyExists,
        Code::InvalidArgument | Code::OutOfRange => ErrorKind::InvalidArgument,
        Code::FailedPrecondition => ErrorKind::NotActive,
        Code::ResourceExhausted => ErrorKind::NoSpace,
        Code::DataLoss => ErrorKind::Corrupt,
        Code::Unimplemented => ErrorKind::Unsupported,
        Code::PermissionDenied | Code::Unauthenticated => ErrorKind::Denied,
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted => ErrorKind::Unavailable,
        Code::Ok | Code::Unknown | Code::Internal => ErrorKind::Internal,
    }
}

/// Bounded, and without control characters: a snapshot's name is anybody's text and ends up in logs.
fn printable(text: &str) -> String {
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    if text.chars().count() <= TEXT_CHARS_MAX {
        return text.chars().map(clean).collect();
    }
    // What failed stands at the front and why at the end: both are kept.
    let half = TEXT_CHARS_MAX / 2;
    let tail: Vec<char> = text.chars().rev().take(half).collect();
    text.chars().take(half).chain([' ', '…', ' ']).chain(tail.into_iter().rev()).map(clean).collect()
}

#[cfg(test)]
mod tests {
    use super::{KINDS, error_of, status_of};
    use crate::error::{Error, ErrorKind};

    #[test]
    fn an_error_crosses_the_wire_whole() {
        for (kind, _) in KINDS {
            let sent = Error::new(kind, "remove snapshot \"wéb\": it has children").advise("remove the children first");
            let got = error_of(&status_of(&sent));
            assert_eq!(got.kind(), kind);
            assert_eq!(got.to_string(), sent.to_string());
            assert_eq!(got.advice(), Some("remove the children first"));
        }
    }

    #[test]
    fn a_status_of_another_program_keeps_its_text() {
        let got = error_of(&tonic::Status::not_found("no such thing"));
        assert_eq!((got.kind(), got.to_string().as_str()), (ErrorKind::NotFound, "no such thing"));
    }

    #[test]
    fn a_status_is_bounded_and_holds_no_control_characters() {
        let status = status_of(&Error::new(ErrorKind::NotFound, format!("open {}\x1b[2J end", "é".repeat(5000))));
        assert!(status.message().len() < 4000, "{}", status.message().len());
        assert!(!status.message().contains('\x1b'));
        assert!(status.message().starts_with("open é") && status.message().ends_with(" end"));
    }
}
