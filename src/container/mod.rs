//! Containers of the command line: a name for an active snapshot of an image, and where it is mounted.
mod containers;
mod record;

pub use containers::{Containers, Origin};
pub use record::{Container, ContainerName, ContainerRecord};
