//! Starts everything on the disks that a cut left, as the service does after a reboot, and goes on working.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use thinsnap::snapshot::{Kind, Labels};
use thinsnap::store::Records;
use thinsnap_pool::{Access, ByteCount, Cut, DeviceId, DiskImage, EmbeddedPool, ErrorKind, ThinPool, audit};

use crate::direct_exporter::DirectExporter;
use crate::disks::{DATA, Disks, METADATA, Still};
use crate::expected::Expected;
use crate::files::Files;
use crate::judge::{is_raw, wrong_sector};
use crate::machine::{Service, TINY_CACHE, name, open_engine, space};
use crate::model::Known;
use crate::tokens::{BLOCK, SECTOR, TOLD_SECTORS, index, token_of};

/// A device that no story makes.
const PROBE: u32 = 9_000_000;

/// Everything that runs after the reboot.
struct Started {
    disks: Disks,
    exporter: Arc<DirectExporter>,
    engine: Arc<EmbeddedPool>,
    files: Arc<Files>,
    service: Option<Service>,
}

fn told(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Recovers, judges, works on. Returns the recording of the recovery itself. Errors are findings.
pub(crate) fn recover(
    images: &[DiskImage],
    expected: &Expected<'_>,
    with_service: bool,
    thoroughly: bool,
) -> Result<Cut, String> {
    let work = || -> Result<Cut, String> {
        let started = Started::start(images, with_service)?;
        let foreign = started.engine.devices().map_err(told)?.into_iter().filter(|id| is_raw(*id)).count();
        if let Some(service) = &started.service {
            started.drain(service, expected, foreign as u64)?;
        }
        let recording = started.disks.supply.before_all();
        started.read(expected)?;
        started.go_on(thoroughly)?;
        started.end()?;
        Ok(recording)
    };
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("it panics".into()))
        .map_err(|e| format!("recovery: {e}"))
}

impl Started {
    fn start(images: &[DiskImage], with_service: bool) -> Result<Self, String> {
        let disks = Disks::new(images.to_vec());
        let exporter = DirectExporter::new();
        let engine = open_engine(&disks, &exporter, TINY_CACHE)?;
        let files = Arc::new(Files::new(exporter.clone(), None));
        let service = if with_service { Some(Service::open(&disks, engine.clone(), files.clone())?) } else { None };
        Ok(Self { disks, exporter, engine, files, service })
    }

    /// Empties limbo: afterwards every device has a record, and every record its device.
    fn drain(&self, service: &Service, expected: &Expected<'_>, foreign: u64) -> Result<(), String> {
        let snapshotter = &service.snapshotter;
        let found = snapshotter.recovered().foreign;
        if found != foreign {
            return Err(format!("{found} devices are in no record, {foreign} were made beside the snapshotter"));
        }
        let listed: Known = snapshotter
            .list(&space(), &[])
            .map_err(told)?
            .into_iter()
            .map(|s| (s.name.as_str().to_owned(), s.kind as u8, s.parent.map(|p| p.as_str().to_owned())))
            .collect();
        if !expected.records.contains(&listed) {
            return Err(format!("{listed:?} is listed"));
        }
        snapshotter.cleanup().map_err(told)?;
        let left = snapshotter.limbo_len().map_err(told)?;
        if left != 0 {
            return Err(format!("{left} devices stay in limbo"));
        }
        let owned = service.store.read().map_err(told)?.owned_devices().map_err(told)?;
        let there: BTreeSet<DeviceId> =
            self.engine.devices().map_err(told)?.into_iter().filter(|id| !is_raw(*id)).collect();
        if owned != there {
            return Err(format!("records need {owned:?}, the pool has {there:?}"));
        }
        Ok(())
    }

    /// Reads every device through the engine.
    fn read(&self, expected: &Expected<'_>) -> Result<(), String> {
        for id in self.engine.devices().map_err(told)? {
            let mut bytes = vec![0; index(TOLD_SECTORS * SECTOR)];
            self.engine.activate(id, ByteCount(bytes.len() as u64), Access::ReadOnly).map_err(told)?;
            self.exporter.open(id).read_at(&mut bytes, 0).map_err(told)?;
            self.engine.deactivate(id).map_err(told)?;
            let tokens: Vec<u64> = bytes
                .chunks_exact(index(SECTOR))
                .map(token_of)
                .collect::<Result<_, _>>()
                .map_err(|e| format!("device {id}: {e}"))?;
            let mut wrong = Some("nobody made it".to_owned());
            for life in expected.lives.iter().filter(|life| life.id == id) {
                let mut sectors = tokens.iter().zip(&life.content).enumerate();
                wrong = sectors
                    .find(|(_, (token, choice))| !choice.allows(**token))
                    .map(|(sector, (token, choice))| wrong_sector(sector, *token, choice, None, false));
                if wrong.is_none() {
                    break;
                }
            }
            if let Some(wrong) = wrong {
                return Err(format!("device {id}: {wrong}"));
            }
        }
        Ok(())
    }

    /// A snapshot is made, written to, committed and removed; a new device shows no old bytes.
    fn go_on(&self, thoroughly: bool) -> Result<(), String> {
        if let Some(service) = &self.service {
            let snapshotter = &service.snapshotter;
            let all = snapshotter.list(&space(), &[]).map_err(told)?;
            let parent = all.iter().find(|s| s.kind == Kind::Committed).map(|s| s.name.clone());
            let prepared = snapshotter.prepare(&space(), &name("after"), parent.as_ref(), Labels::new());
            match prepared {
                Ok(_) => {
                    let device = snapshotter.stat(&space(), &name("after")).map_err(told)?.device;
                    self.may_be_full(self.files.write(device, 3, 9))?;
                    snapshotter.commit(&space(), &name("later"), &name("after"), Labels::new(), None).map_err(told)?;
                    snapshotter.remove(&space(), &name("later")).map_err(told)?;
                    snapshotter.cleanup().map_err(told)?;
                }
                Err(e) if e.kind() == thinsnap::error::ErrorKind::NoSpace => {}
                Err(e) => return Err(told(e)),
            }
        }
        if thoroughly { self.nothing_old_shows() } else { Ok(()) }
    }

    fn may_be_full(&self, done: thinsnap_pool::Result<()>) -> Result<bool, String> {
        match done {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::OutOfDataSpace => Ok(false),
            Err(e) => Err(told(e)),
        }
    }

    /// Writes one sector into every block that the pool still has and sees zeroes around each.
    fn nothing_old_shows(&self) -> Result<(), String> {
        let blocks = self.engine.status().map_err(told)?.data.total.0 / BLOCK;
        let id = DeviceId::new(PROBE).unwrap();
        self.engine.create_thin(id).map_err(told)?;
        self.engine.activate(id, ByteCount(blocks * BLOCK), Access::ReadWrite).map_err(told)?;
        let probe = self.exporter.open(id);
        for block in 0..blocks {
            if !self.may_be_full(probe.write_at(&[0x77; 512], block * BLOCK + 4096))? {
                break;
            }
            let mut bytes = vec![0; index(BLOCK)];
            probe.read_at(&mut bytes, block * BLOCK).map_err(told)?;
            let around = [&bytes[..4096], &bytes[4608..]].concat();
            if bytes[4096..4608] != [0x77; 512] || around != vec![0; around.len()] {
                return Err("a new block shows its last owner's bytes".into());
            }
        }
        drop(probe);
        self.engine.deactivate(id).map_err(told)?;
        self.engine.delete(id).map_err(told)
    }

    /// A clean stop, and a last audit.
    fn end(mut self) -> Result<(), String> {
        drop(self.service.take());
        self.engine.close().map_err(told)?;
        let images = self.disks.supply.now();
        let report = audit(&Still(images[METADATA].clone()), &|_| ()).map_err(told)?;
        if !report.is_sound() || images[DATA].is_empty() {
            return Err(format!("the audit after the clean stop finds {:?}", report.findings));
        }
        Ok(())
    }
}
