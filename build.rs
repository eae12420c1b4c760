//! Turns api/*.proto into Rust, without protoc: protox parses, tonic-prost-build generates.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
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
