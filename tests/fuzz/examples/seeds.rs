//! Writes seeds that are made, not kept: `seeds DIR` puts a folder for each target there.

#[path = "../../support/archive.rs"]
#[expect(clippy::unwrap_used, reason = "written for tests, which may")]
mod archive;
#[path = "../../support/archive_hostile.rs"]
#[expect(dead_code, reason = "what comes of an archive is for tests")]
mod archive_hostile;
#[path = "../../support/archive_tricks.rs"]
mod archive_tricks;
#[path = "../made_seeds.rs"]
mod made_seeds;

use std::path::PathBuf;

fn main() {
    let Some(top) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: seeds DIR");
        std::process::exit(2);
    };
    made_seeds::write_all(&top);
}
