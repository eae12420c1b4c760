//! Answers that come in steps: work on a blocking thread, its reports on their way to the caller.

use std::io;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use crate::admin::backend::Backend;
use crate::admin::protocol::api;
use crate::error::Result;
use crate::grpc::BlockingCalls;

/// Reports that wait for a slow reader.
const REPORTS_WAITING: usize = 16;

/// The stream type of every stepwise answer.
pub(super) type Replies<T> = Pin<Box<dyn Stream<Item = std::result::Result<T, Status>> + Send>>;

/// The way from the work to its caller.
pub(super) struct Reports<T>(mpsc::Sender<std::result::Result<T, Status>>);

impl<T> Reports<T> {
    /// Sends a step that the next one outdates: left out where the reader is slow. `Break`: nobody listens.
    pub(super) fn latest(&self, step: T) -> ControlFlow<()> {
        match self.0.try_send(Ok(step)) {
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => ControlFlow::Continue(()),
            Err(mpsc::error::TrySendError::Closed(_)) => ControlFlow::Break(()),
        }
    }

    /// Sends a step that must arrive: waits for the reader. `Break`: nobody listens.
    fn every(&self, step: T) -> ControlFlow<()> {
        match self.0.blocking_send(Ok(step)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }
}

/// Runs work that reports as it goes; what it returns, if anything, is the last step.
pub(super) fn streamed<T: Send + 'static>(
    backend: &Arc<Backend>,
    calls: &BlockingCalls,
    verb: &'static str,
    work: impl FnOnce(&Backend, &Reports<T>) -> Result<Option<T>> + Send + 'static,
) -> Response<Replies<T>> {
    let (sender, receiver) = mpsc::channel(REPORTS_WAITING);
    let (backend, calls, reports) = (Arc::clone(backend), calls.clone(), Reports(sender.clone()));
    tokio::spawn(async move {
        let last = calls.slow(verb, move || work(&backend, &reports)).await;
        let Some(last) = last.transpose() else { return };
        if sender.send(last).await.is_err() {
            tracing::info!(verb, "the caller went away before the answer");
        }
    });
    Response::new(Box::pin(ReceiverStream::new(receiver)))
}

/// Writes XML into a stream of pieces.
pub(super) struct Pieces<'a>(pub(super) &'a Reports<api::PoolDumpReply>);

impl io::Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.every(api::PoolDumpReply { xml: bytes.to_vec() }) {
            ControlFlow::Continue(()) => Ok(bytes.len()),
            ControlFlow::Break(()) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the caller went away")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
