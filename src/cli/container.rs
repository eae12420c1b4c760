//! `thinsnap container`: create, list, mount, unmount, remove.

use std::path::PathBuf;

use clap::Subcommand;

use crate::admin::api;
use crate::cli::args::{Global, examples};
use crate::cli::output::Output;
use crate::cli::render::{clean, table, time};
use crate::cli::session::with_service;
use crate::error::{Error, ErrorKind, Result};
use crate::grpc::error_of;

/// The verbs of containers.
#[derive(Debug, Subcommand)]
pub enum ContainerVerb {
    /// Make a container's file system: a thin snapshot of an image, of a snapshot, or an empty one
    #[command(after_help = examples!(
        "thinsnap container create web --image debian:12",
        "thinsnap container create scratch",
    ))]
    Create {
        /// Name: letters, digits, `_`, `.`, `-`
        #[arg(value_name = "NAME")]
        name: String,
        /// The image to start from
        #[arg(long, value_name = "IMAGE", conflicts_with = "snapshot")]
        image: Option<String>,
        /// The committed snapshot (of the space `local`) to start from
        #[arg(long, value_name = "SNAPSHOT")]
        snapshot: Option<String>,
    },
    /// List containers
    #[command(after_help = examples!("thinsnap container ls", "thinsnap container ls --json"))]
    Ls,
    /// Mount a container's file system on a directory
    #[command(after_help = examples!(
        "thinsnap container mount web /mnt/web",
        "mkdir -p /mnt/web && thinsnap container mount web /mnt/web --json",
    ))]
    Mount {
        /// Name of the container
        #[arg(value_name = "NAME")]
        name: String,
        /// An existing directory
        #[arg(value_name = "DIR")]
        at: PathBuf,
    },
    /// Unmount it from wherever it is mounted
    #[command(after_help = examples!("thinsnap container unmount web", "thinsnap container unmount web --json"))]
    Unmount {
        /// Name of the container
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Remove a container with everything written in it
    ///
    /// Nothing is asked: the one name on the command line is what goes, and nothing that others use goes with it.
    #[command(after_help = examples!("thinsnap container rm web", "thinsnap container rm web --json"))]
    Rm {
        /// Name of the container
        #[arg(value_name = "NAME")]
        name: String,
    },
}

pub(crate) fn run(verb: ContainerVerb, global: &Global, output: Output) -> Result<()> {
    let target = global.target();
    match verb {
        ContainerVerb::Create { name, image, snapshot } => {
            let request = api::ContainerCreateRequest { name, image, snapshot };
            let made = with_service(&target, |mut client| async move {
                Ok(client.container_create(request).await.map_err(|s| error_of(&s))?.into_inner())
            })?;
            output.answer(&made, |made| format!("created {}", clean(&made.name)))
        }
        ContainerVerb::Ls => {
            let list = with_service(&target, |mut client| async move {
                let request = api::ContainerListRequest {};
                Ok(client.container_list(request).await.map_err(|s| error_of(&s))?.into_inner())
            })?;
            output.answer(&list, |list| {
                let rows: Vec<_> = list.containers.iter().map(row).collect();
                table(["NAME", "IMAGE", "CREATED", "MOUNTED AT"], &rows)
            })
        }
        ContainerVerb::Mount { name, at } => {
            let at = at
                .canonicalize()
                .map_err(|error| Error::io(format!("find the directory {}", at.display()), error))?
                .into_os_string()
                .into_string()
                .map_err(|path| {
                    Error::new(ErrorKind::InvalidArgument, format!("the path {} is not UTF-8", path.display()))
                })?;
            let request = api::ContainerMountRequest { name, at };
            let mounted = with_service(&target, |mut client| async move {
                Ok(client.container_mount(request).await.map_err(|s| error_of(&s))?.into_inner())
            })?;
            output.answer(&mounted, |mounted| {
                format!("mounted {} on {}", clean(&mounted.name), clean(&mounted.mounted_at.join(", ")))
            })
        }
        ContainerVerb::Unmount { name } => {
            let unmounted = with_service(&target, |mut client| async move {
                let request = api::ContainerRequest { name };
                Ok(client.container_unmount(request).await.map_err(|s| error_of(&s))?.into_inner())
            })?;
            output.answer(&unmounted, |unmounted| format!("unmounted {}", clean(&unmounted.name)))
        }
        ContainerVerb::Rm { name } => {
            let removed = with_service(&target, |mut client| async move {
                let request = api::ContainerRequest { name };
                Ok(client.container_remove(request).await.map_err(|s| error_of(&s))?.into_inner())
            })?;
            output.answer(&removed, |removed| format!("removed {}", clean(&removed.removed)))
        }
    }
}

fn row(container: &api::Container) -> [String; 4] {
    let from = container.image.as_ref().or(container.parent.as_ref()).map_or("-", String::as_str);
    let mounted =
        if container.mounted_at.is_empty() { "-".to_owned() } else { clean(&container.mounted_at.join(", ")) };
    [clean(&container.name), clean(from), time(&container.created_at), mounted]
}
