//! Descriptors on their way to another process, over a unix socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

/// Most descriptors in one message: one for each event loop of an exporter, which are 8 at most.
pub(super) const DESCRIPTORS_MAX: usize = 64;

/// Sends the descriptors with one byte that says how many they are.
pub(super) fn send_descriptors(to: &UnixStream, descriptors: &[OwnedFd]) -> io::Result<()> {
    let count = u8::try_from(descriptors.len()).ok().filter(|count| usize::from(*count) <= DESCRIPTORS_MAX);
    let count = [count.ok_or_else(|| io::Error::other("too many descriptors for one message"))?];
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = vec![MaybeUninit::uninit(); SendAncillaryMessage::ScmRights(&borrowed).size()];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::other("no room for descriptors in a message"));
    }
    loop {
        match sendmsg(to, &[IoSlice::new(&count)], &mut control, SendFlags::NOSIGNAL) {
            Ok(1) => return Ok(()),
            Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Receives what [`send_descriptors`] sent.
pub(super) fn receive_descriptors(from: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut count = [0];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(from, &mut [IoSliceMut::new(&mut count)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(list) = message {
            descriptors.extend(list);
        }
    }
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if descriptors.len() != usize::from(count[0]) {
        return Err(io::Error::other(format!("{} descriptors came, {} were announced", descriptors.len(), count[0])));
    }
    Ok(descriptors)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::{receive_descriptors, send_descriptors};

    #[test]
    fn descriptors_arrive_as_others_of_the_same_open_files() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut near, far) = UnixStream::pair().unwrap();
        send_descriptors(&here, &[OwnedFd::from(far)]).unwrap();
        let mut received = receive_descriptors(&there).unwrap();
        let mut far = UnixStream::from(received.remove(0));
        far.write_all(b"x").unwrap();
        let mut byte = [0];
        near.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"x");
        send_descriptors(&here, &[]).unwrap();
        assert!(receive_descriptors(&there).unwrap().is_empty());
        drop(here);
        assert!(receive_descriptors(&there).is_err());
    }
}
