//! OCI layouts and docker archives written by hand, so that each document can lie.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use sha2::Digest;

use crate::archive::{Member, Tar};

/// `sha256:…` of bytes.
pub(crate) fn digest(bytes: &[u8]) -> String {
    let hash = sha2::Sha256::digest(bytes);
    format!("sha256:{}", hash.iter().map(|b| format!("{b:02x}")).collect::<String>())
}

/// A layer: its tar, and the tar as it is packed.
#[derive(Debug, Clone)]
pub(crate) struct Packed {
    pub(crate) tar: Vec<u8>,
    pub(crate) blob: Vec<u8>,
}

impl Packed {
    pub(crate) fn plain(tar: Vec<u8>) -> Self {
        Self { blob: tar.clone(), tar }
    }

    pub(crate) fn gzip(tar: Vec<u8>) -> Self {
        Self { blob: crate::archive::gzip(&tar), tar }
    }
}

/// The files of a layout by path.
#[derive(Debug, Clone, Default)]
pub(crate) struct Layout {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    manifests: Vec<Value>,
}

impl Layout {
    /// Adds a blob; returns its descriptor.
    pub(crate) fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        self.files.insert(format!("blobs/{}", digest.replace(':', "/")), bytes.to_vec());
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    /// Adds an image's blobs; `change` may make its manifest and configuration lie. Returns the manifest's descriptor.
    pub(crate) fn image(
        &mut self,
        platform: (&str, &str),
        layers: &[Packed],
        change: impl FnOnce(&mut Value, &mut Value),
    ) -> Value {
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest(&layer.tar)).collect();
        let mut config = json!({
            "os": platform.0, "architecture": platform.1, "config": { "Env": null },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let layer_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        let layers: Vec<Value> = layers.iter().map(|layer| self.blob(layer_type, &layer.blob)).collect();
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": layers,
        });
        change(&mut manifest, &mut config);
        let config = self.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        if manifest.get("config").is_none() {
            manifest["config"] = config;
        }
        let mut descriptor = self.blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
        descriptor["platform"] = json!({ "os": platform.0, "architecture": platform.1 });
        descriptor
    }

    /// Names a descriptor in `index.json`.
    pub(crate) fn name(mut self, mut descriptor: Value, name: &str) -> Self {
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        self.manifests.push(descriptor);
        self
    }

    /// An index of descriptors, as a blob; returns its descriptor.
    pub(crate) fn index(&mut self, manifests: &[Value]) -> Value {
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        self.blob("application/vnd.oci.image.index.v1+json", index.to_string().as_bytes())
    }

    /// Adds what every layout has.
    pub(crate) fn end(mut self) -> Self {
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests });
        self.files.insert("index.json".to_owned(), index.to_string().into_bytes());
        self.files.insert("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        self
    }

    /// The layout as a directory.
    pub(crate) fn write(&self, dir: &Path) {
        for (path, bytes) in &self.files {
            let path = dir.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }

    /// The layout as a tar.
    pub(crate) fn tar(&self) -> Vec<u8> {
        self.files.iter().fold(Tar::default(), |tar, (path, bytes)| tar.add(Member::file(path, bytes))).end()
    }
}

/// A layout of one image of this machine's platform, named `it`.
pub(crate) fn one_image(layers: &[Packed], change: impl FnOnce(&mut Value, &mut Value)) -> Layout {
    let mut layout = Layout::default();
    let image = layout.image(("linux", host()), layers, change);
    layout.name(image, "it").end()
}

/// This machine's architecture in Go's words.
pub(crate) fn host() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// What `docker save` wrote before version 25: a directory for each layer, whose tar may be a symlink to another's.
pub(crate) fn old_docker_archive(layers: &[Packed]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest(&layer.tar)).collect();
    let config = json!({ "os": "linux", "architecture": host(), "rootfs": { "type": "layers", "diff_ids": diff_ids } });
    let config = config.to_string();
    let config_name = format!("{}.json", digest(config.as_bytes()).trim_start_matches("sha256:"));
    let mut tar = Tar::default();
    let mut paths = Vec::new();
    for (i, layer) in layers.iter().enumerate() {
        let id = format!("{i:064x}");
        tar = tar.add(Member::directory(format!("{id}/"))).add(Member::file(format!("{id}/VERSION"), "1.0"));
        let same = layers[..i].iter().position(|other| other.tar == layer.tar);
        tar = tar.add(match same {
            Some(same) => Member::symlink(format!("{id}/layer.tar"), format!("../{same:064x}/layer.tar")),
            None => Member::file(format!("{id}/layer.tar"), &layer.tar),
        });
        paths.push(format!("{id}/layer.tar"));
    }
    let manifest = json!([{ "Config": config_name, "RepoTags": ["old:1", "old:latest"], "Layers": paths }]);
    tar.add(Member::file(&config_name, config)).add(Member::file("manifest.json", manifest.to_string())).end()
}
