//! Resumes a pool whose owner was killed while it held the pool still.
//!
//! A killed process is gone, and so are its locks, when the last of its threads is. A thread that waits for a block device
//! waits on; if another thread of the same process had stopped the pool below, it waits for ever, and nobody can come
//! to resume the pool, because the locks are not free. So whoever stops a pool has a process beside him that looks after the
//! thread which did it, and resumes the pool if that thread ends without having done so.

use std::io::ErrorKind::NotFound;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::error::{ErrorKind, Result};
use crate::kernel::control::Control;
use crate::kernel::news::News;

/// Between two looks at the thread.
const LOOK: Duration = Duration::from_millis(50);
/// Each wait for it ends, and the next begins.
const WAIT: Duration = Duration::from_secs(3600);
/// Of the flags in /proc/PID/task/TID/stat: the thread is on its way out.
const PF_EXITING: u64 = 4;

/// The process beside; ended when dropped.
pub(super) struct Watcher(Option<Child>);

impl Watcher {
    /// Watches the calling thread, which is about to stop the pool `name`, with `program` (see [`resume_orphan`]), if
    /// there is one. A watcher that does not start hinders nobody.
    pub(super) fn start(program: Option<&Path>, name: &str) -> Self {
        let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
        let process = std::process::id().to_string();
        let start = |program: &Path| {
            Command::new(program)
                .args(["resume-orphan", name, "--process", &process, "--thread", &thread])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .inspect_err(|e| tracing::warn!("nobody watches who stops {name}: start {}: {e}", program.display()))
                .ok()
        };
        Self(program.and_then(start))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else { return };
        if let Err(e) = child.kill().and_then(|()| child.wait()) {
            tracing::warn!("the process {} that watched a stopped pool does not end: {e}", child.id());
        }
    }
}

/// The body of the watching process: waits until the thread `thread` of the process `process` has ended, and resumes the
/// device-mapper device `name`, if it is still there. Errors: `Unsupported`, `Denied`, `Io`.
pub fn resume_orphan(name: &str, process: u32, thread: u32) -> Result<()> {
    let control = Control::open()?;
    let look = || Ok(if is_gone(process, thread) { ControlFlow::Break(true) } else { ControlFlow::Continue(false) });
    while !News::default().wait(WAIT, LOOK, look)? {}
    match control.resume(name) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Ok(()) => {
            tracing::warn!("{name} is resumed: who had stopped it was killed");
            Ok(())
        }
        failed => failed,
    }
}

/// A thread that was reaped is not there. One that ends may be held up on its way: the last of a process closes its files, and a
/// block device that is closed waits for what is on its way to it. See proc_pid_stat(5). When in doubt it lives: a pool must
/// not go on under one who has stopped it.
fn is_gone(process: u32, thread: u32) -> bool {
    let stat = match std::fs::read_to_string(format!("/proc/{process}/task/{thread}/stat")) {
        Ok(stat) => stat,
        Err(e) => return e.kind() == NotFound || e.raw_os_error() == Some(libc::ESRCH),
    };
    // State and flags, third and ninth; the second is a name, which may have anything in it.
    let fields = stat.rfind(')').map(|at| stat[at + 1..].split_whitespace().collect::<Vec<_>>()).unwrap_or_default();
    let is_ending = |flags: &&str| flags.parse::<u64>().is_ok_and(|flags| flags & PF_EXITING != 0);
    fields.get(6).is_some_and(is_ending) || fields.first().is_some_and(|state| ["Z", "X"].contains(state))
}

#[cfg(test)]
mod tests {
    use super::is_gone;

    #[test]
    fn a_thread_is_there_while_it_runs_and_gone_when_it_has_ended() {
        let me = std::process::id();
        let (told, hear) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            told.send(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()).unwrap();
            ended.recv().unwrap_err();
        });
        let id = hear.recv().unwrap();
        assert!(!is_gone(me, id));
        drop(end);
        thread.join().unwrap();
        // The kernel may take a moment after the join.
        while !is_gone(me, id) {
            std::thread::yield_now();
        }
        assert!(is_gone(u32::MAX, 1));
    }
}
