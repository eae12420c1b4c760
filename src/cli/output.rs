//! Where answers go: stdout, as text for people or as one JSON document for programs.

use std::io::{self, Write};

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};

/// How answers are printed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Prints an answer: `value` itself as JSON, or what `text` makes of it.
    pub(crate) fn answer<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
        let mut printed = if self.json {
            serde_json::to_string_pretty(value)
                .map_err(|error| Error::with_source(ErrorKind::Internal, "write the answer as JSON", error))?
        } else {
            text(value)
        };
        if !printed.is_empty() && !printed.ends_with('\n') {
            printed.push('\n');
        }
        write_stdout(printed.as_bytes())
    }
}

/// Writes to stdout.
pub(crate) fn write_stdout(bytes: &[u8]) -> Result<()> {
    let mut stdout = Stdout::default();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| Error::io("write to standard output", error))
}

/// Standard output. A reader that went away (`| head`) wants no more: that is no failure.
#[derive(Debug, Default)]
pub(crate) struct Stdout {
    reader_gone: bool,
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.reader_gone {
            return Ok(bytes.len());
        }
        match io::stdout().lock().write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.reader_gone = true;
                Ok(bytes.len())
            }
            other => other,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match io::stdout().lock().flush() {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }
}
