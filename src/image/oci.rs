//! The OCI image layout: `index.json` leads through indexes to a manifest, which names a configuration and layers by digest.

use std::collections::HashMap;

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};

use crate::config::Limits;
use crate::error::{Error, ErrorKind, Result};
use crate::image::digest::Digest;
use crate::image::files::Files;
use crate::image::layer::Layer;
use crate::image::plan::{Config, Plan, Wanted, json, no_such_platform, no_such_reference, text};
use crate::image::platform::Platform;

const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFESTS: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
const LAYERS: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];

/// The layout's own version file.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayoutVersion {
    image_layout_version: String,
}

/// A manifest that an index leads to.
struct Found {
    descriptor: Descriptor,
    platform: Platform,
}

/// Reads a layout's documents.
struct Layout<'a> {
    files: &'a Files,
    wanted: Wanted<'a>,
    documents: usize,
}

/// Finds the wanted image in an OCI layout.
pub(super) fn plan(files: &Files, wanted: Wanted<'_>) -> Result<Plan> {
    let mut layout = Layout { files, wanted, documents: 0 };
    let version = files.get("oci-layout")?.document(wanted.limits, None)?;
    let version = json::<LayoutVersion>(&version, "oci-layout")?.image_layout_version;
    if !version.starts_with("1.") {
        return Err(Error::new(ErrorKind::Unsupported, format!("an OCI layout of version {version:?}")));
    }
    let index = files.get("index.json")?.document(wanted.limits, None)?;
    let index: ImageIndex = json(&index, "index.json")?;
    let tops: Vec<&Descriptor> = index.manifests().iter().filter(|top| !is_attestation(top)).collect();
    let offered: Vec<String> = tops.iter().flat_map(|top| shown_names(top)).collect();
    let mut chosen: Vec<&Descriptor> = match wanted.reference {
        None => tops,
        Some(reference) => tops.into_iter().filter(|top| is_named(top, reference)).collect(),
    };
    if chosen.is_empty() {
        return Err(no_such_reference(wanted.reference, &offered));
    }
    let platform = wanted.platform();
    let (mut fitting, mut platforms) = (Vec::new(), Vec::new());
    chosen.dedup_by(|a, b| a.digest() == b.digest());
    for top in chosen {
        let mut found = Vec::new();
        layout.follow(top, 0, &mut found)?;
        platforms.extend(found.iter().map(|manifest| manifest.platform.clone()));
        if let Some(manifest) = found.into_iter().find(|manifest| platform.accepts(&manifest.platform)) {
            fitting.push((top, manifest));
        }
    }
    match fitting.as_slice() {
        [] => Err(no_such_platform(&platform, &platforms)),
        [(top, manifest)] => layout.plan(names(top), manifest),
        [(_, first), others @ ..] if others.iter().all(|(_, o)| o.descriptor.digest() == first.descriptor.digest()) => {
            let names = fitting.iter().flat_map(|(top, _)| names(top)).collect();
            layout.plan(names, first)
        }
        _ => Err(no_such_reference(None, &offered)),
    }
}

impl Layout<'_> {
    /// Gathers the manifests that a descriptor leads to.
    fn follow(&mut self, descriptor: &Descriptor, depth: usize, found: &mut Vec<Found>) -> Result<()> {
        let media_type = descriptor.media_type().to_string();
        if MANIFESTS.contains(&media_type.as_str()) {
            self.count_document()?;
            let platform = match descriptor.platform() {
                Some(told) => platform_of(told),
                None => self.platform_in_config(descriptor)?,
            };
            found.push(Found { descriptor: descriptor.clone(), platform });
            return Ok(());
        }
        if !INDEXES.contains(&media_type.as_str()) {
            return Err(Error::new(ErrorKind::Unsupported, format!("a manifest of type {media_type:?}")));
        }
        let deepest = self.wanted.limits.index_depth;
        if depth >= deepest {
            let reason = Limits::over("index_depth", format_args!("indexes in indexes, more than {deepest} deep"));
            return Err(Error::new(ErrorKind::BadArchive, reason));
        }
        let index: ImageIndex = json(&self.document(descriptor)?, descriptor.digest().as_ref())?;
        for child in index.manifests().iter().filter(|child| !is_attestation(child)) {
            self.follow(child, depth + 1, found)?;
        }
        Ok(())
    }

    /// For manifests whose index does not tell their platform.
    fn platform_in_config(&mut self, descriptor: &Descriptor) -> Result<Platform> {
        let manifest = self.manifest(descriptor)?;
        let (bytes, what) = self.config(&manifest)?;
        Ok(Config::parse(&bytes, &what)?.platform())
    }

    fn plan(&mut self, names: Vec<String>, found: &Found) -> Result<Plan> {
        let manifest = self.manifest(&found.descriptor)?;
        let (bytes, what) = self.config(&manifest)?;
        let config = Config::parse(&bytes, &what)?;
        let diff_ids = config.diff_ids(manifest.layers().len(), self.wanted.limits)?;
        let layers = manifest.layers().iter().zip(diff_ids).map(|(layer, diff_id)| self.layer(layer, diff_id));
        Ok(Plan {
            names,
            manifest_digest: Some(digest_of(&found.descriptor)?),
            config_digest: Some(digest_of(manifest.config())?),
            platform: config.platform(),
            layers: layers.collect::<Result<_>>()?,
            config: text(bytes, &what)?,
        })
    }

    fn manifest(&mut self, descriptor: &Descriptor) -> Result<ImageManifest> {
        json(&self.document(descriptor)?, descriptor.digest().as_ref())
    }

    fn config(&mut self, manifest: &ImageManifest) -> Result<(Vec<u8>, String)> {
        let descriptor = manifest.config();
        let media_type = descriptor.media_type().to_string();
        if !CONFIGS.contains(&media_type.as_str()) {
            let reason = format!("a configuration of type {media_type:?}: it is not a container image");
            return Err(Error::new(ErrorKind::Unsupported, reason));
        }
        Ok((self.document(descriptor)?, descriptor.digest().to_string()))
    }

    fn layer(&self, descriptor: &Descriptor, diff_id: Digest) -> Result<Layer> {
        let media_type = descriptor.media_type().to_string();
        let plain = ["+gzip", "+zstd", ".gzip", ".zstd"].iter().find_map(|suffix| media_type.strip_suffix(suffix));
        if !LAYERS.contains(&plain.unwrap_or(&media_type)) {
            return Err(Error::new(ErrorKind::Unsupported, format!("a layer of type {media_type:?}")));
        }
        let digest = digest_of(descriptor)?;
        let blob = self.files.get(&path_of(&digest))?;
        blob.check_size(descriptor.size())?;
        Ok(Layer { blob, digest: Some(digest), diff_id: Some(diff_id) })
    }

    /// One more document read or manifest found: an index of a few MiB names tens of thousands, and indexes may name
    /// the same children again and again.
    fn count_document(&mut self) -> Result<()> {
        self.documents += 1;
        let most = self.wanted.limits.documents;
        if self.documents > most {
            let reason = Limits::over("documents", format_args!("more than {most} documents about one image"));
            return Err(Error::new(ErrorKind::BadArchive, reason));
        }
        Ok(())
    }

    /// The document that a descriptor names, its size and digest checked.
    fn document(&mut self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        self.count_document()?;
        let digest = digest_of(descriptor)?;
        let blob = self.files.get(&path_of(&digest))?;
        blob.check_size(descriptor.size())?;
        blob.document(self.wanted.limits, Some(&digest))
    }
}

fn digest_of(descriptor: &Descriptor) -> Result<Digest> {
    descriptor.digest().to_string().parse()
}

fn path_of(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn platform_of(told: &oci_spec::image::Platform) -> Platform {
    let variant = told.variant().clone().filter(|variant| !variant.is_empty());
    Platform { os: told.os().to_string(), architecture: told.architecture().to_string(), variant }
}

/// True for what builders put beside an image to tell how it was made.
fn is_attestation(descriptor: &Descriptor) -> bool {
    let kind = descriptor.annotations().as_ref().and_then(|notes| notes.get("vnd.docker.reference.type"));
    let unknown = descriptor.platform().as_ref().is_some_and(|told| told.os().to_string() == "unknown");
    kind.is_some_and(|kind| kind == "attestation-manifest") || unknown
}

/// Names in the annotations: containerd's is the whole reference, OCI's is often only the tag.
fn names(descriptor: &Descriptor) -> Vec<String> {
    let told = |key: &str| descriptor.annotations().as_ref().and_then(|notes: &HashMap<_, _>| notes.get(key).cloned());
    let mut names: Vec<String> = ["io.containerd.image.name", "org.opencontainers.image.ref.name"]
        .into_iter()
        .filter_map(told)
        .filter(|name| !name.is_empty())
        .collect();
    names.dedup();
    names
}

/// One name for each image in an error: its own, or its digest.
fn shown_names(descriptor: &Descriptor) -> Vec<String> {
    let name = names(descriptor).into_iter().next().unwrap_or_else(|| descriptor.digest().to_string());
    vec![name]
}

fn is_named(descriptor: &Descriptor, reference: &str) -> bool {
    names(descriptor).iter().any(|name| name == reference) || descriptor.digest().to_string() == reference
}
