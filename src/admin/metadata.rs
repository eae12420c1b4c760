//! Reads a pool's metadata for `pool check` and `pool dump`: a bare file or device, or that of a pool in use.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thinsnap_pool::{
    BlockDevice, ConnectOptions, DumpSource, FileDevice, HostClient, Report, Severity, ThinPool, ViewDevice, audit,
    dump, kernel_serves, open_kernel,
};

use crate::admin::backend::host_socket_of;
use crate::admin::engine::kernel_options;
use crate::admin::pool_files::pool_paths_of;
use crate::admin::protocol::api;
use crate::admin::store_check::judge_store;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Reader;

/// Views that are begun for one answer: a pool gives one up only when metadata is short, or with its host.
const VIEWS_MAX: u32 = 3;
/// Longest wait for the handshake of a pool-host.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Metadata that can be read.
pub enum MetadataReader {
    /// A file or device that nobody writes to.
    Bare(Arc<FileDevice>),
    /// That of a pool whose host goes on writing: each answer is of one view.
    Served {
        /// Where the metadata stands.
        path: PathBuf,
        /// Who serves it.
        pool: Arc<dyn ThinPool>,
    },
}

impl MetadataReader {
    /// A file or device that nobody writes to. Errors: `NotFound`, `InUse`.
    pub fn bare(path: &Path) -> Result<Self> {
        let real = path.canonicalize().map_err(|error| Error::io(format!("open {}", path.display()), error))?;
        FileDevice::open_read_only(&real).map(|device| Self::Bare(Arc::new(device))).map_err(|error| {
            match error.kind() {
                thinsnap_pool::ErrorKind::InUse => {
                    Error::from(error).advise("leave --metadata out: then a consistent view is read while it is in use")
                }
                _ => error.into(),
            }
        })
    }

    /// The metadata of a configuration's pool without a service; a pool-host or the kernel may be serving it all the
    /// same.
    pub fn of_pool(config: &Config) -> Result<Self> {
        let paths = &pool_paths_of(&config.root);
        // What hinders this question is wrong with the metadata, and told by who reads it below.
        if kernel_serves(paths, &kernel_options(config)).unwrap_or(false) {
            let pool = open_kernel(paths, &kernel_options(config))?;
            return Ok(Self::Served { path: paths.metadata.clone(), pool });
        }
        match FileDevice::open_read_only(&paths.metadata) {
            Ok(device) => return Ok(Self::Bare(Arc::new(device))),
            Err(error) if error.kind() == thinsnap_pool::ErrorKind::InUse => {}
            Err(error) => return Err(error.into()),
        }
        let options = ConnectOptions {
            socket: host_socket_of(&config.run_dir),
            identity: None,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            // Nobody here would start another host.
            patience: Duration::ZERO,
        };
        let pool = HostClient::connect(options).map_err(|error| {
            Error::with_source(ErrorKind::InUse, format!("{} is in use", paths.metadata.display()), error)
                .advise("stop who has it; `thinsnap doctor` says who")
        })?;
        Ok(Self::Served { path: paths.metadata.clone(), pool: Arc::new(pool) })
    }

    /// Gives `read` the metadata to read, once more if a view was given up meanwhile. Errors: `InUse` if that
    /// happens again and again.
    pub fn read<T>(&self, read: &mut dyn FnMut(&dyn BlockDevice) -> Result<T>) -> Result<T> {
        let (path, pool) = match self {
            Self::Bare(device) => return read(&**device),
            Self::Served { path, pool } => (path, pool),
        };
        for _ in 0..VIEWS_MAX {
            if let Some(value) = in_one_view(path, &**pool, read)? {
                return Ok(value);
            }
        }
        Err(Error::new(ErrorKind::InUse, format!("read {} while it is in use", path.display()))
            .advise("metadata space is short: grow it (thinsnap pool grow --metadata SIZE), then try again"))
    }

    /// Audits it, and the records against it. Errors: `NotFound` if it holds no pool.
    pub fn check(
        &self,
        store: Option<&Reader>,
        progress: &(dyn Fn(api::Progress) + Sync),
    ) -> Result<api::PoolCheckReport> {
        let (report, findings) = self.read(&mut |device| {
            let report = audit(device, &|step| {
                progress(api::Progress {
                    stage: "checking metadata".to_owned(),
                    done: step.checked_blocks,
                    total: step.used_blocks,
                    unit: "blocks".to_owned(),
                });
            })?;
            let sound = report.is_sound() && !report.incomplete;
            // Against damaged metadata every record would look wrong.
            let findings = match store.filter(|_| sound) {
                Some(store) => judge_store(store, device)?,
                None => Vec::new(),
            };
            Ok((report, findings))
        })?;
        let mut told = told(report);
        for finding in findings {
            told.sound &= finding.severity != Severity::Damage.to_string();
            told.damaged |= finding.severity == Severity::Damage.to_string();
            told.findings.push(finding);
        }
        Ok(told)
    }

    /// Writes thin_dump's XML. Errors: `NotFound` (no pool; nothing is held), `Corrupt`, `InUse` if the view was
    /// given up in the middle: what was written is worth nothing then.
    pub fn dump(&self, held: bool, out: &mut dyn Write) -> Result<()> {
        let source = if held { DumpSource::Held } else { DumpSource::Live };
        let (path, pool) = match self {
            Self::Bare(device) => return Ok(dump(&**device, source, out)?),
            Self::Served { path, pool } => (path, pool),
        };
        in_one_view(path, &**pool, &mut |device| Ok(dump(device, source, out)?))?.ok_or_else(|| {
            Error::new(ErrorKind::InUse, format!("dump {}: it changed while it was read", path.display()))
                .advise("run the same command again")
        })
    }
}

/// What `read` made of one view; `None` if the view was given up before the end, and what was read may be anything.
fn in_one_view<T>(
    path: &Path,
    pool: &dyn ThinPool,
    read: &mut dyn FnMut(&dyn BlockDevice) -> Result<T>,
) -> Result<Option<T>> {
    let view = pool.begin_view()?;
    let outcome = ViewDevice::open(path, &view).map_err(Error::from).and_then(|device| read(&device));
    if pool.end_view(view.number)? { outcome.map(Some) } else { Ok(None) }
}

/// A report in the service's words.
fn told(report: Report) -> api::PoolCheckReport {
    api::PoolCheckReport {
        sound: report.is_sound() && !report.incomplete,
        damaged: report.worst() == Some(Severity::Damage) || report.incomplete,
        needs_check: report.needs_check,
        incomplete: report.incomplete,
        omitted: report.omitted,
        devices: report.devices,
        mappings: report.mappings,
        metadata_blocks_used: report.metadata_used,
        data_blocks_used: report.data_used,
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
    }
}

/// Turns a failed audit's findings into the error that the exit status hangs on.
pub fn verdict(report: &api::PoolCheckReport) -> Result<()> {
    if report.sound {
        return Ok(());
    }
    let what = if report.damaged { "the metadata is damaged" } else { "the metadata leaks space" };
    Err(Error::new(ErrorKind::Corrupt, what)
        .advise("stop the service, then `thinsnap pool repair --dry-run` says what can be saved"))
}
