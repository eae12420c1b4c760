//! Connections to the service's socket: root's as many as it likes, other users' only so many, so that nobody takes the
//! descriptors of all.
//!
//! A connection that says nothing, or nothing sensible, costs one descriptor and no thread; bounded by user, such
//! connections may stay for as long as they like.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Sleep, sleep};
use tokio_stream::Stream;
use tonic::transport::server::{Connected, UdsConnectInfo};

/// Connections of one user other than root.
const OF_A_USER_MAX: usize = 16;
/// Connections of all users other than root.
const OF_USERS_MAX: usize = 128;
/// Pause when the process has no descriptor left: trying again at once would take a whole processor.
const PAUSE: Duration = Duration::from_millis(100);

/// The connections of a listening socket.
pub(super) struct Incoming {
    listener: UnixListener,
    counts: Arc<Counts>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    pub(super) fn new(listener: UnixListener) -> Self {
        Self { listener, counts: Arc::default(), pause: None }
    }
}

impl Stream for Incoming {
    type Item = std::io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                std::task::ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match std::task::ready!(self.listener.poll_accept(cx)) {
                Ok((stream, _)) => {
                    if let Some(connection) = Connection::admit(stream, &self.counts) {
                        return Poll::Ready(Some(Ok(connection)));
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot take a client: waiting a moment");
                    self.pause = Some(Box::pin(sleep(PAUSE)));
                }
            }
        }
    }
}

/// Connections by user; root's are not counted.
#[derive(Debug, Default)]
struct Counts {
    by_user: Mutex<HashMap<Option<u32>, usize>>,
}

impl Counts {
    fn lock(&self) -> MutexGuard<'_, HashMap<Option<u32>, usize>> {
        self.by_user.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more of a user, unless there are enough.
    fn take(self: &Arc<Self>, user: Option<u32>) -> Option<Place> {
        if user == Some(0) {
            return Some(Place { counts: None, user });
        }
        let mut by_user = self.lock();
        let of_all: usize = by_user.values().sum();
        let of_user = by_user.get(&user).copied().unwrap_or_default();
        if of_all >= OF_USERS_MAX || of_user >= OF_A_USER_MAX {
            return None;
        }
        by_user.insert(user, of_user + 1);
        Some(Place { counts: Some(Arc::clone(self)), user })
    }
}

/// A connection's place among those of its user; given back when dropped.
#[derive(Debug)]
struct Place {
    counts: Option<Arc<Counts>>,
    user: Option<u32>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(counts) = &self.counts else { return };
        let mut by_user = counts.lock();
        if let Some(count) = by_user.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                by_user.remove(&self.user);
            }
        }
    }
}

/// A connection that has its place.
pub(super) struct Connection {
    stream: UnixStream,
    _place: Place,
}

impl Connection {
    /// `None`, and the connection is closed, if its user has enough of them.
    fn admit(stream: UnixStream, counts: &Arc<Counts>) -> Option<Self> {
        let user = stream.peer_cred().ok().map(|cred| cred.uid());
        let place = counts.take(user);
        if place.is_none() {
            tracing::debug!(?user, "a client was turned away: its user has enough connections");
        }
        place.map(|place| Self { stream, _place: place })
    }
}

impl Connected for Connection {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> UdsConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Counts, OF_A_USER_MAX, OF_USERS_MAX};

    #[test]
    fn a_user_has_so_many_places_and_gets_each_back() {
        let counts: Arc<Counts> = Arc::default();
        let mut places: Vec<_> = (0..OF_A_USER_MAX).map(|_| counts.take(Some(7)).unwrap()).collect();
        assert!(counts.take(Some(7)).is_none());
        assert!(counts.take(Some(8)).is_some(), "another user has its own");
        places.pop();
        assert!(counts.take(Some(7)).is_some());
        drop(places);
        assert!(counts.lock().is_empty());
    }

    #[test]
    fn all_users_together_leave_room_for_root() {
        let counts: Arc<Counts> = Arc::default();
        let places: Vec<_> = (0..1000).filter_map(|user| counts.take(Some(1 + user / 8))).collect();
        assert_eq!(places.len(), OF_USERS_MAX);
        assert!(counts.take(None).is_none(), "who cannot be told is nobody special");
        assert!(counts.take(Some(0)).is_some());
    }
}
