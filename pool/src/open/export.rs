//! Chooses the way in which the embedded engine shows its devices, and begins it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::error::{ErrorKind, Result};
use crate::export::{ExportOptions, Exporter, FuseExporter, UblkExporter, has_ublk_devices, probe_ublk};

/// How the embedded engine shows its devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Export {
    /// ublk where the kernel's is fit for it (Linux 6.16), else FUSE.
    Auto,
    /// Block devices of the kernel's ublk driver (Linux 6.5).
    Ublk,
    /// Loop devices over the files of a FUSE filesystem.
    Fuse,
}

/// The way for a pool whose host leaves nothing behind, and why it is that one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportChoice {
    /// True: ublk; false: FUSE.
    pub ublk: bool,
    /// For people: what decided it, and what is missing for the other one.
    pub why: String,
}

/// Why a driver that can do all that is needed is left alone.
const UNFIT: &str = "this kernel's may stop the devices for good when their pool-host dies or is replaced under load (Linux \
                     6.16 does not)";

/// Decides by what this machine can do. Errors, for [`Export::Ublk`] only: `Unsupported`, `Denied`.
pub fn choose_export(wanted: Export) -> Result<ExportChoice> {
    if wanted == Export::Fuse {
        return Ok(ExportChoice { ublk: false, why: "FUSE was asked for".to_owned() });
    }
    let chosen = |ublk, why: String| Ok(ExportChoice { ublk, why });
    match probe_ublk() {
        Ok(true) => chosen(true, "the kernel has ublk, and goes on after a death".to_owned()),
        Ok(false) if wanted == Export::Auto => chosen(false, format!("ublk is there, but {UNFIT}")),
        Ok(false) => chosen(true, format!("ublk was asked for, although {UNFIT}")),
        Err(e) if wanted == Export::Auto && matches!(e.kind(), ErrorKind::Unsupported | ErrorKind::Denied) => {
            chosen(false, format!("ublk is not to be had: {e}"))
        }
        Err(e) => Err(e.doing("choose ublk for the export")),
    }
}

/// Begins an exporter. What a dead process left behind goes on as it was, whatever is wanted: its devices cannot change
/// the way in which they are shown. `descriptors` are what [`Exporter::descriptors`] of a dead process gave. Errors: as
/// [`choose_export`], [`FuseExporter::begin`] and [`UblkExporter::begin`].
pub fn begin_export(wanted: Export, options: ExportOptions, descriptors: Vec<OwnedFd>) -> Result<Arc<dyn Exporter>> {
    let choice = if !descriptors.is_empty() {
        ExportChoice { ublk: false, why: "a host before this one shows its devices by FUSE".to_owned() }
    } else if has_ublk_devices(&options.dir) {
        ExportChoice { ublk: true, why: "a host before this one left ublk devices".to_owned() }
    } else {
        choose_export(wanted)?
    };
    tracing::info!(export = if choice.ublk { "ublk" } else { "fuse" }, why = choice.why, "shows devices");
    Ok(if choice.ublk {
        Arc::new(UblkExporter::begin(options)?)
    } else {
        Arc::new(FuseExporter::begin(options, descriptors)?)
    })
}
