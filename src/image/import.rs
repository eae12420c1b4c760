//! One import: an archive opened, its layers laid down one on the other, its record put last.
//!
//! Each layer: the chain id is in the pool? Done. Else prepare a snapshot on the parent's chain id, mount it where nobody
//! sees it, lay the archive down and compare digests, write all out, unmount, commit under the chain id. Killed anywhere
//! before the commit, the active snapshot is left, which the next import removes; killed after it, the layer is whole and
//! the next import finds it.

use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::time::{SystemTime, UNIX_EPOCH};

use thinsnap_pool::PoolMode;

use crate::error::{Error, ErrorKind, Result};
use crate::fs::Detached;
use crate::image::archive;
use crate::image::digest::Digest;
use crate::image::images::{IMPORT_LABEL, Images, ImportRequest, Imported, LAYER_LABEL, Pin, check_image_name};
use crate::image::layer::{LaidLayer, Layer};
use crate::image::plan::{Plan, Wanted};
use crate::image::progress::{Phase, Progress, ProgressFn};
use crate::image::record::{ImageRecord, LayerRecord};
use crate::snapshot::{Labels, Name};
use crate::snapshotter::UNPACK_LABEL;

/// A pool with fewer free bytes is full as far as a layer is concerned: one write of a file system spans a few blocks.
const FULL_BELOW: u64 = 1 << 20;

/// A running import.
pub(super) struct Import<'a> {
    images: &'a Images,
    request: &'a ImportRequest,
    progress: ProgressFn<'a>,
    name: String,
    plan: Plan,
    unpacked_bytes: u64,
}

/// A layer that is in the pool.
struct Laid<'a> {
    chain_id: Digest,
    diff_id: Digest,
    is_new: bool,
    _pin: Pin<'a>,
}

impl<'a> Import<'a> {
    /// Opens the archive and finds the image in it; nothing has changed yet.
    pub(super) fn new(images: &'a Images, request: &'a ImportRequest, progress: ProgressFn<'a>) -> Result<Self> {
        // A bad name is told before an archive of gigabytes is read.
        request.name.as_deref().map_or(Ok(()), check_image_name)?;
        request.limits.check()?;
        let wanted = Wanted {
            reference: request.reference.as_deref(),
            platform: request.platform.as_ref(),
            limits: &request.limits,
        };
        let plan = archive::open(&request.source, wanted, &images.work_dir, progress)?;
        let name = request.name.as_ref().or(plan.names.first()).cloned().ok_or_else(|| {
            Error::new(ErrorKind::InvalidArgument, format!("{} tells no name for its image", request.source.display()))
                .advise("give it one with --name")
        })?;
        check_image_name(&name)?;
        Ok(Self { images, request, progress, name, plan, unpacked_bytes: 0 })
    }

    /// Lays the layers down and records the image.
    pub(super) fn run(mut self) -> Result<Imported> {
        let layers = std::mem::take(&mut self.plan.layers);
        let mut laid: Vec<Laid<'a>> = Vec::with_capacity(layers.len());
        for (index, layer) in layers.iter().enumerate() {
            let parent = laid.last().map(|below| below.chain_id.clone());
            let at = At { index, count: layers.len() };
            let done = self.layer(layer, parent.as_ref(), at);
            laid.push(done.map_err(|error| error.doing(format!("layer {} of {}", index + 1, layers.len())))?);
        }
        let records = laid.iter().zip(&layers).map(|(laid, layer)| LayerRecord {
            chain_id: laid.chain_id.to_string(),
            diff_id: laid.diff_id.to_string(),
            packed_bytes: layer.blob.len(),
        });
        let image = ImageRecord {
            name: self.name,
            manifest_digest: self.plan.manifest_digest.map(|digest| digest.to_string()),
            config_digest: self.plan.config_digest.map(|digest| digest.to_string()),
            platform: self.plan.platform.to_string(),
            layers: records.collect(),
            created_ns: now_ns(),
            config: self.plan.config,
        };
        self.images.record(&image)?;
        let layers_applied = laid.iter().filter(|laid| laid.is_new).count();
        Ok(Imported { image, layers_applied, layers_present: layers.len() - layers_applied })
    }

    fn layer(&mut self, layer: &Layer, parent: Option<&Digest>, at: At) -> Result<Laid<'a>> {
        let what = layer.diff_id.as_ref().map_or_else(|| layer.blob.name.clone(), ToString::to_string);
        let report = |phase, done| self.report(at, phase, &what, done, layer.blob.len());
        if let Some(diff_id) = &layer.diff_id {
            let chain_id = Digest::chain(parent, diff_id);
            let name = Name::new(chain_id.to_string())?;
            let pin = self.images.pin(&name);
            if self.images.holds(&name)? {
                go_on(report(Phase::Present, 0))?;
                return Ok(Laid { chain_id, diff_id: diff_id.clone(), is_new: false, _pin: pin });
            }
        }
        go_on(report(Phase::Applying, 0))?;
        let working = Working::prepare(self.images, parent, &what)?;
        let unpacked_max = self.request.limits.total.0.saturating_sub(self.unpacked_bytes);
        let on_bytes = |done| self.report(at, Phase::Applying, &what, done, layer.blob.len());
        let laid = working.lay_down(layer, &self.request.limits, unpacked_max, &on_bytes, || {
            go_on(self.report(at, Phase::Committing, &what, layer.blob.len(), layer.blob.len()))
        })?;
        self.unpacked_bytes += laid.unpacked_bytes;
        let chain_id = Digest::chain(parent, &laid.diff_id);
        let pin = self.images.pin(&Name::new(chain_id.to_string())?);
        let is_new = working.commit(&chain_id, &laid.diff_id)?;
        go_on(self.report(at, Phase::Done, &what, layer.blob.len(), layer.blob.len()))?;
        Ok(Laid { chain_id, diff_id: laid.diff_id, is_new, _pin: pin })
    }

    fn report(&self, at: At, phase: Phase, what: &str, bytes_done: u64, bytes_total: u64) -> ControlFlow<()> {
        let (layer, layers) = (at.index, at.count);
        (self.progress)(&Progress { phase, layer, layers, what: what.to_owned(), bytes_done, bytes_total })
    }
}

/// Which layer of how many.
#[derive(Debug, Clone, Copy)]
struct At {
    index: usize,
    count: usize,
}

/// The active snapshot that a layer is laid down on; removed on drop unless it was committed.
struct Working<'a> {
    images: &'a Images,
    key: Name,
    /// Taken back after the snapshot is gone, so that nobody else removes it meanwhile.
    _announced: crate::image::images::Announced<'a>,
    is_done: bool,
    mounts: Vec<crate::snapshot::Mount>,
}

impl<'a> Working<'a> {
    fn prepare(images: &'a Images, parent: Option<&Digest>, what: &str) -> Result<Self> {
        let key = Name::new(format!("import-{}", uuid::Uuid::new_v4()))?;
        let parent = parent.map(|digest| Name::new(digest.to_string())).transpose()?;
        let labels =
            [(IMPORT_LABEL, what), (UNPACK_LABEL, "import")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        let labels = Labels::from(labels);
        let announced = images.announce(&key);
        let mounts = images.snapshotter.prepare(&images.space, &key, parent.as_ref(), labels)?;
        Ok(Self { images, key, _announced: announced, is_done: false, mounts })
    }

    /// Mounts it, lays the layer down, writes everything to the device and unmounts.
    fn lay_down(
        &self,
        layer: &Layer,
        limits: &crate::config::Limits,
        unpacked_max: u64,
        on_bytes: crate::image::layer::OnBytes<'_>,
        before_sync: impl FnOnce() -> Result<()>,
    ) -> Result<LaidLayer> {
        let mount = self.mounts.first().expect("a prepared snapshot has a mount");
        let mounted = Detached::of(mount)?;
        let laid = layer.lay_down(mounted.as_fd(), limits, unpacked_max, on_bytes);
        let laid = laid.map_err(|error| self.blame_full_pool(error))?;
        before_sync()?;
        // Unmounting writes too, but tells nobody when it fails.
        let synced = mounted.sync().map_err(|error| Error::io("write the layer to the pool", error));
        synced.map_err(|error| self.blame_full_pool(error))?;
        Ok(laid)
    }

    /// A file system thinks that its device has room for all of its size, so when the pool is full it only sees a disk that
    /// fails: EIO, or a read-only mount. The pool knows better.
    fn blame_full_pool(&self, error: Error) -> Error {
        if !matches!(error.kind(), ErrorKind::Internal | ErrorKind::ReadOnly) {
            return error;
        }
        match self.images.snapshotter.pool().status() {
            Ok(status) if status.mode == PoolMode::OutOfDataSpace || status.data.free().0 < FULL_BELOW => {
                Error::with_source(ErrorKind::NoSpace, "the pool has no free data blocks", error)
                    .advise("remove images or containers, or grow it: thinsnap pool grow --data SIZE")
            }
            Ok(_) => error,
            Err(unknown) => {
                tracing::warn!("cannot ask the pool why a layer could not be written: {unknown}");
                error
            }
        }
    }

    /// Makes it the layer of its chain id. False if another import has brought the same layer meanwhile.
    fn commit(mut self, chain_id: &Digest, diff_id: &Digest) -> Result<bool> {
        let name = Name::new(chain_id.to_string())?;
        let labels = Labels::from([(LAYER_LABEL.to_owned(), diff_id.to_string())]);
        match self.images.snapshotter.commit(&self.images.space, &name, &self.key, labels, None) {
            Ok(()) => {
                self.is_done = true;
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists && self.images.holds(&name)? => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        if let Err(error) = self.images.snapshotter.remove(&self.images.space, &self.key) {
            // The next import tries again.
            tracing::warn!(snapshot = %self.key, "cannot remove the snapshot of an import that failed: {error}");
        }
    }
}

fn go_on(answer: ControlFlow<()>) -> Result<()> {
    match answer {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::new(ErrorKind::Unavailable, "the import was stopped as asked")),
    }
}

/// Nanoseconds since the epoch; the clock stands between 1970 and 2262.
fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
