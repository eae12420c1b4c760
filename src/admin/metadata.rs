//! Reads a pool's metadata for `pool check` and `pool dump`: a bare file or device, or that of a pool in use.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use thinsnap_pool::{DumpSource, FileDevice, PoolPaths, Severity, audit, dump, live_copy};

use crate::admin::protocol::api;
use crate::error::{Error, ErrorKind, Result};

/// Copies of one process: two checks at once have a file each.
static COPIES: AtomicU64 = AtomicU64::new(0);

/// Metadata, opened for reading.
pub struct MetadataReader(FileDevice);

impl MetadataReader {
    /// A file or device that nobody writes to. Errors: `NotFound`, `InUse`.
    pub fn bare(path: &Path) -> Result<Self> {
        let real = path.canonicalize().map_err(|error| Error::io(format!("open {}", path.display()), error))?;
        FileDevice::open_read_only(&real).map(Self).map_err(|error| match error.kind() {
            thinsnap_pool::ErrorKind::InUse => {
                Error::from(error).advise("leave --metadata out: then a consistent copy is read while it is in use")
            }
            _ => error.into(),
        })
    }

    /// The metadata of a pool, which a pool-host may be serving: then a consistent copy, made in `work_dir`.
    pub fn of_pool(paths: &PoolPaths, work_dir: &Path) -> Result<Self> {
        match FileDevice::open_read_only(&paths.metadata) {
            Ok(device) => return Ok(Self(device)),
            Err(error) if error.kind() == thinsnap_pool::ErrorKind::InUse => {}
            Err(error) => return Err(error.into()),
        }
        std::fs::create_dir_all(work_dir)
            .map_err(|error| Error::io(format!("make the directory {}", work_dir.display()), error))?;
        let name = format!("metadata-{}-{}", std::process::id(), COPIES.fetch_add(1, Ordering::Relaxed));
        live_copy(&paths.metadata, &work_dir.join(name)).map(Self).map_err(|error| match error.kind() {
            thinsnap_pool::ErrorKind::InUse => {
                Error::from(error).advise("try again when less is written, or stop the service first")
            }
            _ => error.into(),
        })
    }

    /// Audits it. Errors: `NotFound` if it holds no pool.
    pub fn check(&self, progress: &dyn Fn(api::Progress)) -> Result<api::PoolCheckReport> {
        let report = audit(&self.0, &|step| {
            progress(api::Progress {
                stage: "checking metadata".to_owned(),
                done: step.checked_blocks,
                total: step.used_blocks,
                unit: "blocks".to_owned(),
            });
        })?;
        Ok(api::PoolCheckReport {
            sound: report.is_sound() && !report.incomplete,
            damaged: report.worst() == Some(Severity::Damage) || report.incomplete,
            needs_check: report.needs_check,
            incomplete: report.incomplete,
            findings: report
                .findings
                .into_iter()
                .map(|finding| api::Finding {
                    severity: finding.severity.to_string(),
                    block: finding.block.map(|block| block.0),
                    path: finding.path,
                    what: finding.what,
                })
                .collect(),
            omitted: report.omitted,
            devices: report.devices,
            mappings: report.mappings,
            metadata_blocks_used: report.metadata_used,
            data_blocks_used: report.data_used,
        })
    }

    /// Writes thin_dump's XML. Errors: `NotFound` (no pool; nothing is held), `Corrupt`.
    pub fn dump(&self, held: bool, out: &mut dyn Write) -> Result<()> {
        Ok(dump(&self.0, if held { DumpSource::Held } else { DumpSource::Live }, out)?)
    }
}

/// Removes the copies of a process that died between making one and taking its name away.
pub(super) fn clear_copies(work_dir: &Path) -> Result<()> {
    let doing = || format!("clear the directory {}", work_dir.display());
    let entries = match std::fs::read_dir(work_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(doing(), error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| Error::io(doing(), error))?;
        if entry.file_name().to_string_lossy().starts_with("metadata-") {
            std::fs::remove_file(entry.path()).map_err(|error| Error::io(doing(), error))?;
        }
    }
    Ok(())
}

/// Turns a failed audit's findings into the error that the exit status hangs on.
pub fn verdict(report: &api::PoolCheckReport) -> Result<()> {
    if report.sound {
        return Ok(());
    }
    let what = if report.damaged { "the metadata is damaged" } else { "the metadata leaks space" };
    Err(Error::new(ErrorKind::Corrupt, what)
        .advise("stop the service, copy the metadata aside, then thin_repair (thin-provisioning-tools) from the copy"))
}
