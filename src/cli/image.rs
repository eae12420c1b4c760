//! `thinsnap image`: import, list, remove.

use std::path::PathBuf;

use clap::Subcommand;

use crate::admin::api::{self, image_import_reply::Step};
use crate::cli::args::{Global, examples};
use crate::cli::output::Output;
use crate::cli::render::{clean, count, size, table, time};
use crate::cli::session::{Bar, with_service};
use crate::error::{Error, ErrorKind, Result};
use crate::grpc::error_of;

/// The verbs of images.
#[derive(Debug, Subcommand)]
pub enum ImageVerb {
    /// Unpack an OCI layout, a `docker save` archive or a root file system tar into thin snapshots
    #[command(after_help = examples!(
        "thinsnap image import debian.tar --name debian:12",
        "thinsnap image import ./oci-layout --reference v2 --platform linux/amd64 --json",
    ))]
    Import {
        /// Directory or archive (plain, gzip or zstd), as the service's machine sees it
        #[arg(value_name = "PATH")]
        source: PathBuf,
        /// Name to keep it under; needed where the archive tells none
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Which image of an archive that holds several
        #[arg(long, value_name = "REFERENCE")]
        reference: Option<String>,
        /// Which platform of an image for several [default: this machine's]
        #[arg(long, value_name = "OS/ARCH")]
        platform: Option<String>,
    },
    /// List images
    #[command(after_help = examples!("thinsnap image ls", "thinsnap image ls --json"))]
    Ls,
    /// Remove an image, with those of its layers that nothing else uses
    ///
    /// Nothing is asked: the one name on the command line is what goes, and nothing that others use goes with it.
    #[command(after_help = examples!("thinsnap image rm debian:12", "thinsnap image rm debian:12 --json"))]
    Rm {
        /// Name of the image
        #[arg(value_name = "NAME")]
        name: String,
    },
}

pub(crate) fn run(verb: ImageVerb, global: &Global, output: Output) -> Result<()> {
    match verb {
        ImageVerb::Import { source, name, reference, platform } => {
            let source = source
                .canonicalize()
                .map_err(|error| Error::io(format!("find the archive {}", source.display()), error))?
                .into_os_string()
                .into_string()
                .map_err(|path| {
                    Error::new(ErrorKind::InvalidArgument, format!("the path {} is not UTF-8", path.display()))
                })?;
            let request = api::ImageImportRequest { source, name, reference, platform };
            let imported = with_service(&global.target(), |mut client| async move {
                let bar = Bar::new(output.is_json());
                let mut steps = client.image_import(request).await.map_err(|s| error_of(&s))?.into_inner();
                while let Some(reply) = steps.message().await.map_err(|s| error_of(&s))? {
                    match reply.step {
                        Some(Step::Progress(progress)) => bar.show(&progress),
                        Some(Step::Imported(imported)) => return Ok(imported),
                        None => {}
                    }
                }
                Err(Error::new(ErrorKind::Unavailable, "import: the service ended before its answer"))
            })?;
            output.answer(&imported, |imported| {
                let name = imported.image.as_ref().map(|image| clean(&image.name)).unwrap_or_default();
                format!(
                    "imported {name}: {} unpacked, {} there already",
                    count(imported.layers_applied, "layer"),
                    imported.layers_present
                )
            })
        }
        ImageVerb::Ls => {
            let list = with_service(&global.target(), |mut client| async move {
                Ok(client.image_list(api::ImageListRequest {}).await.map_err(|s| error_of(&s))?.into_inner())
            })?;
            output.answer(&list, |list| {
                let rows: Vec<_> = list.images.iter().map(row).collect();
                table(["NAME", "LAYERS", "PACKED", "PLATFORM", "IMPORTED", "ID"], &rows)
            })
        }
        ImageVerb::Rm { name } => {
            let removed = with_service(&global.target(), |mut client| async move {
                Ok(client.image_remove(api::ImageRequest { name }).await.map_err(|s| error_of(&s))?.into_inner())
            })?;
            output.answer(&removed, |removed| {
                format!("removed {} with {}", clean(&removed.removed), count(removed.layers_removed, "layer"))
            })
        }
    }
}

fn row(image: &api::Image) -> [String; 6] {
    let packed = image.layers.iter().map(|layer| layer.packed_bytes).sum();
    let id = image.config_digest.as_deref().unwrap_or("-");
    [
        clean(&image.name),
        image.layers.len().to_string(),
        size(packed),
        clean(&image.platform),
        time(&image.created_at),
        clean(id.strip_prefix("sha256:").unwrap_or(id)).chars().take(12).collect(),
    ]
}
