//! The container verbs of the admin service.

use std::path::Path;

use crate::admin::protocol::api;
use crate::admin::snapshot_verbs::time_text;
use crate::container::{Container, ContainerName, Containers, Origin};
use crate::error::{Error, ErrorKind, Result};

pub(super) fn create(containers: &Containers, request: api::ContainerCreateRequest) -> Result<api::Container> {
    let name = ContainerName::new(request.name)?;
    let origin = match (request.image, request.snapshot) {
        (Some(image), None) => Origin::Image(image),
        (None, Some(snapshot)) => Origin::Snapshot(snapshot),
        (None, None) => Origin::Empty,
        (Some(_), Some(_)) => {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("create container {name}: both an image and a snapshot are given"),
            ));
        }
    };
    Ok(shown(containers.create(&name, &origin)?))
}

pub(super) fn list(containers: &Containers) -> Result<api::ContainerListReply> {
    Ok(api::ContainerListReply { containers: containers.list()?.into_iter().map(shown).collect() })
}

pub(super) fn mount(containers: &Containers, request: api::ContainerMountRequest) -> Result<api::Container> {
    let name = ContainerName::new(request.name)?;
    let at = Path::new(&request.at);
    if !at.is_absolute() {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("mount container {name}: {} is not an absolute path", at.display()),
        ));
    }
    Ok(shown(containers.mount(&name, at)?))
}

pub(super) fn unmount(containers: &Containers, request: api::ContainerRequest) -> Result<api::Container> {
    Ok(shown(containers.unmount(&ContainerName::new(request.name)?)?))
}

pub(super) fn remove(containers: &Containers, request: api::ContainerRequest) -> Result<api::ContainerRemoveReply> {
    containers.remove(&ContainerName::new(request.name.clone())?)?;
    Ok(api::ContainerRemoveReply { removed: request.name })
}

fn shown(container: Container) -> api::Container {
    api::Container {
        name: container.record.name.as_str().to_owned(),
        image: container.record.image,
        parent: container.record.parent,
        key: container.record.key,
        created_at: time_text(container.record.created_ns),
        mounted_at: container.mounted_at.iter().map(|path| path.to_string_lossy().into_owned()).collect(),
    }
}
