//! The image of the story: made by umoci and tar, with everything that layers do to each other.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::support::process::{must, program};

/// Base: busybox and its links, files that later layers change, delete and replace.
const LAYER_1: &str = r#"
mkdir -p bin etc tmp data proc sys dev run old/deep opaque dir-to-link
chmod 755 . ; chmod 1777 tmp
cp "$(command -v busybox)" bin/busybox
for applet in $(bin/busybox --list); do [ "$applet" = busybox ] || ln -s busybox "bin/$applet"; done
echo 'root:x:0:0:root:/:/bin/sh' > etc/passwd; echo 'root:x:0:' > etc/group
echo one > etc/layer; echo gone > etc/deleted; echo x > old/deep/file; ln -s /etc/layer absolute-link
echo a > opaque/a; echo b > opaque/b; echo d > dir-to-link/file; ln -s /etc link-to-dir; echo f > file-to-dir
far=long/$(printf 'd%.0s' $(seq 200)); mkdir -p "$far"; echo far > "$far/$(printf 'n%.0s' $(seq 255))"
"#;

/// Additions: a large file, hardlinks, setuid, extended attributes, capabilities.
const LAYER_2: &str = r#"
echo two > etc/layer; dd if=/dev/urandom of=data/large bs=1M count=64 status=none
echo linked > data/h1; touch -d @1700000000 data/h1; ln data/h1 data/h2; ln data/h1 data/h3
cp bin/busybox bin/as-root; chmod 4755 bin/as-root
echo told > data/attributes; setfattr -n user.story -v told data/attributes
cp bin/busybox data/capable; setcap cap_net_raw+ep data/capable
"#;

/// Changes: overwritten, deleted, replaced by another type, another owner; special and sparse files.
const LAYER_3: &str = r#"
echo three > etc/layer; rm etc/deleted; rm -r old opaque; mkdir opaque; echo c > opaque/c
rm -r dir-to-link; ln -s /etc dir-to-link; rm link-to-dir; mkdir link-to-dir; echo in > link-to-dir/file
rm file-to-dir; mkdir file-to-dir; echo in > file-to-dir/file
chown 1000:1000 data/h1; truncate -s 20M data/sparse; mknod data/null c 1 3; mkfifo data/fifo
"#;

/// What umoci does not write: an opaque directory, and a hardlink to a file that is in a lower layer only.
const LAYER_4: &str = r#"
mkdir -p opaque data; : > opaque/.wh..wh..opq; echo d > opaque/d
echo linked > data/h1; touch -d @1700000000 data/h1; chown 1000:1000 data/h1; ln data/h1 data/h4
tar --sort=name -cf ../layer-4.tar opaque data/h1 data/h4
tar --delete -f ../layer-4.tar data/h1
"#;

/// The name of the image in containerd, without the tag.
pub(crate) const NAME: &str = "thinsnap.test/story";

/// An OCI layout on disk with one image a tag.
pub(crate) struct StoryImage {
    dir: PathBuf,
}

impl StoryImage {
    /// Builds the image with tag `1` below `dir`.
    pub(crate) fn build(dir: &Path) -> Self {
        let image = Self { dir: dir.to_path_buf() };
        fs::create_dir_all(dir).expect("a directory for the image can be made");
        image.umoci(&["init", "--layout", "layout"]);
        image.umoci(&["new", "--image", "layout:1"]);
        let run = ["--config.cmd", "/bin/sh", "--config.env", "PATH=/bin", "--config.workingdir", "/"];
        image.umoci(&[&["config", "--image", "layout:1"], &run[..]].concat());
        image.umoci(&["unpack", "--image", "layout:1", "bundle"]);
        for layer in [LAYER_1, LAYER_2, LAYER_3] {
            image.shell("bundle/rootfs", layer);
            image.umoci(&["repack", "--refresh-bundle", "--image", "layout:1", "bundle"]);
        }
        fs::create_dir(dir.join("layer-4")).expect("a directory for the last layer can be made");
        image.shell("layer-4", LAYER_4);
        image.add_layer("1", "1", &dir.join("layer-4.tar"));
        image
    }

    /// Makes image `to` of image `from` and one more layer, a tar file.
    pub(crate) fn add_layer(&self, from: &str, to: &str, tar: &Path) {
        let layer = tar.to_str().expect("paths of the test are text");
        self.umoci(&["raw", "add-layer", "--image", &format!("layout:{from}"), "--tag", to, layer]);
    }

    /// What umoci itself makes of the image: the file tree to compare with.
    pub(crate) fn unpacked(&self, tag: &str) -> PathBuf {
        let bundle = format!("unpacked-{tag}");
        self.umoci(&["unpack", "--image", &format!("layout:{tag}"), &bundle]);
        self.dir.join(bundle).join("rootfs")
    }

    /// The image as an OCI archive that holds this tag alone.
    pub(crate) fn archive(&self, tag: &str) -> PathBuf {
        let archive = self.dir.join(format!("image-{tag}.tar"));
        let target = format!("oci-archive:{}:{tag}", archive.display());
        let source = format!("oci:layout:{tag}");
        must(program("skopeo").args(["copy", "--quiet", &source, &target]).current_dir(&self.dir));
        archive
    }

    /// The names that containerd gives the snapshots of the image's layers, the base first.
    pub(crate) fn chain_ids(&self, tag: &str) -> Vec<String> {
        let manifest = self.blob(&self.tagged(tag));
        let config = self.blob(manifest["config"]["digest"].as_str().expect("a manifest names its config"));
        let diff_ids = config["rootfs"]["diff_ids"].as_array().expect("a config lists its layers");
        let mut chain: Vec<String> = Vec::new();
        for diff_id in diff_ids {
            let diff_id = diff_id.as_str().expect("a diff id is text");
            chain.push(match chain.last() {
                None => diff_id.to_owned(),
                Some(below) => sha256(format!("{below} {diff_id}").as_bytes()),
            });
        }
        chain
    }

    fn tagged(&self, tag: &str) -> String {
        let index: Value = serde_json::from_slice(&fs::read(self.dir.join("layout/index.json")).expect("an index"))
            .expect("the index is JSON");
        let manifests = index["manifests"].as_array().expect("the index lists manifests");
        let tagged = manifests.iter().find(|m| m["annotations"]["org.opencontainers.image.ref.name"] == tag);
        tagged.and_then(|m| m["digest"].as_str()).expect("the layout holds the tag").to_owned()
    }

    fn blob(&self, digest: &str) -> Value {
        let path = self.dir.join("layout/blobs").join(digest.replace(':', "/"));
        serde_json::from_slice(&fs::read(path).expect("the layout holds the blob")).expect("the blob is JSON")
    }

    fn umoci(&self, args: &[&str]) {
        must(program("umoci").args(args).current_dir(&self.dir));
    }

    fn shell(&self, folder: &str, script: &str) {
        must(program("sh").args(["-ec", script]).current_dir(self.dir.join(folder)));
    }
}

/// A digest as images write it.
fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
