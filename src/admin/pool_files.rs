//! Where a root directory keeps its pool: `pool/data` and `pool/metadata`, files or links to devices.
//!
//! A link is the whole memory of `--data-device`: it is made before the pool is, and the next start needs no
//! option.

use std::fs::File;
use std::io::{ErrorKind as IoKind, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use thinsnap_pool::{CreateOptions, PoolPaths, create};

use crate::config::{Config, PoolConfig};
use crate::error::{Error, ErrorKind, Result};

/// Where the pool of `root` is, whether it exists or not: links to devices followed. The directory is ours alone,
/// so a link in it is our own; the pool itself follows none to a file.
#[must_use]
pub fn pool_paths_of(root: &Path) -> PoolPaths {
    let PoolPaths { metadata, data } = PoolPaths::in_dir(&root.join("pool"));
    let follow = |path: PathBuf| std::fs::read_link(&path).unwrap_or(path);
    PoolPaths { metadata: follow(metadata), data: follow(data) }
}

/// The note of a replacement of the metadata that is under way.
pub(super) fn note_of(root: &Path) -> PathBuf {
    root.join("pool").join("metadata.replacing")
}

/// True if a pool has been made there: its metadata begins with something. A maker that died before the
/// superblock leaves zeroes, and is made again.
pub(super) fn is_made(paths: &PoolPaths) -> Result<bool> {
    let doing = || format!("look for a pool at {}", paths.metadata.display());
    let mut file = match File::open(&paths.metadata) {
        Ok(file) => file,
        Err(error) if error.kind() == IoKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::io(doing(), error)),
    };
    let mut start = [0; 4096];
    match file.read_exact(&mut start) {
        Ok(()) => Ok(start.iter().any(|byte| *byte != 0)),
        Err(error) if error.kind() == IoKind::UnexpectedEof => Ok(false),
        Err(error) => Err(Error::io(doing(), error)),
    }
}

/// A directory that only its owner may enter: snapshots hold other people's setuid programs. A link that root or we have
/// put in its place is followed (an administrator moves a root directory so); anybody else's is a trap.
///
/// Errors: `Denied` if the directory, or a link to it, belongs to another user.
pub(super) fn private_dir(path: &Path) -> Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)
            .map_err(|error| Error::io(format!("make the directory {}", parent.display()), error))?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == IoKind::AlreadyExists => {}
        Err(error) => return Err(Error::io(format!("make the directory {}", path.display()), error)),
    }
    let doing = || format!("make the directory {} private", path.display());
    let seen = std::fs::symlink_metadata(path).map_err(|error| Error::io(doing(), error))?;
    check_owner(path, &seen)?;
    // From here on the open directory, not its name, which whoever owns a directory above may change.
    let flags = OFlag::O_DIRECTORY | if seen.is_symlink() { OFlag::empty() } else { OFlag::O_NOFOLLOW };
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(flags.bits()).open(path);
    let directory = opened.map_err(|error| Error::io(doing(), error))?;
    check_owner(path, &directory.metadata().map_err(|error| Error::io(doing(), error))?)?;
    directory.set_permissions(std::fs::Permissions::from_mode(0o700)).map_err(|error| Error::io(doing(), error))
}

fn check_owner(path: &Path, seen: &std::fs::Metadata) -> Result<()> {
    let ours = nix::unistd::geteuid().as_raw();
    if seen.uid() == ours || seen.uid() == 0 {
        return Ok(());
    }
    let what = if seen.is_symlink() { "the link" } else { "the directory" };
    Err(Error::new(ErrorKind::Denied, format!("{what} {} belongs to user {}", path.display(), seen.uid())).advise(
        format!("whoever owns it could change the pool under us: chown {ours} it, or choose another directory"),
    ))
}

/// Refuses to make a pool without knowing how large, before anything is touched.
pub(super) fn check_plan(config: &Config) -> Result<()> {
    if config.pool.size.is_none() && config.pool.data_device.is_none() {
        let root = config.root.display();
        return Err(Error::new(ErrorKind::InvalidArgument, format!("no pool in {root}, and no size to make one of"))
            .advise("give --size 100G, or --data-device; files grow as blocks are used"));
    }
    Ok(())
}

/// Makes the pool that the configuration describes. The caller holds the root's lock. After an error nothing is
/// left behind. Errors: `AlreadyExists`, `InvalidArgument`, `NoSpace`, `NotFound` (a device).
pub(super) fn make(config: &Config) -> Result<()> {
    check_plan(config)?;
    let dir = config.root.join("pool");
    private_dir(&dir)?;
    let names = PoolPaths::in_dir(&dir);
    let mut links = Links::default();
    links.make(&names.data, config.pool.data_device.as_deref())?;
    links.make(&names.metadata, config.pool.metadata_device.as_deref())?;
    create(&CreateOptions {
        paths: pool_paths_of(&config.root),
        data_size: config.pool.size,
        metadata_size: config.pool.metadata_size,
        block_size: config.pool.block_size,
    })?;
    links.keep();
    Ok(())
}

/// Links a root directory to a pool that is there already. Done again with the same paths it changes nothing.
pub(super) fn link_pool(root: &Path, paths: &PoolPaths) -> Result<()> {
    let dir = root.join("pool");
    private_dir(&dir)?;
    let names = PoolPaths::in_dir(&dir);
    let mut links = Links::default();
    links.make(&names.data, Some(&paths.data))?;
    links.make(&names.metadata, Some(&paths.metadata))?;
    let made = File::open(&dir).and_then(|dir| dir.sync_all());
    made.map_err(|error| Error::io(format!("make the links in {} durable", dir.display()), error))?;
    links.keep();
    Ok(())
}

/// Refuses a configuration that names other devices than those the pool was made on.
pub(super) fn agree(paths: &PoolPaths, config: &PoolConfig) -> Result<()> {
    let real = |what: &str, path: &Path| {
        path.canonicalize().map_err(|error| Error::io(format!("find the {what} device {}", path.display()), error))
    };
    for (what, file, device) in
        [("data", &paths.data, &config.data_device), ("metadata", &paths.metadata, &config.metadata_device)]
    {
        let Some(device) = device else { continue };
        let (has, wants) = (real(what, file)?, real(what, device)?);
        if has != wants {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("the pool's {what} is {}, not {}", has.display(), wants.display()),
            )
            .advise(format!("leave --{what}-device out, or choose another --root for another pool")));
        }
    }
    Ok(())
}

/// Links to devices; taken back when dropped, unless they are kept.
#[derive(Default)]
struct Links(Vec<PathBuf>);

impl Links {
    fn make(&mut self, link: &Path, device: Option<&Path>) -> Result<()> {
        let Some(device) = device else { return Ok(()) };
        let doing = || format!("link {} to {}", link.display(), device.display());
        let real = device.canonicalize().map_err(|error| Error::io(doing(), error))?;
        match std::os::unix::fs::symlink(&real, link) {
            Ok(()) => self.0.push(link.to_owned()),
            // Left by a maker that died, and the same.
            Err(error) if error.kind() == IoKind::AlreadyExists => {
                if std::fs::read_link(link).ok() != Some(real) {
                    return Err(Error::io(doing(), error));
                }
            }
            Err(error) => return Err(Error::io(doing(), error)),
        }
        Ok(())
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        for link in &self.0 {
            if let Err(error) = std::fs::remove_file(link) {
                tracing::warn!(%error, link = %link.display(), "a link to a device is left behind");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{agree, is_made, make, pool_paths_of};
    use crate::config::{Config, Overrides};
    use crate::error::ErrorKind;
    use std::path::Path;
    use thinsnap_pool::ByteCount;

    fn config(root: &Path, overrides: Overrides) -> Config {
        Config::load(None, Overrides { root: Some(root.to_owned()), ..overrides }).unwrap()
    }

    #[test]
    fn a_pool_without_a_size_is_refused_and_nothing_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let error = make(&config(dir.path(), Overrides::default())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.advice().unwrap().contains("--size"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_pool_on_devices_remembers_them() {
        let dir = tempfile::tempdir().unwrap();
        let (data, metadata) = (dir.path().join("d"), dir.path().join("m"));
        for (path, size) in [(&data, 64 << 20), (&metadata, 4 << 20)] {
            std::fs::File::create(path).unwrap().set_len(size).unwrap();
        }
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let devices = Overrides {
            data_device: Some(data.clone()),
            metadata_device: Some(metadata.clone()),
            ..Overrides::default()
        };
        let config = config(&root, devices);
        let paths = pool_paths_of(&root);
        assert!(!is_made(&paths).unwrap());
        make(&config).unwrap();
        assert!(is_made(&paths).unwrap());
        agree(&paths, &config.pool).unwrap();
        let swapped = crate::config::PoolConfig { data_device: Some(metadata), ..config.pool };
        assert_eq!(agree(&paths, &swapped).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }

    #[test]
    fn a_pool_that_cannot_be_made_leaves_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("d");
        std::fs::write(&data, vec![7; 1 << 20]).unwrap();
        let devices = Overrides { data_device: Some(data), size: Some(ByteCount(1 << 20)), ..Overrides::default() };
        make(&config(dir.path(), devices)).unwrap_err();
        assert!(std::fs::symlink_metadata(dir.path().join("pool/data")).is_err());
    }
}
