//! The `[backup]` table: how many backups of the metadata are kept, and how often one is made.

use std::time::Duration;

use serde::Deserialize;

use crate::error::{Error, ErrorKind, Result};

/// Backups that are kept if nobody says otherwise: a day of hourly ones, and some.
const COUNT_DEFAULT: usize = 30;
/// Most backups that may be kept.
const COUNT_MAX: usize = 10_000;
/// Time between two backups if nobody says otherwise.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(3600);
/// Shortest time between two backups.
const INTERVAL_MIN: Duration = Duration::from_secs(10);

/// Fields of the table.
pub(super) const BACKUP_FIELDS: [&str; 2] = ["count", "interval"];

/// How the metadata is backed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupConfig {
    /// Backups kept; the oldest goes first.
    pub count: usize,
    /// Time between two; `None`: only at the start, before risky steps, and when asked.
    pub interval: Option<Duration>,
}

impl Default for BackupConfig {
    fn default() -> Self {
        Self { count: COUNT_DEFAULT, interval: Some(INTERVAL_DEFAULT) }
    }
}

/// The table as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct BackupTable {
    count: Option<usize>,
    interval: Option<String>,
}

impl BackupTable {
    /// Errors: `InvalidArgument`, naming the field.
    pub(super) fn check(&self) -> Result<BackupConfig> {
        let default = BackupConfig::default();
        let count = self.count.unwrap_or(default.count);
        if !(1..=COUNT_MAX).contains(&count) {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("field `backup.count`: {count} is not between 1 and {COUNT_MAX}"),
            ));
        }
        let interval = self.interval.as_deref().map_or(Ok(default.interval), parse_interval)?;
        Ok(BackupConfig { count, interval })
    }
}

/// A time as people write it: `90s`, `30m`, `1h`, `1d`; `off` for none.
fn parse_interval(text: &str) -> Result<Option<Duration>> {
    let wrong = || {
        Error::new(
            ErrorKind::InvalidArgument,
            format!("field `backup.interval`: {:?} is no time", text.chars().take(40).collect::<String>()),
        )
        .advise("write it as in 30m, 1h or 1d, at least 10s; or off")
    };
    let trimmed = text.trim();
    if trimmed == "off" {
        return Ok(None);
    }
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let interval = number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)?;
    if interval < INTERVAL_MIN { Err(wrong()) } else { Ok(Some(interval)) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::parse_interval;

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(parse_interval("30m").unwrap(), Some(Duration::from_secs(1800)));
        assert_eq!(parse_interval("off").unwrap(), None);
        for wrong in ["", "h", "1", "1w", "9s", "-1h", "99999999999999999999h"] {
            assert!(parse_interval(wrong).is_err(), "{wrong}");
        }
    }
}
