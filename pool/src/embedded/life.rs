//! The beginning and the end of a pool's life in this process: what a dead one left is brought back first, and threads end
//! in the order in which they need each other.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::claims::Claims;
use crate::device::BlockDevice;
use crate::embedded::backing::Backing;
use crate::embedded::early::EarlyWrites;
use crate::embedded::embedded_pool::{Active, EmbeddedPool, lock};
use crate::embedded::ledger::Ledger;
use crate::embedded::options::EmbeddedOptions;
use crate::embedded::replay::{Recovered, recover};
use crate::embedded::volume::ThinVolume;
use crate::embedded::{committer, early, reclaim, trim};
use crate::error::{Error, ErrorKind, Result};
use crate::export::{Exporter, Orphan};
use crate::meta::Metadata;
use crate::mutation::Mutation;
use crate::units::DeviceId;

/// Joined by the pool that started them.
pub(super) struct Threads {
    committer: JoinHandle<()>,
    reclaimer: JoinHandle<()>,
    trimmer: Option<JoinHandle<()>>,
    /// Those of the early writes.
    makers: Vec<JoinHandle<()>>,
}

impl EmbeddedPool {
    /// As [`new`](Self::new), with an intent log if `options` name one; devices that a dead predecessor left on
    /// `exporter` are served again, with all that it had acknowledged. Errors also: `DoubtfulLog`, `InUse`.
    pub fn with_options(
        mut metadata: Metadata,
        metadata_device: Arc<dyn BlockDevice>,
        data: Arc<dyn BlockDevice>,
        exporter: Arc<dyn Exporter>,
        options: &EmbeddedOptions,
    ) -> Result<Self> {
        // A predecessor that was killed may have written its last superblock without the flush behind it: a
        // flush that the kernel asks for again would find nothing to commit, and blocks that only the
        // superblock before still maps would be handed out.
        if !Mutation::SkipFlushAtOpen.is_on() {
            metadata_device.flush().map_err(|e| e.doing("open the pool: make its superblock durable"))?;
        }
        metadata.limit_cache(options.node_bytes());
        if options.intent_log.is_some() {
            metadata.set_logged(true);
        }
        let recovered = options
            .intent_log
            .as_ref()
            .map(|path| recover(path, options.intent_log_records, &mut metadata, &*metadata_device, &*data));
        let Recovered { log, freed } = recovered.transpose()?.unwrap_or_default();
        let early = match (&options.intent_log, &log) {
            (Some(path), Some(log)) => Some(EarlyWrites::open(path, log.owner())),
            _ => None,
        };
        let (early, acknowledged) = early.transpose()?.unwrap_or_default();
        let blocks = metadata.data_space().total;
        let needed = blocks.saturating_mul(metadata.block_size().bytes());
        if data.size() < needed {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "open the pool: its {blocks} data blocks need {needed} bytes, the data device has {}: it was cut short",
                    data.size()
                ),
            ));
        }
        // Before the first record: from then on a kernel that served the pool would hand out blocks that the log says
        // are in use. A superblock that is committed before this line carries the mark too.
        if log.is_some() {
            metadata.write_logged(&*metadata_device).map_err(|e| e.doing("open the pool"))?;
        }
        let pool = Self {
            backing: Arc::new(Backing::new(
                Ledger::new(metadata, log),
                metadata_device,
                data,
                Arc::downgrade(&exporter),
                options,
                early,
            )),
            exporter,
            claims: Claims::default(),
            active: Mutex::default(),
            growing: Mutex::default(),
            threads: Mutex::default(),
        };
        pool.backing.reclaim.push(freed);
        if pool.backing.metadata()?.dirty() {
            pool.backing.commits.note_change();
        }
        let reclaimer = start("pool-reclaim", &pool.backing, reclaim::run)?;
        match start("pool-commit", &pool.backing, committer::run) {
            Ok(committer) => {
                *lock(&pool.threads) = Some(Threads { committer, reclaimer, trimmer: None, makers: Vec::new() })
            }
            Err(e) => {
                pool.backing.reclaim.stop();
                drop(reclaimer.join());
                return Err(e);
            }
        }
        if let Some(early) = &pool.backing.early {
            early.redo(&pool.backing, acknowledged);
            for number in 0..early::MAKERS {
                let maker = start(&format!("pool-early-{number}"), &pool.backing, early::run)?;
                if let Some(threads) = &mut *lock(&pool.threads) {
                    threads.makers.push(maker);
                }
            }
        }
        pool.adopt_orphans()?;
        let trimmer = start("pool-trim", &pool.backing, trim::run_once)?;
        if let Some(threads) = &mut *lock(&pool.threads) {
            threads.trimmer = Some(trimmer);
        }
        Ok(pool)
    }

    /// Puts volumes behind the block devices that a dead predecessor left, then lets their requests come. One that
    /// cannot be served answers with errors; the others need not suffer for it. One whose device never became durable
    /// (see `create`) goes: nobody was told of it.
    fn adopt_orphans(&self) -> Result<()> {
        let mut unborn = Vec::new();
        for orphan in self.exporter.orphans() {
            let id = orphan.id;
            match self.adopt(&orphan) {
                Ok(()) => tracing::info!(leaving = orphan.leaving, "adopted device {id}"),
                Err(e) if e.kind() == ErrorKind::NotFound => unborn.push(id),
                Err(e) => tracing::error!("the block device of device {id} answers with errors from here on: {e}"),
            }
        }
        self.exporter.resume().map_err(|e| e.doing("serve the devices of a predecessor"))?;
        for id in unborn {
            match self.exporter.detach(id) {
                Ok(true) => tracing::info!("took away the block device of device {id}, which was being made"),
                Ok(false) => tracing::warn!("the block device of device {id}, which is no device, is open"),
                Err(e) => tracing::error!("the block device of device {id}, which is no device, stays: {e}"),
            }
        }
        Ok(())
    }

    fn adopt(&self, orphan: &Orphan) -> Result<()> {
        let id = orphan.id;
        let doing = |e: Error| e.doing(format_args!("adopt device {id}"));
        let Some(details) = self.backing.metadata()?.find_device(id).map_err(doing)? else {
            return Err(Error::new(ErrorKind::NotFound, format!("adopt device {id}: there is no such device")));
        };
        let volume = ThinVolume::new(Arc::clone(&self.backing), id, details, orphan.size, orphan.access);
        let volume = Arc::new(volume.map_err(doing)?);
        self.exporter.adopt(id, Arc::clone(&volume) as _).map_err(doing)?;
        lock(&self.active).insert(id, Active { volume, leaving: orphan.leaving });
        Ok(())
    }

    /// Detaches all devices, commits, and ends the pool's threads. Errors: `InUse` if a device is open
    /// (nothing was changed), `Io` if the last commit failed.
    pub fn close(&self) -> Result<()> {
        self.exporter.shutdown()?;
        let ids: Vec<DeviceId> = std::mem::take(&mut *lock(&self.active)).into_keys().collect();
        let settled = ids.into_iter().try_for_each(|id| self.backing.settle(id));
        let flushed = settled.and(self.backing.flush());
        self.stop();
        flushed
    }

    /// Ends the committer before the reclaimer: its last commit may free blocks.
    fn stop(&self) {
        let Some(Threads { committer, reclaimer, trimmer, makers }) = lock(&self.threads).take() else { return };
        self.backing.pulse.close();
        if let Some(early) = &self.backing.early {
            early.stop();
        }
        for maker in makers {
            if maker.join().is_err() {
                tracing::error!("a thread of the early writes panicked");
            }
        }
        if trimmer.is_some_and(|trimmer| trimmer.join().is_err()) {
            tracing::error!("the thread that trims the pool panicked");
        }
        self.backing.commits.stop();
        let committed = committer.join();
        self.backing.reclaim.stop();
        if committed.and(reclaimer.join()).is_err() {
            tracing::error!("a thread of the pool panicked");
            return;
        }
        self.backing.give_back_ahead();
        self.remove_log();
    }

    /// After the last commit: takes the intent log away. It stays as long as a device is shown, which somebody is
    /// about to take over, and if the pool was not well; the early writes go and stay with it.
    fn remove_log(&self) {
        let done = self.backing.early.as_ref().is_none_or(EarlyWrites::is_done);
        if !done || self.backing.mode.check_changes().is_err() || self.exporter.count() > 0 {
            return;
        }
        if let Err(e) =
            self.backing.metadata().and_then(|mut metadata| metadata.remove_log(&*self.backing.metadata_device))
        {
            tracing::warn!("an empty intent log stays: {e}");
        }
        if let Some(Err(e)) = self.backing.early.as_ref().map(EarlyWrites::remove) {
            tracing::warn!("an empty file of early writes stays: {e}");
        }
    }
}

impl Drop for EmbeddedPool {
    fn drop(&mut self) {
        self.stop();
    }
}

fn start(name: &str, backing: &Arc<Backing>, run: fn(&Arc<Backing>)) -> Result<JoinHandle<()>> {
    let backing = Arc::clone(backing);
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || run(&backing))
        .map_err(|e| Error::io(format!("start the thread {name}"), e))
}
