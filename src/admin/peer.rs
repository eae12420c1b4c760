//! Who calls: the user behind the socket, or this very process. What changes something is root's.
//!
//! The socket's group may read, and may use containerd's service, because that is what a group on the
//! socket is for. An admin verb can mount, read any archive on the machine and grow the pool.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tonic::transport::server::{Connected, UdsConnectInfo};
use tonic::{Request, Status};

use crate::error::{Error, ErrorKind};
use crate::grpc::status_of;

/// Marks calls over an in-memory connection: caller and service are one process.
#[derive(Debug, Clone, Copy)]
pub(super) struct InProcess;

/// The service's end of an in-memory connection.
pub(super) struct LocalStream(pub(super) DuplexStream);

impl Connected for LocalStream {
    type ConnectInfo = InProcess;

    fn connect_info(&self) -> InProcess {
        InProcess
    }
}

impl AsyncRead for LocalStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for LocalStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Lets root and this process pass; everybody else gets `PermissionDenied`, also who cannot be told.
pub(crate) fn require_root<T>(verb: &str, request: &Request<T>) -> Result<(), Status> {
    if request.extensions().get::<InProcess>().is_some() {
        return Ok(());
    }
    let uid = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred).map(|cred| cred.uid());
    if uid == Some(0) {
        return Ok(());
    }
    let who = uid.map_or_else(|| "an unknown user".to_owned(), |uid| format!("user {uid}"));
    Err(status_of(
        &Error::new(ErrorKind::Denied, format!("{verb}: {who} may look but not change anything"))
            .advise("run the command as root, for instance with sudo"),
    ))
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Request};

    use super::{InProcess, require_root};

    #[test]
    fn who_cannot_be_told_is_refused() {
        assert_eq!(require_root("grow", &Request::new(())).unwrap_err().code(), Code::PermissionDenied);
    }

    #[test]
    fn this_process_passes() {
        let mut request = Request::new(());
        request.extensions_mut().insert(InProcess);
        assert!(require_root("grow", &request).is_ok());
    }
}
