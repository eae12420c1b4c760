//! A thin pool that is plainly right: a sparse file for each device, a copy for each snapshot, losetup.
//!
//! It shares no code with the engine, so what holds over it is the snapshotter's own doing. The block
//! devices are real: real file systems are made and mounted on them.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard};

use thinsnap_pool::{
    Access, BlockSize, ByteCount, ChangedRange, DeviceId, DeviceUsage, Error, ErrorKind, PoolMode, PoolStatus, Result,
    Room, Space, ThinPool,
};

struct Active {
    node: PathBuf,
    size: ByteCount,
    access: Access,
}

#[derive(Default)]
struct State {
    /// Bytes that the device's file had when it was made.
    devices: BTreeMap<DeviceId, u64>,
    active: BTreeMap<DeviceId, Active>,
    transaction_id: u64,
    /// What `status` says is free.
    data_free: u64,
}

pub(crate) struct ModelPool {
    dir: PathBuf,
    identity: [u8; 16],
    state: Mutex<State>,
}

fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output().map_err(|e| Error::io(program.to_owned(), e))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Error::new(ErrorKind::Io, format!("{program} {args:?}: {words}")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

impl ModelPool {
    /// `dir`: an empty directory for the files.
    pub(crate) fn new(dir: &Path) -> Self {
        let state = Mutex::new(State { data_free: 1 << 40, ..State::default() });
        Self { dir: dir.to_owned(), identity: [7; 16], state }
    }

    pub(crate) fn set_data_free(&self, bytes: u64) {
        self.state().data_free = bytes;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn file(&self, id: DeviceId) -> PathBuf {
        self.dir.join(format!("device-{id}"))
    }

    fn allocated(&self, id: DeviceId) -> u64 {
        fs::metadata(self.file(id)).map_or(0, |meta| meta.blocks() * 512)
    }

    /// True if the loop device still shows the device's file.
    fn attached(&self, id: DeviceId, node: &Path) -> bool {
        let name = node.file_name().unwrap().to_str().unwrap();
        fs::read_to_string(format!("/sys/block/{name}/loop/backing_file"))
            .is_ok_and(|file| Path::new(file.trim()) == self.file(id))
    }

    /// Forgets a device whose last opener has let go since it was deactivated.
    fn refresh(&self, state: &mut State, id: DeviceId) {
        if state.active.get(&id).is_some_and(|active| !self.attached(id, &active.node)) {
            state.active.remove(&id);
        }
    }

    fn absent(id: DeviceId) -> Error {
        Error::new(ErrorKind::NotFound, format!("device {id} does not exist"))
    }

    fn sync(active: &Active) -> Result<()> {
        File::open(&active.node).and_then(|node| node.sync_all()).map_err(|e| Error::io("flush", e))
    }

    fn insert(&self, state: &mut State, id: DeviceId, origin: Option<DeviceId>) -> Result<()> {
        if state.devices.contains_key(&id) {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("device {id} exists")));
        }
        match origin {
            None => drop(File::create(self.file(id)).map_err(|e| Error::io("create", e))?),
            Some(origin) => {
                if !state.devices.contains_key(&origin) {
                    return Err(Self::absent(origin));
                }
                if let Some(active) = state.active.get(&origin) {
                    Self::sync(active)?;
                }
                let (from, to) = (self.file(origin), self.file(id));
                run("cp", &["--sparse=always", "--reflink=auto", text(&from), text(&to)])?;
            }
        }
        state.devices.insert(id, self.allocated(id));
        Ok(())
    }
}

impl ThinPool for ModelPool {
    fn create_thin(&self, id: DeviceId) -> Result<()> {
        self.insert(&mut self.state(), id, None)
    }

    fn create_snap(&self, id: DeviceId, origin: DeviceId) -> Result<()> {
        let mut state = self.state();
        self.refresh(&mut state, origin);
        self.insert(&mut state, id, Some(origin))
    }

    fn delete(&self, id: DeviceId) -> Result<()> {
        if !self.deactivate(id)? {
            return Err(Error::new(ErrorKind::InUse, format!("device {id} is open")));
        }
        if self.state().devices.remove(&id).is_some() {
            fs::remove_file(self.file(id)).map_err(|e| Error::io("delete", e))?;
        }
        Ok(())
    }

    fn activate(&self, id: DeviceId, size: ByteCount, access: Access) -> Result<PathBuf> {
        let mut state = self.state();
        if !state.devices.contains_key(&id) {
            return Err(Self::absent(id));
        }
        self.refresh(&mut state, id);
        let file = OpenOptions::new().write(true).open(self.file(id)).map_err(|e| Error::io("open", e))?;
        if file.metadata().map_err(|e| Error::io("stat", e))?.len() < size.0 {
            file.set_len(size.0).map_err(|e| Error::io("grow", e))?;
        }
        if let Some(active) = state.active.get_mut(&id) {
            if active.access != access {
                return Err(Error::new(ErrorKind::InUse, format!("device {id} is active with other access")));
            }
            if size > active.size {
                run("losetup", &["-c", text(&active.node)])?;
                active.size = size;
            }
            return Ok(active.node.clone());
        }
        let path = self.file(id);
        let node = match access {
            Access::ReadOnly => run("losetup", &["-f", "--show", "-r", text(&path)])?,
            Access::ReadWrite => run("losetup", &["-f", "--show", text(&path)])?,
        };
        let node = PathBuf::from(node);
        state.active.insert(id, Active { node: node.clone(), size, access });
        Ok(node)
    }

    fn deactivate(&self, id: DeviceId) -> Result<bool> {
        let mut state = self.state();
        self.refresh(&mut state, id);
        let Some(active) = state.active.get(&id) else { return Ok(true) };
        Self::sync(active)?;
        // Before Linux 6.3 there is none.
        let _ = thinsnap_pool::limit_dirty(&active.node, None);
        run("losetup", &["-d", text(&active.node)])?;
        self.refresh(&mut state, id);
        Ok(!state.active.contains_key(&id))
    }

    fn active_path(&self, id: DeviceId) -> Result<Option<PathBuf>> {
        let mut state = self.state();
        self.refresh(&mut state, id);
        Ok(state.active.get(&id).map(|active| active.node.clone()))
    }

    fn flush(&self, id: DeviceId) -> Result<()> {
        self.state().active.get(&id).map_or(Ok(()), Self::sync)
    }

    fn usage(&self, id: DeviceId) -> Result<DeviceUsage> {
        let mapped = ByteCount(self.allocated(id));
        Ok(DeviceUsage { mapped, exclusive: mapped, shared: ByteCount(0), written: self.written(id)? })
    }

    fn written(&self, id: DeviceId) -> Result<ByteCount> {
        let at_birth = *self.state().devices.get(&id).ok_or_else(|| Self::absent(id))?;
        self.flush(id)?;
        Ok(ByteCount(self.allocated(id).saturating_sub(at_birth)))
    }

    fn delta(&self, _from: DeviceId, _to: DeviceId) -> Result<Vec<ChangedRange>> {
        Err(Error::new(ErrorKind::Unsupported, "the model does not compare devices"))
    }

    fn devices(&self) -> Result<Vec<DeviceId>> {
        Ok(self.state().devices.keys().copied().collect())
    }

    fn status(&self) -> Result<PoolStatus> {
        let state = self.state();
        let total = ByteCount(1 << 40);
        Ok(PoolStatus {
            identity: self.identity,
            engine: "model".into(),
            mode: PoolMode::Write,
            reason: None,
            block_size: BlockSize::DEFAULT,
            data: Space { used: ByteCount(total.0 - state.data_free), total },
            metadata: Space { used: ByteCount(0), total },
            metadata_reserve: ByteCount(0),
            transaction_id: state.transaction_id,
            time: 0,
            devices: state.devices.len() as u64,
            active_devices: state.active.len() as u64,
            metadata_snapshot: false,
            room: Room::default(),
        })
    }

    fn set_transaction_id(&self, from: u64, to: u64) -> Result<()> {
        let mut state = self.state();
        if state.transaction_id != from {
            return Err(Error::new(ErrorKind::Invalid, "transaction id"));
        }
        state.transaction_id = to;
        Ok(())
    }

    fn grow(&self, _data: Option<ByteCount>, _metadata: Option<ByteCount>) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "the model has no end"))
    }
}

impl Drop for ModelPool {
    fn drop(&mut self) {
        for (id, active) in &self.state.get_mut().unwrap().active {
            if let Err(error) = run("losetup", &["-d", text(&active.node)]) {
                eprintln!("detach device {id}: {error}");
            }
        }
    }
}
