//! containerd's filter grammar: parsed once, matched against records.

use crate::error::Result;
use crate::snapshot::Snapshot;

/// One filter: selectors that must all match.
#[derive(Debug, Clone)]
pub struct Filter {
    _private: (),
}

impl Filter {
    /// Errors with `InvalidArgument`, naming the place in the text.
    pub fn parse(_text: &str) -> Result<Self> {
        todo!()
    }

    /// True if every selector matches.
    #[must_use]
    pub fn matches(&self, _snapshot: &Snapshot) -> bool {
        todo!()
    }
}
