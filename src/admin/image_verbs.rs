//! The image verbs of the admin service.

use std::ops::ControlFlow;
use std::path::PathBuf;

use crate::admin::protocol::api;
use crate::admin::snapshot_verbs::time_text;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{ImageRecord, Images, ImportRequest, Limits, Phase, Platform, Progress};

/// Imports within `limits`; `report` gets the progress and says whether to go on.
pub(super) fn import(
    images: &Images,
    request: api::ImageImportRequest,
    limits: Limits,
    report: impl Fn(api::Progress) -> ControlFlow<()> + Sync,
) -> Result<api::ImageImported> {
    let source = PathBuf::from(request.source);
    if !source.is_absolute() {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("import {}: not an absolute path", source.display()),
        ));
    }
    let request = ImportRequest {
        source,
        name: request.name,
        reference: request.reference,
        platform: request.platform.map(|text| text.parse::<Platform>()).transpose()?,
        limits,
    };
    let imported = images.import(&request, &|progress| report(shown(progress)))?;
    Ok(api::ImageImported {
        image: Some(record(imported.image)),
        layers_applied: count(imported.layers_applied),
        layers_present: count(imported.layers_present),
    })
}

pub(super) fn list(images: &Images) -> Result<api::ImageListReply> {
    Ok(api::ImageListReply { images: images.list()?.into_iter().map(record).collect() })
}

pub(super) fn remove(images: &Images, request: &api::ImageRequest) -> Result<api::ImageRemoveReply> {
    let removed = images.remove(&request.name)?;
    Ok(api::ImageRemoveReply { removed: removed.image.name, layers_removed: count(removed.layers_removed) })
}

fn shown(progress: &Progress) -> api::Progress {
    let place = format!("layer {} of {}", progress.layer + 1, progress.layers);
    let stage = match progress.phase {
        Phase::Opening => format!("reading {}", progress.what),
        Phase::Present => format!("{place} is there already"),
        Phase::Applying => format!("unpacking {place}"),
        Phase::Committing => format!("committing {place}"),
        Phase::Done => format!("{place} done"),
    };
    api::Progress { stage, done: progress.bytes_done, total: progress.bytes_total, unit: "bytes".to_owned() }
}

fn record(image: ImageRecord) -> api::Image {
    api::Image {
        name: image.name,
        manifest_digest: image.manifest_digest,
        config_digest: image.config_digest,
        platform: image.platform,
        layers: image
            .layers
            .into_iter()
            .map(|layer| api::ImageLayer {
                chain_id: layer.chain_id,
                diff_id: layer.diff_id,
                packed_bytes: layer.packed_bytes,
            })
            .collect(),
        created_at: time_text(image.created_ns),
    }
}

fn count(layers: usize) -> u64 {
    u64::try_from(layers).expect("a usize has at most 64 bits")
}
