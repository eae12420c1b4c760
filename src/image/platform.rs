//! Operating system and architecture of an image, in the words of the OCI image specification.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

/// What an image runs on: `linux/amd64`, `linux/arm64/v8`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// Go's word for the processor: `amd64`, `arm64`.
    pub architecture: String,
    /// A version of the processor: `v7`, `v8`.
    pub variant: Option<String>,
}

impl Platform {
    /// The platform of this build.
    #[must_use]
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", None),
            "x86" => ("386", None),
            "arm" => ("arm", None),
            "powerpc64" => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant }
    }

    /// True if an image of platform `offered` serves who asks for `self`: a variant that is not asked for, or
    /// not told, does not part them.
    #[must_use]
    pub fn accepts(&self, offered: &Self) -> bool {
        let variants = match (&self.variant, &offered.variant) {
            (Some(asked), Some(told)) => asked == told,
            (None | Some(_), None) | (None, Some(_)) => true,
        };
        self.os == offered.os && self.architecture == offered.architecture && variants
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if let Some(variant) = &self.variant {
            write!(f, "/{variant}")?;
        }
        Ok(())
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut parts = text.split('/');
        let (os, architecture) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let variant = parts.next();
        if os.is_empty() || architecture.is_empty() || variant == Some("") || parts.next().is_some() {
            return Err(Error::new(ErrorKind::InvalidArgument, format!("platform {text:?} is not os/arch[/variant]"))
                .advise("for instance linux/amd64 or linux/arm64/v8"));
        }
        Ok(Self { os: os.to_owned(), architecture: architecture.to_owned(), variant: variant.map(str::to_owned) })
    }
}
