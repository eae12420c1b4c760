//! Keeps a host alive for those who use its devices: when it dies, the next one goes on where it stopped.
//!
//! The keeper holds descriptors of the host's exporter. While somebody holds them, I/O on the devices waits instead of
//! failing; the next host gets them and takes over. A host is replaced by a newer program in the same way, except
//! that the old one is asked to end.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::{Error, ErrorKind, Result};
use crate::export::is_connected;
use crate::host::client::HostClient;
use crate::host::control::Control;
use crate::host::death::{Watched, Woken};
use crate::host::protocol::StopOutcome;
use crate::host::supervisor::{Living, SpawnOptions, Starting, lock_start, look_for_any, start};

/// Starts that may fail in a row before the next one waits.
const PROMPT_FAILURES: u32 = 3;
/// How long such a row must last before calls fail at once instead of waiting for its end.
const TROUBLE_AFTER: Duration = Duration::from_secs(5);
/// The first wait after that; it doubles.
const BACKOFF: Duration = Duration::from_millis(100);
/// The longest wait. The keeper never gives up: whatever stopped the host, I/O goes on when it is mended.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Restarts in [`RESTARTS_WITHIN`] before further ones are spread over it.
const RESTARTS_MAX: usize = 32;
const RESTARTS_WITHIN: Duration = Duration::from_secs(16);
/// Longest wait for a host that handed over, or that goes in order.
const END_WAIT: Duration = Duration::from_secs(60);
/// A host that is away for less is not missed.
const MOMENT: Duration = Duration::from_secs(1);

/// A place outside this process that keeps descriptors, so that the next keeper has them if this one dies too.
pub trait DescriptorStore: Send + Sync {
    /// Stores these, beside or instead of others.
    fn keep(&self, descriptors: &[OwnedFd]);
    /// Forgets all.
    fn forget(&self);
}

/// Keeps nothing: if the keeper dies together with the host, I/O on the devices fails.
pub struct NoStore;

impl DescriptorStore for NoStore {
    fn keep(&self, _descriptors: &[OwnedFd]) {}
    fn forget(&self) {}
}

/// What was replaced by what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    /// Version of the program that served before.
    pub old_version: String,
    /// Version of the program that serves.
    pub new_version: String,
    /// How long nobody served.
    pub stall: Duration,
}

/// The part that changes when hosts come and go.
struct Hosts {
    pid: u32,
    /// The program of the next host.
    program: PathBuf,
    /// Empty: the next host starts anew.
    descriptors: Vec<OwnedFd>,
    /// Since when none serves, and why.
    away: Option<(Instant, String)>,
    recent: VecDeque<Instant>,
    restarts: u64,
}

struct Shared {
    options: SpawnOptions,
    store: Arc<dyn DescriptorStore>,
    client: Arc<HostClient>,
    /// Held by whoever replaces the host.
    hosts: Mutex<Hosts>,
    /// What [`HostKeeper::trouble`] tells, without waiting for who holds `hosts`.
    away: Mutex<Option<(Instant, String)>>,
    bell: EventFd,
}

/// Keeps the host of a pool; its thread is joined when it is dropped, and the host lives on.
pub struct HostKeeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl HostKeeper {
    /// Finds the living host or starts one, and keeps it from here on. `descriptors` are those that an earlier keeper
    /// put into the store. A living host of another version of the protocol is replaced at once. Errors: as
    /// [`connect_or_spawn`](crate::host::connect_or_spawn).
    pub fn start(options: SpawnOptions, descriptors: Vec<OwnedFd>, store: Arc<dyn DescriptorStore>) -> Result<Self> {
        let (client, descriptors) = find_or_start(&options, descriptors)?;
        if descriptors.is_empty() {
            store.forget()
        } else {
            store.keep(&descriptors)
        }
        let fail = |e: std::io::Error| Error::io("keep the pool host", e);
        let pid = client.info().pid;
        let hosts = Hosts {
            pid,
            program: options.program.clone(),
            descriptors,
            away: None,
            recent: VecDeque::new(),
            restarts: 0,
        };
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map_err(|e| fail(e.into()))?;
        let shared = Arc::new(Shared {
            options,
            store,
            client: Arc::new(client),
            hosts: Mutex::new(hosts),
            away: Mutex::default(),
            bell,
        });
        let watching = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name("pool-keeper".into()).spawn(move || watching.watch()).map_err(fail)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The pool, whichever host serves it.
    #[must_use]
    pub fn client(&self) -> &Arc<HostClient> {
        &self.shared.client
    }

    /// Why no host serves, if none has for more than a moment.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let away = self.shared.away();
        away.as_ref().filter(|(since, _)| since.elapsed() > MOMENT).map(|(_, why)| why.clone())
    }

    /// How many hosts were started because the one before had died.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.shared.hosts().restarts
    }

    /// Replaces the living host by one of this keeper's program, under the I/O of its devices. If the new one does not
    /// come up, the old program is started again. Errors: `Unsupported` if the host or the kernel cannot do that.
    pub fn replace(&self) -> Result<Replaced> {
        let mut hosts = self.shared.hosts();
        let program = self.shared.options.program.clone();
        let replaced = replace(&self.shared.options, &program, &mut hosts)?;
        self.shared.store.keep(&hosts.descriptors);
        self.shared.client.host_arrived();
        Ok(replaced)
    }

    /// Stops keeping and ends the host, unless one of its devices is open; then it stays, for the next keeper.
    pub fn close(mut self) -> Result<StopOutcome> {
        self.stop();
        let outcome = self.shared.client.stop_if_idle()?;
        if outcome == StopOutcome::Stopping {
            if !self.shared.client.wait_gone(Instant::now() + END_WAIT)? {
                let pid = self.shared.client.info().pid;
                let text = format!("end the pool host (process {pid}): it was not gone after {END_WAIT:?}");
                return Err(Error::new(ErrorKind::Unavailable, text));
            }
            self.shared.store.forget();
        }
        Ok(outcome)
    }

    fn stop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        if let Err(errno) = self.shared.bell.write(1) {
            tracing::error!("cannot wake the keeper: {errno}");
        }
        if thread.join().is_err() {
            tracing::error!("the keeper of the pool host panicked");
        }
    }
}

impl Drop for HostKeeper {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn hosts(&self) -> MutexGuard<'_, Hosts> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn away(&self) -> MutexGuard<'_, Option<(Instant, String)>> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The body of the thread: until the bell rings.
    fn watch(&self) {
        loop {
            let pid = self.hosts().pid;
            let woken = Watched::new(pid).and_then(|watched| watched.wait(&self.bell, None));
            match woken {
                Ok(Woken::Dead) => {}
                Ok(Woken::Bell | Woken::Deadline) => return,
                Err(error) => {
                    tracing::error!("cannot watch the pool host, its death will not be noticed: {error}");
                    return;
                }
            }
            let wait = self.note_death(pid);
            if !wait.is_zero() && !self.pause(wait) {
                return;
            }
            let mut failures = 0;
            loop {
                let mut hosts = self.hosts();
                if hosts.pid != pid {
                    // Replaced on purpose.
                    break;
                }
                let wait = match self.restart(&mut hosts) {
                    Ok(()) => break,
                    Err(error) => {
                        failures += 1;
                        self.tell(&hosts, failures, &error);
                        backoff(failures)
                    }
                };
                drop(hosts);
                if !self.pause(wait) {
                    return;
                }
            }
        }
    }

    /// Notes that nobody serves; how long the next start must wait.
    fn note_death(&self, pid: u32) -> Duration {
        let mut hosts = self.hosts();
        if hosts.pid != pid {
            return Duration::ZERO;
        }
        let since = Instant::now();
        hosts.away = Some((since, "the pool host has died; the next one is starting".to_owned()));
        (*self.away()).clone_from(&hosts.away);
        let wait = crowded(&mut hosts.recent, since).unwrap_or(Duration::ZERO);
        if !wait.is_zero() {
            tracing::error!(
                "pool hosts keep dying, {RESTARTS_MAX} in {RESTARTS_WITHIN:?}: the next waits for {wait:?}"
            );
        }
        wait
    }

    /// Starts the next host. The descriptors stay here until it serves: if it dies on its way, so may the one after.
    fn restart(&self, hosts: &mut Hosts) -> Result<()> {
        if !hosts.descriptors.iter().all(|fd| is_connected(fd.as_fd())) {
            // It ended in order, or somebody gave the connection up: nothing is left to take over.
            hosts.descriptors.clear();
            self.store.forget();
        }
        let (pid, fresh) = {
            let _lock = lock_start(&self.options.run_dir)?;
            match look_for_any(&self.options)?.0 {
                // Started by another program; it has everything that we have, or began anew.
                Living::Here(client) => (client.info().pid, true),
                Living::Stranger => return Err(Error::new(ErrorKind::InUse, "another program's host serves the pool")),
                Living::Nowhere => {
                    (start(&self.options, &hosts.program, &hosts.descriptors)?, hosts.descriptors.is_empty())
                }
            }
        };
        if fresh {
            hosts.descriptors = ask_for_descriptors(&self.options)?;
            self.store.keep(&hosts.descriptors);
        }
        let away = hosts.away.take().map_or(Duration::ZERO, |(since, _)| since.elapsed());
        *self.away() = None;
        hosts.restarts += 1;
        tracing::warn!(
            died = hosts.pid,
            pid,
            away_ms = away.as_millis(),
            "the pool host had died: the next one serves"
        );
        hosts.pid = pid;
        hosts.recent.push_back(Instant::now());
        self.client.host_arrived();
        Ok(())
    }

    fn tell(&self, hosts: &Hosts, failures: u32, error: &Error) {
        let why = format!("no pool host serves, start {failures} failed: {error}");
        let long = hosts.away.as_ref().is_some_and(|(since, _)| since.elapsed() >= TROUBLE_AFTER);
        if failures >= PROMPT_FAILURES && long {
            tracing::error!("{why}");
            self.client.host_in_trouble(why.clone());
        } else {
            tracing::warn!("{why}");
        }
        *self.away() = hosts.away.as_ref().map(|(since, _)| (*since, why));
    }

    /// False: the bell rang.
    fn pause(&self, wait: Duration) -> bool {
        let me = Watched::new(std::process::id());
        matches!(me.and_then(|me| me.wait(&self.bell, Some(Instant::now() + wait))), Ok(Woken::Deadline))
    }
}

fn backoff(failures: u32) -> Duration {
    match failures.checked_sub(PROMPT_FAILURES) {
        None => Duration::ZERO,
        Some(steps) => BACKOFF.saturating_mul(1 << steps.min(16)).min(BACKOFF_MAX),
    }
}

/// How long a restart at `now` must wait so that there are not too many in a row.
fn crowded(recent: &mut VecDeque<Instant>, now: Instant) -> Option<Duration> {
    while recent.front().is_some_and(|at| now.duration_since(*at) > RESTARTS_WITHIN) {
        recent.pop_front();
    }
    let step = RESTARTS_WITHIN / u32::try_from(RESTARTS_MAX).unwrap_or(1);
    let last = recent.back().filter(|_| recent.len() >= RESTARTS_MAX)?;
    step.checked_sub(now.duration_since(*last)).filter(|wait| !wait.is_zero())
}

/// The living host, or a new one that takes over what `stored` belongs to; and what keeps its devices.
fn find_or_start(options: &SpawnOptions, mut stored: Vec<OwnedFd>) -> Result<(HostClient, Vec<OwnedFd>)> {
    let _lock = lock_start(&options.run_dir)?;
    let (living, version) = look_for_any(options)?;
    match living {
        Living::Here(client) => return Ok((*client, ask_for_descriptors(options)?)),
        Living::Stranger => {
            tracing::warn!("the pool host speaks version {version} of the protocol: replacing it");
            let control = Control::connect(&options.connect.socket)?;
            let mut hosts = Hosts {
                pid: control.pid,
                program: options.program.clone(),
                descriptors: Vec::new(),
                away: None,
                recent: VecDeque::new(),
                restarts: 0,
            };
            drop(control);
            replace(options, &options.program, &mut hosts)?;
            return Ok((HostClient::connect(options.connect.clone())?, hosts.descriptors));
        }
        Living::Nowhere => {}
    }
    if !stored.iter().all(|fd| is_connected(fd.as_fd())) {
        tracing::warn!("the stored descriptors belong to a connection that has ended");
        stored.clear();
    }
    start(options, &options.program, &stored)?;
    let client = HostClient::connect(options.connect.clone())?;
    let descriptors = ask_for_descriptors(options)?;
    Ok((client, descriptors))
}

/// None, if devices cannot be kept beyond the host's death here.
fn ask_for_descriptors(options: &SpawnOptions) -> Result<Vec<OwnedFd>> {
    match Control::connect(&options.connect.socket).and_then(|mut control| control.descriptors()) {
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            tracing::warn!("if the pool host dies, its devices fail: {error}");
            Ok(Vec::new())
        }
        other => other,
    }
}

/// Replaces the living host. The new process holds the descriptors and waits before the old one is asked to go, so
/// that a program that cannot even be started costs nothing.
fn replace(options: &SpawnOptions, program: &std::path::Path, hosts: &mut Hosts) -> Result<Replaced> {
    let doing = |e: Error| e.doing("replace the pool host");
    let mut control = Control::connect(&options.connect.socket).map_err(doing)?;
    let old_version = control.version.clone();
    let descriptors = control.descriptors().map_err(doing)?;
    // By its open file: its path may mean another program by now.
    let old_program = File::open(format!("/proc/{}/exe", control.pid)).ok();
    let waiting = Starting::begin(options, program, &descriptors).map_err(doing)?;
    let since = Instant::now();
    control.hand_over().map_err(doing)?;
    hosts.descriptors = descriptors;
    let pid = match waiting.finish(options) {
        Ok(pid) => {
            hosts.program = program.to_path_buf();
            pid
        }
        Err(error) => {
            let Some(old_program) = old_program else { return Err(doing(error)) };
            tracing::error!("the new pool host does not come up, going back to the old program: {error}");
            let path = PathBuf::from(format!("/proc/self/fd/{}", old_program.as_raw_fd()));
            hosts.pid = start(options, &path, &hosts.descriptors).map_err(doing)?;
            return Err(doing(error).doing("the old program serves again"));
        }
    };
    let stall = since.elapsed();
    hosts.pid = pid;
    let new_version = Control::connect(&options.connect.socket).map_err(doing)?.version;
    tracing::info!(old_version, new_version, pid, stall_ms = stall.as_millis(), "replaced the pool host");
    Ok(Replaced { old_version, new_version, stall })
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::time::{Duration, Instant};

    use super::{BACKOFF_MAX, RESTARTS_MAX, RESTARTS_WITHIN, backoff, crowded};

    #[test]
    fn failures_are_answered_promptly_at_first_and_ever_more_slowly_later() {
        assert_eq!(backoff(1), Duration::ZERO);
        assert!(backoff(4) < backoff(5));
        assert_eq!(backoff(u32::MAX), BACKOFF_MAX);
    }

    #[test]
    fn hosts_that_die_quickly_in_a_row_are_started_at_a_bounded_rate() {
        let start = Instant::now();
        let mut recent = VecDeque::new();
        for _ in 0..RESTARTS_MAX {
            assert_eq!(crowded(&mut recent, start), None);
            recent.push_back(start);
        }
        let wait = crowded(&mut recent, start).expect("too many");
        assert!(wait <= RESTARTS_WITHIN);
        assert_eq!(crowded(&mut recent, start + wait), None);
        recent.push_back(start + wait);
        assert!(crowded(&mut recent, start + wait).is_some());
        assert_eq!(crowded(&mut recent, start + RESTARTS_WITHIN * 3), None);
    }
}
