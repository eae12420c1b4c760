//! Turns api/*.proto into Rust, without protoc: protox parses, tonic-prost-build generates; lists the files of the benchmark.

use std::error::Error;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    write_bench_files()?;
    println!("cargo:rerun-if-changed=api");
    let containerd = protox::compile(["snapshots.proto"], ["api"])?;
    tonic_prost_build::configure().btree_map(".").include_file("containerd_api.rs").compile_fds(containerd)?;

    let admin = protox::compile(["admin.proto"], ["api"])?;
    tonic_prost_build::configure()
        .btree_map(".")
        // The command line's --json prints the service's own messages: one value for people and for scripts.
        .message_attribute(".", "#[derive(serde::Serialize)]")
        .enum_attribute(".", "#[derive(serde::Serialize)] #[serde(rename_all = \"snake_case\")]")
        .include_file("admin_api.rs")
        .compile_fds(admin)?;
    Ok(())
}

/// The benchmark travels in the program: a list of its files' names and texts.
fn write_bench_files() -> Result<(), Box<dyn Error>> {
    let top = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("benches");
    let mut list = String::from("&[\n");
    for dir in ["", "fio", "measure", "report"] {
        let at = top.join(dir);
        println!("cargo:rerun-if-changed={}", at.display());
        let mut files: Vec<PathBuf> =
            fs::read_dir(&at)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
        files.sort();
        let ours = |file: &&PathBuf| file.extension().is_some_and(|end| end == "py" || end == "fio");
        for file in files.iter().filter(ours) {
            let name = Path::new(dir).join(file.file_name().unwrap_or_default());
            writeln!(list, "({:?}, include_str!({:?})),", name.display().to_string(), file.display().to_string())?;
        }
    }
    list.push_str("]\n");
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("bench_files.rs"), list)?;
    Ok(())
}
