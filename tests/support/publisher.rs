//! A client that commits file systems while they are mounted, insisting until each verb has happened.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount, umount};
use tonic::{Code, Status};

use super::proxy::{Client, known};

/// Bytes of the file that is in the page cache at the commit: more than a data block of the pool.
const PAGE_LEN: usize = 100_000;

/// Longest time without any answer. A busy machine may kill the service in the middle of one call for as long as the kills go
/// on, two minutes; after the last of them it stays.
const PATIENCE: Duration = Duration::from_secs(400);

/// A committer of mounted snapshots.
pub(crate) struct Publisher {
    client: Client,
    name: String,
    parent: String,
    point: PathBuf,
    /// Snapshots that were committed, looked at and removed.
    pub(crate) published: u64,
}

impl Publisher {
    /// Mounts below `dir`.
    pub(crate) fn new(client: Client, name: String, parent: &str, dir: &Path) -> Self {
        let point = dir.join(&name);
        Self { client, name, parent: parent.to_owned(), point, published: 0 }
    }

    /// One round: what was written before the commit, flushed or not, is in the committed snapshot; what is
    /// written later is not, and the writer never notices.
    pub(crate) async fn publish(&mut self) {
        let (key, name) = (format!("{} draft {}", self.name, self.published), format!("{} page", self.name));
        let look = format!("{} look", self.name);
        let page = format!("{key} ").repeat(PAGE_LEN / key.len());
        let client = &self.client;

        let parent = &self.parent;
        let made = insist(&[Code::AlreadyExists], || async { client.clone().prepare(&key, parent).await.map(drop) });
        made.await.unwrap_or_else(|e| panic!("prepare {key}: {e}"));
        let device = insist_on_mounts(client, &key).await;
        let writing = self.point.with_extension("writing");
        blocking({
            let (writing, page) = (writing.clone(), page.clone());
            move || {
                fs::create_dir_all(&writing)?;
                mount_ext4(&device, &writing, MsFlags::empty())?;
                fs::write(writing.join("page"), page)
            }
        })
        .await;

        let committed =
            insist(&[Code::AlreadyExists, Code::NotFound], || async { client.clone().commit(&name, &key).await });
        committed.await.unwrap_or_else(|e| panic!("commit {key} as {name}: {e}"));
        blocking({
            let later = writing.join("later");
            move || fs::write(&later, "later").and_then(|()| fs::File::open(later)?.sync_all())
        })
        .await;

        let viewed = insist(&[Code::AlreadyExists], || async { client.clone().view(&look, &name).await.map(drop) });
        viewed.await.unwrap_or_else(|e| panic!("view {name}: {e}"));
        let device = insist_on_mounts(client, &look).await;
        let reading = self.point.with_extension("reading");
        let (found, names) = blocking(move || {
            fs::create_dir_all(&reading)?;
            mount_ext4(&device, &reading, MsFlags::MS_RDONLY)?;
            let found = fs::read_to_string(reading.join("page"))?;
            let names: Vec<_> = fs::read_dir(&reading)?.map(|entry| entry.map(|e| e.file_name())).collect();
            unmount(&reading)?;
            Ok((found, names))
        })
        .await;
        assert!(found == page, "the page of {name} has {} bytes of {}", found.len(), page.len());
        assert_eq!(names.len(), 1, "{names:?} in {name}");
        blocking(move || unmount(&writing)).await;
        for gone in [&look, &name] {
            let removed = insist(&[Code::NotFound], || async { client.clone().remove(gone).await });
            removed.await.unwrap_or_else(|e| panic!("remove {gone}: {e}"));
        }
        self.published += 1;
    }
}

/// Calls until there is an answer. After a call without one, an answer of `done` means that it had happened.
async fn insist<F: Future<Output = Result<(), Status>>>(done: &[Code], call: impl Fn() -> F) -> Result<(), Status> {
    let mut unsure = false;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = call().await;
        let heard = format!("{answer:?}");
        match known(answer) {
            Ok(Err(status)) if unsure && done.contains(&status.code()) => return Ok(()),
            Ok(answer) => return answer,
            Err(()) => unsure = true,
        }
        assert!(Instant::now() < deadline, "no service answered for {PATIENCE:?}, last: {heard}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn insist_on_mounts(client: &Client, key: &str) -> PathBuf {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(answer) = known(client.clone().mounts(key).await) {
            return answer.unwrap_or_else(|e| panic!("mounts of {key}: {e}"));
        }
        assert!(Instant::now() < deadline, "no service answered for {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn mount_ext4(device: &Path, point: &Path, flags: MsFlags) -> io::Result<()> {
    mount(Some(device), point, Some("ext4"), flags, None::<&str>)
        .map_err(|errno| io::Error::other(format!("mount {} on {}: {errno}", device.display(), point.display())))
}

/// A service that this process is starting has its open files until it runs its own program: a file that was
/// closed here may still be open there, for a moment.
fn unmount(point: &Path) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match umount(point) {
            Err(Errno::EBUSY) if Instant::now() < deadline => std::thread::park_timeout(Duration::from_millis(5)),
            Err(errno) => return Err(io::Error::other(format!("unmount {}: {errno}", point.display()))),
            Ok(()) => return Ok(()),
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> T {
    let done = tokio::task::spawn_blocking(work).await.expect("the work does not panic");
    done.expect("a mounted snapshot can be read and written")
}
