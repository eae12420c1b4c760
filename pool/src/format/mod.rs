//! Bytes to structs of the dm-thin format and back; no I/O.
mod mapping;

pub use mapping::Mapping;
