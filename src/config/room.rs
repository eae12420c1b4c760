//! How much room there must be, and what is done when it runs short: floors, watermarks, growth, waiting writes.

use std::time::Duration;

use serde::Deserialize;
use thinsnap_pool::{ByteCount, NoSpace};

use crate::config::parse_size;
use crate::error::{Error, ErrorKind, Result};

/// Steps of growth that one table of the configuration may ask for at most at a time.
const PERCENT_MAX: u8 = 100;

/// An amount, or a part of a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// So many bytes.
    Bytes(ByteCount),
    /// So many percent.
    Percent(u8),
}

impl Share {
    /// The amount, of a whole of `total`.
    #[must_use]
    pub fn of(self, total: ByteCount) -> ByteCount {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => part(total, percent),
        }
    }

    pub(super) fn parse(field: &str, text: &str) -> Result<Self> {
        match text.trim().strip_suffix('%') {
            Some(_) => percent(field, text).map(Self::Percent),
            None => parse_size(text).map(Self::Bytes).map_err(|error| error.doing(format!("field `{field}`"))),
        }
    }
}

/// So many percent of an amount.
#[must_use]
pub fn part(total: ByteCount, percent: u8) -> ByteCount {
    let bytes = u128::from(total.0) * u128::from(percent) / 100;
    ByteCount(u64::try_from(bytes).unwrap_or(u64::MAX))
}

/// Growth in steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AutoExtend {
    /// Percent in use at which a step is made.
    pub at: u8,
    /// The step; a percentage is of the size so far.
    pub step: Share,
    /// No growth beyond this size.
    pub cap: ByteCount,
}

/// What is done when room runs short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RoomConfig {
    /// Writes that find no room.
    pub no_space: NoSpace,
    /// Growth of the data space.
    pub extend_data: Option<AutoExtend>,
    /// Growth of the metadata space.
    pub extend_metadata: Option<AutoExtend>,
    /// Watermarks.
    pub watermarks: Watermarks,
}

/// While growth is possible, writes wait at least this long for it.
const GROWTH_WAIT: Duration = Duration::from_secs(30);

impl RoomConfig {
    /// What a pool shall do with writes that find no room, while it can or can no longer grow.
    #[must_use]
    pub fn policy(&self, can_grow: bool) -> NoSpace {
        let mut policy = self.no_space;
        if can_grow {
            policy.wait = policy.wait.max(GROWTH_WAIT);
        }
        policy
    }

    /// The same for a pool-host that starts: before its first requests, and those that a dead one left waiting.
    #[must_use]
    pub fn first_policy(&self) -> NoSpace {
        self.policy(self.extend_data.is_some() || self.extend_metadata.is_some())
    }
}

/// Percent in use at which an event is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermarks {
    /// First word.
    pub warn: u8,
    /// Last word before the pool is full.
    pub critical: u8,
}

impl Default for Watermarks {
    fn default() -> Self {
        Self { warn: 80, critical: 95 }
    }
}

/// What happens to a write that finds no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum NoSpaceMode {
    Error,
    Queue,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AutoExtendTable {
    at: Option<String>,
    step: Option<String>,
    cap: Option<String>,
    metadata_at: Option<String>,
    metadata_step: Option<String>,
    metadata_cap: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct WatermarksTable {
    warn: Option<String>,
    critical: Option<String>,
}

/// Fields of `[pool]` that stand here.
pub(super) const POOL_ROOM_FIELDS: [&str; 5] =
    ["no_space", "no_space_wait", "no_space_memory", "auto_extend", "watermarks"];
pub(super) const AUTO_EXTEND_FIELDS: [&str; 6] = ["at", "step", "cap", "metadata_at", "metadata_step", "metadata_cap"];
pub(super) const WATERMARKS_FIELDS: [&str; 2] = ["warn", "critical"];

/// The fields of `[pool]` that say what is done when room runs short.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RoomTable {
    no_space: Option<NoSpaceMode>,
    no_space_wait: Option<String>,
    no_space_memory: Option<String>,
    auto_extend: AutoExtendTable,
    watermarks: WatermarksTable,
}

impl RoomTable {
    pub(super) fn checked(self) -> Result<RoomConfig> {
        let built_in = NoSpace::default();
        let wait = match &self.no_space_wait {
            Some(text) => duration("pool.no_space_wait", text)?,
            None => Duration::from_secs(60),
        };
        let memory = match &self.no_space_memory {
            Some(text) => parse_size(text).map_err(|error| error.doing("field `pool.no_space_memory`"))?,
            None => built_in.memory,
        };
        let wait = match self.no_space.unwrap_or(NoSpaceMode::Error) {
            NoSpaceMode::Error => Duration::ZERO,
            NoSpaceMode::Queue => wait,
        };
        let table = &self.auto_extend;
        let data = extend("pool.auto_extend.", ["at", "step", "cap"], [&table.at, &table.step, &table.cap])?;
        let names = ["metadata_at", "metadata_step", "metadata_cap"];
        let metadata =
            extend("pool.auto_extend.", names, [&table.metadata_at, &table.metadata_step, &table.metadata_cap])?;
        let mut watermarks = Watermarks::default();
        if let Some(text) = &self.watermarks.warn {
            watermarks.warn = percent("pool.watermarks.warn", text)?;
        }
        if let Some(text) = &self.watermarks.critical {
            watermarks.critical = percent("pool.watermarks.critical", text)?;
        }
        if watermarks.warn > watermarks.critical {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "field `pool.watermarks.warn`: it is above `pool.watermarks.critical`",
            ));
        }
        Ok(RoomConfig { no_space: NoSpace { wait, memory }, extend_data: data, extend_metadata: metadata, watermarks })
    }
}

/// A cap is what asks for growth; the other two have defaults.
fn extend(prefix: &str, names: [&str; 3], texts: [&Option<String>; 3]) -> Result<Option<AutoExtend>> {
    let field = |index: usize| format!("{prefix}{}", names[index]);
    let [at, step, cap] = texts;
    let Some(cap) = cap else {
        if at.is_some() || step.is_some() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("field `{}` is missing: growth needs an end", field(2)),
            )
            .advise("give the size in all that the pool may grow to, as in cap = \"500G\""));
        }
        return Ok(None);
    };
    let cap = parse_size(cap).map_err(|error| error.doing(format!("field `{}`", field(2))))?;
    let at = at.as_deref().map_or(Ok(80), |text| percent(&field(0), text))?;
    let step = step.as_deref().map_or(Ok(Share::Percent(20)), |text| Share::parse(&field(1), text))?;
    if matches!(step, Share::Percent(0) | Share::Bytes(ByteCount(0))) {
        return Err(Error::new(ErrorKind::InvalidArgument, format!("field `{}`: a step of nothing", field(1))));
    }
    Ok(Some(AutoExtend { at, step, cap }))
}

fn percent(field: &str, text: &str) -> Result<u8> {
    let number = text.trim().strip_suffix('%').and_then(|number| number.trim().parse::<u8>().ok());
    number.filter(|number| *number <= PERCENT_MAX).ok_or_else(|| {
        Error::new(ErrorKind::InvalidArgument, format!("field `{field}`: {text:?} is no percentage"))
            .advise("write whole percent, as in \"80%\"")
    })
}

/// `500ms`, `60s`, `5m`, `1h`.
fn duration(field: &str, text: &str) -> Result<Duration> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" | "min" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    factor
        .zip(number.parse::<u64>().ok())
        .and_then(|(factor, number)| number.checked_mul(factor))
        .map(Duration::from_millis)
        .ok_or_else(|| {
            Error::new(ErrorKind::InvalidArgument, format!("field `{field}`: {text:?} is no duration"))
                .advise("write a number with a unit, as in 500ms, 60s or 5m")
        })
}

#[cfg(test)]
mod tests {
    use super::Share;
    use crate::config::{Config, Overrides};
    use std::time::Duration;
    use thinsnap_pool::ByteCount;

    fn room(text: &str) -> crate::error::Result<super::RoomConfig> {
        Config::parse(text, Overrides::default()).map(|config| config.room)
    }

    #[test]
    fn waiting_growth_and_watermarks_are_read_with_their_units() {
        let room = room(
            "[pool]\nno_space = \"queue\"\nno_space_wait = \"5m\"\nno_space_memory = \"1M\"\n\
             [pool.auto_extend]\nat = \"70%\"\nstep = \"10%\"\ncap = \"1T\"\nmetadata_cap = \"2G\"\n\
             [pool.watermarks]\nwarn = \"60%\"\n[floors]\ndata = \"5%\"\n",
        )
        .unwrap();
        assert_eq!((room.no_space.wait, room.no_space.memory), (Duration::from_secs(300), ByteCount(1 << 20)));
        let data = room.extend_data.unwrap();
        assert_eq!((data.at, data.step, data.cap), (70, Share::Percent(10), ByteCount(1 << 40)));
        let metadata = room.extend_metadata.unwrap();
        assert_eq!((metadata.at, metadata.step, metadata.cap), (80, Share::Percent(20), ByteCount(2 << 30)));
        assert_eq!((room.watermarks.warn, room.watermarks.critical), (60, 95));
    }

    #[test]
    fn without_a_word_writes_are_told_at_once_and_nothing_grows() {
        let room = room("").unwrap();
        assert!(room.no_space.wait.is_zero() && room.extend_data.is_none() && room.extend_metadata.is_none());
    }

    #[test]
    fn nonsense_is_refused_by_its_field() {
        for (text, field) in [
            ("[pool]\nno_space_wait = \"60\"", "pool.no_space_wait"),
            ("[pool.auto_extend]\nat = \"80\"\ncap = \"1T\"", "pool.auto_extend.at"),
            ("[pool.auto_extend]\nat = \"80%\"", "pool.auto_extend.cap"),
            ("[pool.auto_extend]\ncap = \"1T\"\nstep = \"0%\"", "pool.auto_extend.step"),
            ("[pool.watermarks]\nwarn = \"99%\"", "pool.watermarks.warn"),
            ("[pool.auto_extend]\ncpa = \"1T\"", "pool.auto_extend.cpa"),
            ("[floors]\ndata = \"101%\"", "floors.data"),
        ] {
            let error = room(text).unwrap_err();
            assert!(error.to_string().contains(field), "{text}: {error}");
        }
    }
}
