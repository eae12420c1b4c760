//! What programs of different versions say to each other: who are you, give me what keeps your devices, hand over.
//!
//! A connection whose hello carries the mark is a control connection. Nothing in this file depends on the version of
//! the protocol, and none of it may ever change: a host that runs for months is replaced through it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::host::descriptors::{receive_descriptors, send_descriptors};
use crate::host::protocol::{REQUEST_MAX, broken, hello, receive_frame, send_frame};

/// Follows the version in a hello, and again in the answer to it.
const MARK: [u8; 8] = *b"control1";
const HELLO: usize = 12;
const ASK_DESCRIPTORS: u8 = 1;
const ASK_HAND_OVER: u8 = 2;
const YES: u8 = 0;

/// Longest wait for a host's answer. Handing over waits for the calls and the I/O under way.
const ANSWER_WAIT: Duration = Duration::from_secs(60);

/// What a control connection asks of a host.
pub(super) trait Controlled {
    /// Descriptors that keep the block devices beyond the host's death.
    fn descriptors(&self) -> Result<Vec<OwnedFd>>;
    /// Ends the work and leaves the devices to a successor.
    fn hand_over(&self) -> Result<()>;
    /// The answer to that is on its way: after success the host ends.
    fn part(&self);
}

/// True if a hello begins a control connection.
pub(super) fn is_control(hello: &[u8]) -> bool {
    hello.get(HELLO..HELLO + MARK.len()) == Some(&MARK)
}

/// The host's side, after the hello.
pub(super) fn serve_control(stream: &UnixStream, version: u32, host: &impl Controlled) -> io::Result<()> {
    let mut stream = stream;
    let mut welcome = version.to_le_bytes().to_vec();
    welcome.extend(MARK);
    welcome.extend(std::process::id().to_le_bytes());
    welcome.extend(env!("CARGO_PKG_VERSION").as_bytes());
    send_frame(&mut stream, &welcome)?;
    let mut given = false;
    while let Some(request) = receive_frame(&mut stream, REQUEST_MAX)? {
        match request.as_slice() {
            [ASK_DESCRIPTORS] => {
                let descriptors = host.descriptors();
                send_frame(&mut stream, &reply(&descriptors))?;
                if let Ok(descriptors) = descriptors {
                    send_descriptors(stream, &descriptors)?;
                    given = true;
                }
            }
            // Without the descriptors nobody could go on.
            [ASK_HAND_OVER] if given => {
                let sent = send_frame(&mut stream, &reply(&host.hand_over()));
                host.part();
                sent?;
            }
            _ => {
                let text = "this host understands no such request, or not yet";
                send_frame(&mut stream, &reply::<()>(&Err(Error::new(ErrorKind::Unsupported, text))))?;
            }
        }
    }
    Ok(())
}

fn reply<T>(result: &Result<T>) -> Vec<u8> {
    match result {
        Ok(_) => vec![YES],
        Err(error) => [&[YES + 1], error.to_string().as_bytes()].concat(),
    }
}

/// A control connection to a living host of whatever version.
pub(super) struct Control {
    stream: UnixStream,
    /// Process id of the host.
    pub(super) pid: u32,
    /// Its program's version.
    pub(super) version: String,
}

impl Control {
    /// Connects. Errors: `Unavailable` if nobody answers, `Unsupported` if the host is too old to be controlled.
    pub(super) fn connect(socket: &Path) -> Result<Self> {
        let doing = format!("connect to the pool host at {}", socket.display());
        let fail = |e: io::Error| broken(&doing, e);
        let mut stream =
            UnixStream::connect(socket).map_err(|e| Error::with_source(ErrorKind::Unavailable, doing.clone(), e))?;
        stream.set_read_timeout(Some(ANSWER_WAIT)).map_err(fail)?;
        stream.set_write_timeout(Some(ANSWER_WAIT)).map_err(fail)?;
        send_frame(&mut stream, &[hello().as_slice(), &MARK].concat()).map_err(fail)?;
        let welcome = receive_frame(&mut stream, REQUEST_MAX)
            .and_then(|frame| frame.ok_or_else(|| io::ErrorKind::UnexpectedEof.into()))
            .map_err(fail)?;
        let rest = welcome.get(4..).and_then(|rest| rest.strip_prefix(&MARK)).and_then(<[u8]>::split_first_chunk);
        let Some((pid, version)) = rest else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{doing}: it is too old to hand its devices over; unmount them, stop it and start again"),
            ));
        };
        Ok(Self { stream, pid: u32::from_le_bytes(*pid), version: String::from_utf8_lossy(version).into_owned() })
    }

    /// What keeps the host's block devices beyond its death. Errors: `Unsupported` if it cannot be had.
    pub(super) fn descriptors(&mut self) -> Result<Vec<OwnedFd>> {
        let doing = "ask the pool host for what keeps its devices";
        self.ask(doing, ASK_DESCRIPTORS)?;
        receive_descriptors(&self.stream).map_err(|e| broken(doing, e))
    }

    /// Has the host end and leave its devices to whoever has the descriptors, which must have been asked for on this
    /// connection. At return it has written everything and is about to be gone.
    pub(super) fn hand_over(&mut self) -> Result<()> {
        self.ask("ask the pool host to hand over", ASK_HAND_OVER)
    }

    fn ask(&mut self, doing: &str, request: u8) -> Result<()> {
        let fail = |e: io::Error| broken(doing, e);
        send_frame(&mut self.stream, &[request]).map_err(fail)?;
        match receive_frame(&mut self.stream, REQUEST_MAX).map_err(fail)?.as_deref() {
            Some([YES]) => Ok(()),
            Some([_, text @ ..]) => {
                Err(Error::new(ErrorKind::Unsupported, format!("{doing}: {}", String::from_utf8_lossy(text))))
            }
            Some([]) | None => Err(fail(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}
