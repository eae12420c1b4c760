//! The first words between a client and a host.

use std::io;
use std::os::unix::net::UnixStream;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;

use crate::device::is_living;
use crate::error::{Error, ErrorKind, Result};
use crate::host::client::ConnectOptions;
use crate::host::protocol::{
    HostInfo, REQUEST_MAX, Reception, VERSION, broken, hello, open_welcome, receive_frame, send_frame,
};

pub(super) fn ending(options: &ConnectOptions) -> Error {
    Error::new(ErrorKind::Unavailable, format!("the pool host at {} is ending", options.socket.display()))
}

/// How far a host let us in.
pub(super) enum Handshake {
    /// Calls may follow.
    Ready(UnixStream, HostInfo),
    /// The host is ending; the connection closes when its pool is closed.
    Ending(UnixStream),
    /// The host speaks another version of the protocol.
    Stranger(u32),
}

/// The error for a host of another version that cannot be replaced under its devices.
pub(super) fn stranger(options: &ConnectOptions, version: u32) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!(
            "connect to the pool host at {}: it speaks version {version} of the protocol, this program {VERSION}; \
             unmount its devices, stop it and start again",
            options.socket.display()
        ),
    )
}

/// Connects. Errors as [`HostClient::connect`], `InUse` if the host serves too many connections.
pub(super) fn shake_hands(options: &ConnectOptions) -> Result<Handshake> {
    let doing = format!("connect to the pool host at {}", options.socket.display());
    let mut stream = UnixStream::connect(&options.socket)
        .map_err(|e| Error::with_source(ErrorKind::Unavailable, doing.clone(), e))?;
    if !listener_lives(&stream) {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        return Err(Error::with_source(ErrorKind::Unavailable, format!("{doing}: it is dying"), refused));
    }
    let talk = |stream: &mut UnixStream| -> io::Result<Option<Vec<u8>>> {
        stream.set_read_timeout(Some(options.handshake_timeout))?;
        stream.set_write_timeout(Some(options.handshake_timeout))?;
        send_frame(stream, &hello())?;
        let welcome = receive_frame(stream, REQUEST_MAX)?;
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        Ok(welcome)
    };
    let frame = talk(&mut stream)
        .and_then(|frame| frame.ok_or_else(|| io::ErrorKind::UnexpectedEof.into()))
        .map_err(|e| broken(&doing, e))?;
    let info = match open_welcome(&frame).map_err(|e| broken(&doing, e))? {
        Ok(Reception::Ready(info)) => info,
        Ok(Reception::Ending) => return Ok(Handshake::Ending(stream)),
        Ok(Reception::Crowded) => {
            return Err(Error::new(ErrorKind::InUse, format!("{doing}: it serves too many connections")));
        }
        Err(version) => return Ok(Handshake::Stranger(version)),
    };
    match options.identity {
        Some(identity) if identity != info.identity => {
            Err(Error::new(ErrorKind::Invalid, format!("{doing}: it serves another pool")))
        }
        _ => Ok(Handshake::Ready(stream, info)),
    }
}

/// False if the process that listens is killed but not gone: while one of its threads is inside the kernel its socket
/// still takes connections, which nobody will ever serve.
pub(super) fn listener_lives(stream: &UnixStream) -> bool {
    let peer = getsockopt(stream, PeerCredentials).ok().and_then(|peer| u32::try_from(peer.pid()).ok());
    // A process that cannot be seen from here has no number.
    peer.is_none_or(|pid| pid == 0 || is_living(pid, None))
}
