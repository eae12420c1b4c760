//! Images and containers, from archives of other programs to mounted root file systems: one program, so that pools are few.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

#[path = "support/archive.rs"]
mod archive;
#[path = "support/archive_hostile.rs"]
mod archive_hostile;
#[path = "support/archive_images.rs"]
mod archive_images;
#[path = "support/archive_layout.rs"]
mod archive_layout;
#[path = "support/archive_pool.rs"]
mod archive_pool;
#[path = "support/archive_tree.rs"]
mod archive_tree;
#[path = "support/archive_tricks.rs"]
mod archive_tricks;
#[path = "import/archives.rs"]
mod archives;
#[path = "import/containers.rs"]
mod containers;
#[path = "import/killed.rs"]
mod killed;
#[path = "import/layers.rs"]
mod layers;
#[path = "import/limits.rs"]
mod limits;
#[path = "import/trees.rs"]
mod trees;
