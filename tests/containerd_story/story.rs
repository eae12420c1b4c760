//! The chapters of the story that a containerd lives through on our snapshotter, each with its claims.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

use crate::image::{NAME, StoryImage};
use crate::support::containerd::Containerd;
use crate::support::process::{must, program};
use crate::tree;

/// One containerd, the plugin name its snapshots live under, the image, and a directory for mounts.
pub(crate) struct Story<'a> {
    pub(crate) containerd: &'a Containerd,
    pub(crate) plugin: &'a str,
    pub(crate) image: &'a StoryImage,
    pub(crate) dir: &'a Path,
}

/// A mounted snapshot, unmounted when dropped.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::empty());
        let _ = fs::remove_dir(&self.0);
    }
}

impl Story<'_> {
    /// A `ctr snapshots` command on the plugin's snapshots.
    pub(crate) fn snapshots(&self, words: &str) -> String {
        self.containerd.ctr(&format!("snapshots --snapshotter {} {words}", self.plugin))
    }

    /// Imports a tag and unpacks it; afterwards its layers are committed snapshots, each on the one below.
    pub(crate) fn import(&self, tag: &str) {
        let archive = self.image.archive(tag);
        let (plugin, archive) = (self.plugin, archive.display());
        self.containerd.ctr(&format!("images import --base-name {NAME} --snapshotter {plugin} {archive}"));
        let chain = self.image.chain_ids(tag);
        let listed = self.listed();
        for (n, layer) in chain.iter().enumerate() {
            let parent = n.checked_sub(1).map(|below| chain[below].clone()).unwrap_or_default();
            let wanted = (layer.clone(), parent, "Committed".to_owned());
            assert!(listed.contains(&wanted), "layer {n} of {tag}: {wanted:?} is not in {listed:#?}");
        }
        let shown = self.snapshots("tree");
        let depths: Vec<Option<usize>> = chain.iter().map(|layer| depth_in(&shown, layer)).collect();
        assert!(depths.windows(2).all(|two| two[0].is_some() && two[0] < two[1]), "{depths:?} in\n{shown}");
    }

    /// Key, parent and kind of each snapshot that containerd lists.
    pub(crate) fn listed(&self) -> BTreeSet<(String, String, String)> {
        let table = self.snapshots("ls");
        let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        rows.map(|columns| match columns[..] {
            [key, kind] => (key.to_owned(), String::new(), kind.to_owned()),
            [key, parent, kind] => (key.to_owned(), parent.to_owned(), kind.to_owned()),
            _ => panic!("a row of `ctr snapshots ls` has 2 or 3 columns: {columns:?}"),
        })
        .collect()
    }

    /// Bytes that containerd says a snapshot holds, as exactly as `ctr` prints them.
    pub(crate) fn usage(&self, key: &str) -> u64 {
        let table = self.snapshots(&format!("usage {key}"));
        let columns: Vec<&str> = table.lines().nth(1).unwrap_or_default().split_whitespace().collect();
        let [_, number, unit, _] = columns[..] else { panic!("`ctr snapshots usage` has 4 columns: {table}") };
        let number: f64 = number.parse().expect("a size is a number");
        let scale: f64 = match unit {
            "B" => 1.0,
            "KiB" => 1024.0,
            "MiB" => 1024.0 * 1024.0,
            "GiB" => 1024.0 * 1024.0 * 1024.0,
            _ => panic!("an unknown unit: {table}"),
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "ctr prints sizes up to some GiB")]
        let bytes = (number * scale) as u64;
        bytes
    }

    /// Mounts a snapshot the way that containerd's mounts say.
    pub(crate) fn mount(&self, key: &str) -> Mounted {
        let point = self.dir.join(format!("mount-{key}"));
        fs::create_dir_all(&point).expect("a mount point can be made");
        let command = self.snapshots(&format!("mounts {} {key}", point.display()));
        must(program("sh").args(["-ec", &command]));
        Mounted(point)
    }

    /// The top layer's tree is entry by entry what umoci makes of the same image.
    pub(crate) fn tree_is_what_umoci_unpacks(&self, tag: &str) {
        let top = self.image.chain_ids(tag).pop().expect("an image has layers");
        // A view of `ctr` is no root for the garbage collector: no pass may be on its way meanwhile.
        self.containerd.collect_garbage();
        self.snapshots(&format!("view look-{tag} {top}"));
        let mounted = self.mount(&format!("look-{tag}"));
        let found = tree::described(mounted.path());
        drop(mounted);
        self.snapshots(&format!("rm look-{tag}"));
        let unpacked = self.image.unpacked(tag);
        tree::assert_same(&format!("the tree of {NAME}:{tag}"), &found, &tree::described(&unpacked));
        fs::remove_dir_all(unpacked.parent().expect("it lies in a bundle")).expect("umoci's bundle can be removed");
    }

    /// Runs a script in a new container of the image, which goes away with it; its stdout.
    pub(crate) fn run(&self, tag: &str, container: &str, script: &str) -> String {
        let image = format!("{NAME}:{tag}");
        self.containerd.script(&["run", "--rm", "--snapshotter", self.plugin, &image, container], script)
    }

    /// Starts a container that waits; it counts its starts in /starts.
    pub(crate) fn start(&self, tag: &str, container: &str) {
        let image = format!("{NAME}:{tag}");
        let script = "echo started >> /starts; exec sleep 100000";
        let run = ["run", "-d", "--snapshotter", self.plugin, &image, container, "/bin/sh", "-ec", script];
        self.containerd.ctr_args(&run);
    }

    /// Ends a container's task; the container and its snapshot stay.
    pub(crate) fn stop(&self, container: &str) {
        self.containerd.try_ctr(&format!("tasks rm -f {container}"));
        let tasks = self.containerd.ctr("tasks ls -q");
        assert!(!tasks.split_whitespace().any(|task| task == container), "{container} is stopped, but in: {tasks}");
    }

    /// Three containers at once see the image, and each its own changes alone.
    pub(crate) fn containers_share_the_image_and_nothing_else(&self, tag: &str) {
        let names = ["east", "north", "west"];
        std::thread::scope(|scope| {
            for name in names {
                scope.spawn(move || {
                    self.start(tag, name);
                    let write = format!("echo {name} > /etc/layer; echo {name} > /of-{name}; rm /data/h2; sync -f /");
                    self.containerd.exec(name, "write", &write);
                });
            }
        });
        for name in names {
            let seen = self.containerd.exec(name, "read", "cat /etc/layer; ls / | grep ^of-; cat /starts; ls /data");
            let wanted =
                format!("{name}\nof-{name}\nstarted\nattributes\ncapable\nfifo\nh1\nh3\nh4\nlarge\nnull\nsparse\n");
            assert_eq!(seen, wanted, "what {name} sees");
        }
        assert_eq!(self.run(tag, "south", "cat /etc/layer; ls /data/h2"), "three\n/data/h2\n");
        for name in names {
            self.stop(name);
            self.containerd.ctr(&format!("containers rm {name}"));
        }
    }

    /// A stopped container's change becomes an image by `commit` under the name that the image's chain
    /// gives it: importing the image then finds the layer there.
    pub(crate) fn commit_of_a_stopped_container_is_a_layer(&self, container: &str, from: &str, to: &str) {
        let top = self.image.chain_ids(from).pop().expect("an image has layers");
        let layer = self.dir.join("stopped.tar");
        let media = "application/vnd.oci.image.layer.v1.tar";
        let diff = format!("snapshots --snapshotter {} diff --media-type {media} {top} {container}", self.plugin);
        fs::write(&layer, self.containerd.ctr_bytes(&diff)).expect("the layer can be kept");
        self.image.add_layer(from, to, &layer);
        let name = self.image.chain_ids(to).pop().expect("an image has layers");
        self.snapshots(&format!("commit {name} {container}"));
        let before = self.listed();
        assert!(before.contains(&(name, top, "Committed".to_owned())), "{before:#?}");
        self.import(to);
        assert_eq!(self.listed(), before, "the committed layer was used, not unpacked again");
    }

    /// A running container's state becomes an image: what it wrote before the commit, nothing of later.
    pub(crate) fn commit_of_a_running_container_is_its_state_then(&self, from: &str, to: &str) {
        let top = self.image.chain_ids(from).pop().expect("an image has layers");
        self.start(from, "live");
        // No sync here: the commit has to take what is still in the page cache.
        self.containerd.exec("live", "before", "echo before > /when; head -c 300000 /data/large > /part");
        self.snapshots("commit frozen live");
        self.containerd.exec("live", "after", "echo after > /when; echo x > /later; sync -f /; cat /when");
        assert!(self.listed().contains(&("frozen".into(), top, "Committed".into())), "{:#?}", self.listed());

        let layer = self.dir.join("live.tar");
        let diff = format!("snapshots --snapshotter {} diff frozen", self.plugin);
        fs::write(&layer, self.containerd.ctr_bytes(&diff)).expect("the layer can be kept");
        assert_eq!(self.containerd.exec("live", "still", "cat /when /later"), "after\nx\n", "it goes on undisturbed");
        self.stop("live");
        self.containerd.ctr("containers rm live");
        self.snapshots("rm frozen");

        must(program("sh").args(["-ec", "mv \"$1\" \"$1.gz\"; gunzip \"$1.gz\"", "sh"]).arg(&layer));
        self.image.add_layer(from, to, &layer);
        self.import(to);
        let seen =
            self.run(to, "of-live", "cat /when; ls /later 2>&1 || :; cmp -n 300000 /part /data/large && wc -c < /part");
        assert_eq!(seen, "before\nls: /later: No such file or directory\n300000\n");
    }

    /// Removes every container and image of the tests, and waits for the garbage collector.
    pub(crate) fn delete_everything(&self) {
        for container in self.containerd.ctr("containers ls -q").split_whitespace() {
            self.stop(container);
            self.containerd.ctr(&format!("containers rm {container}"));
        }
        for image in self.containerd.ctr("images ls -q").split_whitespace() {
            self.containerd.ctr(&format!("images rm --sync {image}"));
        }
        // What `ctr snapshots commit` makes is a root of its own for the garbage collector.
        for (key, _, _) in self.listed() {
            self.snapshots(&format!("label {key} containerd.io/gc.root="));
        }
        self.containerd.collect_garbage();
        assert_eq!(self.listed(), BTreeSet::new());
    }
}

/// The column in which a snapshot's name begins in the tree that `ctr` draws.
fn depth_in(shown: &str, name: &str) -> Option<usize> {
    shown.lines().find_map(|line| line.find(name))
}
