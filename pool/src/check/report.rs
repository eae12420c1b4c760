//! What an audit found: where, how bad, in words.

use std::fmt;

use crate::units::MetaBlock;

/// How bad a finding is, in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Unusual but harmless: other writers are known to do it.
    Note,
    /// Space that nothing uses and nobody will get; no data is at risk.
    Leak,
    /// A promise of the format is broken: data may be lost or served wrongly.
    Damage,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Note => "note",
            Self::Leak => "leak",
            Self::Damage => "damage",
        })
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The metadata block that says it, if it is one block.
    pub block: Option<MetaBlock>,
    /// The way to it: tree and blocks, root first.
    pub path: String,
    /// What is wrong, with the values.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: ", self.severity, self.path)?;
        if let Some(block) = self.block {
            write!(f, "metadata block {block}: ")?;
        }
        f.write_str(&self.what)
    }
}

/// The outcome of an audit.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct Report {
    /// What was found, in the order of the search; at most [`Report::FINDINGS_MAX`] of each severity.
    pub findings: Vec<Finding>,
    /// Findings beyond that number.
    pub omitted: u64,
    /// True if the pool carries the needs_check flag.
    pub needs_check: bool,
    /// True if a part could not be read, so that reference counts could not be compared.
    pub incomplete: bool,
    /// Thin devices.
    pub devices: u64,
    /// Mappings, summed over distinct leaves.
    pub mappings: u64,
    /// Metadata blocks in use, recounted.
    pub metadata_used: u64,
    /// Data blocks in use, recounted.
    pub data_used: u64,
    worst: Option<Severity>,
    counts: [usize; 3],
}

impl Report {
    /// Findings kept of each severity; a destroyed pool has millions.
    pub const FINDINGS_MAX: usize = 1000;

    /// The worst severity found, counting omitted findings.
    #[must_use]
    pub fn worst(&self) -> Option<Severity> {
        self.worst
    }

    /// True if there is nothing worse than notes.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.worst.is_none_or(|worst| worst == Severity::Note)
    }

    /// Adds a finding.
    pub(crate) fn add(&mut self, finding: Finding) {
        self.worst = self.worst.max(Some(finding.severity));
        let count = &mut self.counts[finding.severity as usize];
        *count += 1;
        if *count <= Self::FINDINGS_MAX {
            self.findings.push(finding);
        } else {
            self.omitted += 1;
        }
    }
}
