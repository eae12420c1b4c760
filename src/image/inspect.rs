//! Looks into an archive without importing it: which image an import would take, and of which layers.

use std::ops::ControlFlow;
use std::path::Path;

use crate::error::Result;
use crate::image::archive;
use crate::image::images::ImportRequest;
use crate::image::plan::Wanted;
use crate::image::platform::Platform;

/// An image in an archive, as its documents tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    /// Names that the archive tells, the fullest first.
    pub names: Vec<String>,
    /// What it runs on.
    pub platform: Platform,
    /// The lowest first; at least one.
    pub layers: Vec<InspectedLayer>,
}

/// A layer as the documents tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InspectedLayer {
    /// Digest of the packed bytes, if the archive tells it.
    pub digest: Option<String>,
    /// Digest of the unpacked bytes, if the archive tells it.
    pub diff_id: Option<String>,
    /// Bytes in the archive.
    pub packed_bytes: u64,
}

/// Opens the archive of `request` and finds the image in it, as an import begins: documents are read and checked against
/// their digests, layers are only looked up. `work_dir` takes temporary files, which are gone at return.
///
/// Errors: those of an import up to its first layer.
pub fn inspect(request: &ImportRequest, work_dir: &Path) -> Result<Inspected> {
    request.limits.check()?;
    let wanted = Wanted {
        reference: request.reference.as_deref(),
        platform: request.platform.as_ref(),
        limits: &request.limits,
    };
    let plan = archive::open(&request.source, wanted, work_dir, &|_| ControlFlow::Continue(()))?;
    let layers = plan.layers.iter().map(|layer| InspectedLayer {
        digest: layer.digest.as_ref().map(ToString::to_string),
        diff_id: layer.diff_id.as_ref().map(ToString::to_string),
        packed_bytes: layer.blob.len(),
    });
    Ok(Inspected { names: plan.names, platform: plan.platform, layers: layers.collect() })
}
