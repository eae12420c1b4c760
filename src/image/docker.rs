//! The format of `docker save`: `manifest.json` names a configuration and the layers' tars by path.

use crate::config::Limits;
use crate::error::{Error, ErrorKind, Result};
use crate::image::digest::Digest;
use crate::image::files::Files;
use crate::image::layer::Layer;
use crate::image::plan::{Config, Plan, Wanted, json, no_such_platform, no_such_reference, text};

/// One image in `manifest.json`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Finds the wanted image in an archive of `docker save`, whose old form names layers by an id of its own and whose new
/// form names them by digest.
pub(super) fn plan(files: &Files, wanted: Wanted<'_>) -> Result<Plan> {
    let limits = wanted.limits;
    let list = files.get("manifest.json")?.document(limits, None)?;
    let mut list: Vec<Saved> = json(&list, "manifest.json")?;
    if let Some(reference) = wanted.reference {
        let offered: Vec<String> = list.iter().flat_map(Saved::names).collect();
        list.retain(|saved| saved.is(reference));
        if list.is_empty() {
            return Err(no_such_reference(Some(reference), &offered));
        }
    }
    let mut configs: Vec<&str> = list.iter().map(|saved| saved.config.as_str()).collect();
    configs.dedup();
    let (Some(saved), true) = (list.first(), configs.len() <= 1) else {
        return Err(no_such_reference(None, &list.iter().flat_map(Saved::names).collect::<Vec<_>>()));
    };
    let told = digest_in_name(&saved.config);
    let bytes = files.get(&saved.config)?.document(limits, told.as_ref())?;
    let config = Config::parse(&bytes, &saved.config)?;
    let (offered, platform) = (config.platform(), wanted.platform());
    if !platform.accepts(&offered) {
        return Err(no_such_platform(&platform, &[offered]));
    }
    let diff_ids = config.diff_ids(saved.layers.len(), limits)?;
    let layer = |(path, diff_id): (&String, Digest)| {
        let blob = files.get(path)?;
        // The old form's ids look like digests, but are none: only what lies under blobs/ is named by its digest.
        let digest = if path.starts_with("blobs/sha256/") { digest_in_name(path) } else { None };
        Ok(Layer { blob, digest, diff_id: Some(diff_id) })
    };
    Ok(Plan {
        names: saved.repo_tags.clone().unwrap_or_default(),
        manifest_digest: None,
        config_digest: Some(Digest::of(&bytes)),
        platform: offered,
        layers: saved.layers.iter().zip(diff_ids).map(layer).collect::<Result<_>>()?,
        config: text(bytes, &saved.config)?,
    })
}

impl Saved {
    fn names(&self) -> Vec<String> {
        match &self.repo_tags {
            Some(tags) if !tags.is_empty() => tags.clone(),
            Some(_) | None => digest_in_name(&self.config).map(|digest| digest.to_string()).into_iter().collect(),
        }
    }

    fn is(&self, reference: &str) -> bool {
        self.names().iter().any(|name| name == reference)
            || digest_in_name(&self.config).is_some_and(|digest| digest.to_string() == reference)
    }
}

/// The digest in `blobs/sha256/HEX` or `HEX.json`.
fn digest_in_name(path: &str) -> Option<Digest> {
    let name = path.rsplit('/').next().unwrap_or(path);
    Digest::from_hex(name.strip_suffix(".json").unwrap_or(name))
}

/// Errors unless `manifest.json` is that of `docker save`: others use the name too.
pub(super) fn check_directory(files: &Files, limits: &Limits) -> Result<()> {
    let bytes = files.get("manifest.json")?.document(limits, None)?;
    serde_json::from_slice::<Vec<Saved>>(&bytes).map(drop).map_err(|error| {
        Error::with_source(ErrorKind::BadArchive, "manifest.json is not that of docker save", error)
            .advise("make an OCI layout or a docker archive of it, for instance with skopeo copy")
    })
}
