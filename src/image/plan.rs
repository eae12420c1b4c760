//! What an archive turned out to hold: the layers to lay down, and what to keep on record about them.

use crate::config::Limits;
use crate::error::{Error, ErrorKind, Result};
use crate::image::digest::Digest;
use crate::image::layer::Layer;
use crate::image::platform::Platform;

/// Which of the images in an archive is wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// A reference or tag as the archive spells it, or a digest; `None`: the only one.
    pub(super) reference: Option<&'a str>,
    /// `None`: the host's.
    pub(super) platform: Option<&'a Platform>,
    pub(super) limits: &'a Limits,
}

impl Wanted<'_> {
    /// The platform, the host's if none was asked for.
    pub(super) fn platform(&self) -> Platform {
        self.platform.cloned().unwrap_or_else(Platform::host)
    }
}

/// One image, found and checked as far as its documents go.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Names that the archive tells, the fullest first.
    pub(super) names: Vec<String>,
    pub(super) manifest_digest: Option<Digest>,
    pub(super) config_digest: Option<Digest>,
    /// The configuration as it came.
    pub(super) config: String,
    pub(super) platform: Platform,
    /// The lowest first; at least one.
    pub(super) layers: Vec<Layer>,
}

/// The part of an image's configuration that an import needs. Only this much is parsed: what odd programs write into the
/// rest is the container runtime's business, and kept as it came.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Config {
    pub(super) os: String,
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) variant: Option<String>,
    pub(super) rootfs: RootFs,
}

/// The layers that a configuration names.
#[derive(Debug, serde::Deserialize)]
pub(super) struct RootFs {
    pub(super) diff_ids: Vec<String>,
}

impl Config {
    /// Errors with `BadArchive` naming `what`.
    pub(super) fn parse(bytes: &[u8], what: &str) -> Result<Self> {
        json(bytes, what)
    }

    /// The platform of the image.
    pub(super) fn platform(&self) -> Platform {
        let variant = self.variant.clone().filter(|variant| !variant.is_empty());
        Platform { os: self.os.clone(), architecture: self.architecture.clone(), variant }
    }

    /// The diff ids, if there are as many as `layers` and no more than `limits` allow.
    pub(super) fn diff_ids(&self, layers: usize, limits: &Limits) -> Result<Vec<Digest>> {
        let told = self.rootfs.diff_ids.len();
        if told != layers {
            let reason = format!("the manifest has {layers} layers, the configuration {told} diff ids");
            return Err(Error::new(ErrorKind::BadArchive, reason));
        }
        if layers == 0 {
            return Err(Error::new(ErrorKind::Unsupported, "an image without layers"));
        }
        if layers > limits.layers {
            let reason = Limits::over("layers", format_args!("{layers} layers; the limit is {}", limits.layers));
            return Err(Error::new(ErrorKind::BadArchive, reason));
        }
        self.rootfs.diff_ids.iter().map(|text| text.parse()).collect()
    }
}

/// A JSON document. Errors with `BadArchive` naming `what`.
pub(super) fn json<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::with_source(ErrorKind::BadArchive, format!("{what} is not what it should be"), error))
}

/// The configuration's text, for the record.
pub(super) fn text(bytes: Vec<u8>, what: &str) -> Result<String> {
    String::from_utf8(bytes)
        .map_err(|error| Error::with_source(ErrorKind::BadArchive, format!("{what} is not text"), error))
}

/// The error for an image that is there, but not for the platform that is wanted.
pub(super) fn no_such_platform(wanted: &Platform, offered: &[Platform]) -> Error {
    let mut offered: Vec<String> = offered.iter().map(ToString::to_string).collect();
    offered.sort();
    offered.dedup();
    Error::new(ErrorKind::NotFound, format!("the image is not for {wanted}; it is for {}", listed(&offered)))
        .advise("choose one of them with --platform")
}

/// The error for an archive of several images, or without the one that is wanted.
pub(super) fn no_such_reference(wanted: Option<&str>, offered: &[String]) -> Error {
    let reason = match wanted {
        Some(wanted) => format!("the archive holds no image {wanted:?}; it holds {}", listed(offered)),
        None if offered.is_empty() => return Error::new(ErrorKind::NotFound, "the archive holds no image"),
        None => format!("the archive holds several images: {}", listed(offered)),
    };
    let kind = if wanted.is_some() { ErrorKind::NotFound } else { ErrorKind::InvalidArgument };
    Error::new(kind, reason).advise("choose one of them with --reference")
}

/// At most twenty of them, with commas.
fn listed(items: &[String]) -> String {
    const SHOWN_MAX: usize = 20;
    match items.len() {
        0 => "none".to_owned(),
        len if len <= SHOWN_MAX => items.join(", "),
        len => format!("{} and {} more", items[..SHOWN_MAX].join(", "), len - SHOWN_MAX),
    }
}
