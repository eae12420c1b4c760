//! What the pool still does. The mode changes here and nowhere else.
//!
//! ```text
//! write ⇄ out_of_data_space
//!   └──────────┴──▶ read_only ──▶ fail
//! ```
//! Down by what failed, up only from `out_of_data_space`: what a failed commit or flush left on the disk is
//! not known, so that only a new start, which reads it again, may write again.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, ErrorKind, Result};
use crate::status::PoolMode;

pub(super) struct Mode {
    now: AtomicU8,
    reason: Mutex<Option<String>>,
}

impl Mode {
    pub(super) fn new() -> Self {
        Self { now: AtomicU8::new(0), reason: Mutex::new(None) }
    }

    /// The mode, by one relaxed load: a request that began before a change may still be served as before it.
    pub(super) fn now(&self) -> PoolMode {
        match self.now.load(Ordering::Relaxed) {
            0 => PoolMode::Write,
            1 => PoolMode::OutOfDataSpace,
            2 => PoolMode::ReadOnly,
            _ => PoolMode::Fail,
        }
    }

    /// Why the mode is not `Write`.
    pub(super) fn reason(&self) -> Option<String> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the mode, if the way there exists; the first reason for a mode is kept.
    pub(super) fn change(&self, to: PoolMode, reason: &str) {
        let mut kept = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        let from = self.now();
        let allowed = match (from, to) {
            (PoolMode::Write | PoolMode::OutOfDataSpace, _) | (PoolMode::ReadOnly, PoolMode::Fail) => from != to,
            (PoolMode::ReadOnly | PoolMode::Fail, _) => false,
        };
        if !allowed {
            return;
        }
        let number = match to {
            PoolMode::Write => 0,
            PoolMode::OutOfDataSpace => 1,
            PoolMode::ReadOnly => 2,
            PoolMode::Fail => 3,
        };
        *kept = (to != PoolMode::Write).then(|| reason.to_owned());
        self.now.store(number, Ordering::Relaxed);
        if to == PoolMode::Write {
            tracing::info!(?from, "the pool accepts all writes again: {reason}");
        } else {
            tracing::error!(?from, ?to, "the pool degrades: {reason}");
        }
    }

    /// Errors with `ReadOnly` or `Io` if the pool accepts no changes.
    pub(super) fn check_changes(&self) -> Result<()> {
        let kind = match self.now() {
            PoolMode::Write | PoolMode::OutOfDataSpace => return Ok(()),
            PoolMode::ReadOnly => ErrorKind::ReadOnly,
            PoolMode::Fail => ErrorKind::Io,
        };
        let reason = self.reason().unwrap_or_default();
        Err(Error::new(kind, format!("the pool accepts no changes: {reason}")))
    }
}

#[cfg(test)]
mod tests {
    use super::Mode;
    use crate::status::PoolMode;

    #[test]
    fn only_the_lack_of_space_can_be_left_again() {
        let mode = Mode::new();
        mode.change(PoolMode::OutOfDataSpace, "full");
        assert_eq!((mode.now(), mode.reason()), (PoolMode::OutOfDataSpace, Some("full".to_owned())));
        mode.change(PoolMode::Write, "grown");
        assert_eq!((mode.now(), mode.reason()), (PoolMode::Write, None));
        mode.change(PoolMode::ReadOnly, "commit failed");
        mode.change(PoolMode::Write, "no");
        mode.change(PoolMode::OutOfDataSpace, "no");
        assert_eq!((mode.now(), mode.reason()), (PoolMode::ReadOnly, Some("commit failed".to_owned())));
        assert!(mode.check_changes().is_err());
        mode.change(PoolMode::Fail, "worse");
        mode.change(PoolMode::ReadOnly, "no");
        assert_eq!(mode.now(), PoolMode::Fail);
    }
}
