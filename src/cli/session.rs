//! One command's talk with the admin service: a runtime, a connection, ctrl-C, an orderly end.

use std::future::Future;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tonic::transport::Channel;

use crate::admin::api::Progress;
use crate::admin::api::admin_client::AdminClient;
use crate::admin::{Connection, Target};
use crate::cli::render::clean;
use crate::error::{Error, ErrorKind, Result};

/// Longest wait for blocking work when the command is over.
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs `work` with a client of the service that `target` means.
pub(crate) fn with_service<T, F: Future<Output = Result<T>>>(
    target: &Target,
    work: impl FnOnce(AdminClient<Channel>) -> F,
) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Error::io("start the command's threads", error))?;
    let outcome = runtime.block_on(async {
        let connection = Connection::open(target).await?;
        let outcome = tokio::select! {
            outcome = work(connection.client()) => outcome,
            signal = tokio::signal::ctrl_c() => Err(interrupted(signal)),
        };
        let closed = connection.close().await;
        // What failed first is what the user must hear.
        outcome.and_then(|value| closed.map(|()| value))
    });
    runtime.shutdown_timeout(END_TIMEOUT);
    outcome
}

fn interrupted(signal: std::io::Result<()>) -> Error {
    match signal {
        Ok(()) => Error::new(ErrorKind::Unavailable, "interrupted").advise("run the same command again"),
        Err(error) => Error::io("listen for ctrl-C", error),
    }
}

/// A progress bar on stderr, on a terminal only.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    pub(crate) fn new(quiet: bool) -> Self {
        let bar = ProgressBar::new(0);
        let shown = !quiet && std::io::stderr().is_terminal();
        bar.set_draw_target(if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() });
        Self(bar)
    }

    pub(crate) fn show(&self, progress: &Progress) {
        let template = match (progress.total, progress.unit.as_str()) {
            (0, _) => "{spinner} {msg} {elapsed}",
            (_, "bytes") => "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}",
            (_, _) => "{msg} {wide_bar} {human_pos}/{human_len}",
        };
        self.0.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        self.0.set_length(progress.total);
        self.0.set_position(progress.done);
        self.0.set_message(clean(&progress.stage));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
