//! What a ublk exporter finds again after a death: marks on its devices, notes and nodes in its directory.
//!
//! The driver keeps 64 bits for its server. Ours say which thin device a block device shows and, by the export
//! directory, whose it is: from the first moment, so that no device is ever nobody's.

use std::fs::{OpenOptions, create_dir_all, read_dir, remove_dir, remove_file};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::units::DeviceId;

const ID_BITS: u32 = 24;
/// What starts the names of notes, and of nodes.
const LEAVING: &str = "leaving-";
const BLOCK: &str = "ublkb";
const CHAR: &str = "ublkc";

/// The directory of an exporter.
#[derive(Debug, Clone)]
pub(in crate::export) struct Place {
    dir: PathBuf,
    /// Stands above the id in the marks.
    owner: u64,
}

impl Place {
    /// `dir` is absolute and without symbolic links.
    pub(in crate::export) fn new(dir: PathBuf) -> Self {
        let name = dir.as_os_str().as_bytes();
        // Forty bits of the two checksums: not by chance any two pools of a machine, nor another program's flags.
        let owner = u64::from(crc32c::crc32c(name)) << 8 | u64::from(crc32fast::hash(name) & 0xff);
        Self { dir, owner }
    }

    pub(in crate::export) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The marks of a device.
    pub(in crate::export) fn marks(&self, id: DeviceId) -> u64 {
        self.owner << ID_BITS | u64::from(id.get())
    }

    /// The thin device behind a block device with these marks, if it is ours.
    pub(in crate::export) fn id_of(&self, marks: u64) -> Option<DeviceId> {
        let id = u32::try_from(marks & ((1 << ID_BITS) - 1)).ok()?;
        (marks >> ID_BITS == self.owner).then(|| DeviceId::new(id).ok()).flatten()
    }

    fn leaving(&self, id: DeviceId) -> PathBuf {
        self.dir.join(format!("{LEAVING}{id}"))
    }

    /// Notes that a device waits for its last opener.
    pub(in crate::export) fn note_leaving(&self, id: DeviceId) -> io::Result<()> {
        create_dir_all(&self.dir)?;
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(self.leaving(id)).map(drop)
    }

    pub(in crate::export) fn is_leaving(&self, id: DeviceId) -> bool {
        self.leaving(id).exists()
    }

    /// Takes the note back.
    pub(in crate::export) fn forget_leaving(&self, id: DeviceId) {
        forget(&self.leaving(id));
    }

    /// The node of a device: the one in `/dev`, or one of ours where nobody else makes nodes.
    pub(in crate::export) fn node(&self, name: &str, kind: SFlag, number: (u64, u64)) -> io::Result<PathBuf> {
        let number = makedev(number.0, number.1);
        let fits = |path: &Path| {
            path.metadata().is_ok_and(|seen| {
                let kind_fits = match kind {
                    SFlag::S_IFBLK => seen.file_type().is_block_device(),
                    _ => seen.file_type().is_char_device(),
                };
                kind_fits && seen.rdev() == number
            })
        };
        let common = Path::new("/dev").join(name);
        if fits(&common) {
            return Ok(common);
        }
        create_dir_all(&self.dir)?;
        let own = self.dir.join(name);
        if !fits(&own) {
            forget(&own);
            mknod(&own, kind, Mode::S_IRUSR | Mode::S_IWUSR, number)?;
        }
        Ok(own)
    }

    /// Takes away what was made for a device.
    pub(in crate::export) fn clear(&self, id: DeviceId, device: u32) {
        self.forget_leaving(id);
        forget(&self.dir.join(block_name(device)));
        forget(&self.dir.join(char_name(device)));
    }

    /// Takes away what a process left here that died between the end of a device and that of its files. `living` are the
    /// devices that are there, by id and by the driver's number.
    pub(in crate::export) fn sweep(&self, living: &[(DeviceId, u32)]) {
        let keep: Vec<PathBuf> = living
            .iter()
            .flat_map(|&(id, device)| {
                [self.leaving(id), self.dir.join(block_name(device)), self.dir.join(char_name(device))]
            })
            .collect();
        for entry in read_dir(&self.dir).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let ours = [LEAVING, BLOCK, CHAR].iter().any(|start| name.as_bytes().starts_with(start.as_bytes()));
            if ours && !keep.contains(&path) {
                forget(&path);
            }
        }
    }

    /// Takes the directory away, if nothing is left in it.
    pub(in crate::export) fn remove(&self) {
        if let Err(error) = remove_dir(&self.dir) {
            tracing::debug!("{} stays: {error}", self.dir.display());
        }
    }
}

/// As in `/dev` and `/sys/block`.
pub(in crate::export) fn block_name(device: u32) -> String {
    format!("{BLOCK}{device}")
}

pub(in crate::export) fn char_name(device: u32) -> String {
    format!("{CHAR}{device}")
}

fn forget(path: &Path) {
    match remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("remove {}: {error}", path.display());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::Place;
    use crate::units::DeviceId;

    #[test]
    fn what_stands_for_a_device_that_is_gone_is_swept_away_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path().join("export"));
        place.sweep(&[]);
        let [here, gone] = [1, 2].map(|id| DeviceId::new(id).unwrap());
        place.note_leaving(here).unwrap();
        place.note_leaving(gone).unwrap();
        for name in ["ublkb0", "ublkc0", "ublkb7", "ublkc7", "somebody's"] {
            std::fs::write(place.dir().join(name), "").unwrap();
        }
        place.sweep(&[(here, 0)]);
        assert!(place.is_leaving(here) && !place.is_leaving(gone));
        let mut left: Vec<_> =
            std::fs::read_dir(place.dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["leaving-1", "somebody's", "ublkb0", "ublkc0"]);
    }

    #[test]
    fn a_device_is_told_by_its_exporter_and_its_number() {
        let place = Place::new("/run/thinsnap/a/export".into());
        let other = Place::new("/run/thinsnap/b/export".into());
        for id in [0, 1, crate::units::DEVICE_ID_MAX] {
            let id = DeviceId::new(id).unwrap();
            assert_eq!(place.id_of(place.marks(id)), Some(id));
            assert_eq!(other.id_of(place.marks(id)), None);
        }
        assert_eq!(place.id_of(0), None, "what other programs leave there is no mark of ours");
    }
}
