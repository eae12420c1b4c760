//! Decides what a request asks for and answers at once what needs no I/O.

use crate::export::exporter::Direction;
use crate::export::fuse::node::Nodes;
use crate::export::fuse::wire::{
    Attributes, Fallocate, IN_HEADER, Operation, ROOT_NODE, Request, Span, answer_init, answer_open, answer_open_dir,
    answer_read_dir, answer_stat_fs, grants_resend, parse_read_dir, parse_release,
};
use crate::export::work::{ByteRange, DISCARD_STEP, Errand, PAYLOAD_MAX, Transfer};
use crate::thin_pool::Access;

/// What to do about a request.
pub(super) enum Decision {
    /// Nothing; no answer is expected.
    Silence,
    /// Answer with an errno, 0 for success without a body.
    Status(i32),
    /// Answer with these bytes.
    Answer(Vec<u8>),
    /// Move bytes.
    Transfer(Transfer),
    /// Do it on a worker.
    Errand(Errand),
    /// Answer success, then let a worker call [`Nodes::settle`] for this node.
    Settle(u64),
}

/// `bytes` is the request with its header, without the payload of a WRITE.
pub(super) fn decide(nodes: &Nodes, request: Request, bytes: &[u8]) -> Decision {
    let arguments = bytes.get(IN_HEADER..).unwrap_or_default();
    match request.operation {
        Operation::Read => transfer(nodes, request, arguments, Direction::Read),
        Operation::Write => transfer(nodes, request, arguments, Direction::Write),
        Operation::Fsync => match nodes.find(request.node) {
            // The loop driver asks when it binds a file, and a file system that only read asks when it is unmounted.
            Some(node) if !node.was_changed() => Decision::Status(0),
            Some(node) => Decision::Errand(Errand::Flush(node)),
            None => Decision::Status(libc::ENOENT),
        },
        Operation::Fallocate => fallocate(nodes, request, arguments),
        Operation::Init => match answer_init(arguments) {
            Some(answer) => {
                nodes.begin(grants_resend(&answer));
                Decision::Answer(answer)
            }
            None => Decision::Status(libc::EPROTO),
        },
        Operation::Lookup => {
            let name = arguments.split(|byte| *byte == 0).next().unwrap_or_default();
            match nodes.attributes_of_name(name) {
                Some(attributes) if request.node == ROOT_NODE => Decision::Answer(attributes.answer_entry()),
                _ => Decision::Status(libc::ENOENT),
            }
        }
        Operation::GetAttr => match attributes(nodes, request.node) {
            Some(attributes) => Decision::Answer(attributes.answer()),
            None => Decision::Status(libc::ENOENT),
        },
        Operation::Open => {
            // The count is raised before the file is looked for, so that a file that is found stays.
            let handle = nodes.opened(request.node);
            if nodes.find(request.node).is_some() {
                Decision::Answer(answer_open(handle))
            } else {
                nodes.released(request.node, handle);
                Decision::Status(libc::ENOENT)
            }
        }
        Operation::Release => match parse_release(arguments) {
            Some(handle) if nodes.released(request.node, handle) => Decision::Settle(request.node),
            _ => Decision::Status(0),
        },
        Operation::OpenDir => Decision::Answer(answer_open_dir()),
        Operation::ReadDir => match parse_read_dir(arguments) {
            Some((from, room)) => Decision::Answer(answer_read_dir(&nodes.list(), from, room.min(PAYLOAD_MAX))),
            None => Decision::Status(libc::EINVAL),
        },
        Operation::ReleaseDir | Operation::Destroy => Decision::Status(0),
        Operation::StatFs => Decision::Answer(answer_stat_fs(DISCARD_STEP)),
        Operation::SetAttr => Decision::Status(libc::EPERM),
        Operation::Forget | Operation::BatchForget => Decision::Silence,
        Operation::Other(_) => Decision::Status(libc::ENOSYS),
    }
}

fn attributes(nodes: &Nodes, number: u64) -> Option<Attributes> {
    if number == ROOT_NODE {
        return Some(Attributes { node: ROOT_NODE, size: 0, mode: libc::S_IFDIR | 0o700 });
    }
    nodes.attributes(number)
}

fn transfer(nodes: &Nodes, request: Request, arguments: &[u8], direction: Direction) -> Decision {
    let Some(node) = nodes.find(request.node) else { return Decision::Status(libc::ENOENT) };
    let Some(Span { offset, mut len }) = Span::parse(arguments) else { return Decision::Status(libc::EINVAL) };
    if len as usize > PAYLOAD_MAX {
        return Decision::Status(libc::EINVAL);
    }
    let room = node.size().saturating_sub(offset);
    match direction {
        // A file's read ends at its end.
        Direction::Read => len = len.min(u32::try_from(room).unwrap_or(u32::MAX)),
        Direction::Write => {
            if node.access == Access::ReadOnly {
                return Decision::Status(libc::EROFS);
            }
            if u64::from(len) > room {
                return Decision::Status(libc::EFBIG);
            }
            let sent = request.len as usize - (IN_HEADER + arguments.len()).min(request.len as usize);
            if sent != len as usize {
                return Decision::Status(libc::EINVAL);
            }
        }
    }
    if len == 0 {
        return match direction {
            Direction::Read => Decision::Status(0),
            Direction::Write => Decision::Answer(vec![0; 8]),
        };
    }
    if !offset.is_multiple_of(node.alignment) || !u64::from(len).is_multiple_of(node.alignment) {
        return Decision::Status(libc::EINVAL);
    }
    if direction == Direction::Write {
        node.note_change();
    }
    Decision::Transfer(Transfer { node, direction, offset, len })
}

fn fallocate(nodes: &Nodes, request: Request, arguments: &[u8]) -> Decision {
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    const ZERO_KEEP: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
    let Some(node) = nodes.find(request.node) else { return Decision::Status(libc::ENOENT) };
    let Some(range) = Fallocate::parse(arguments) else { return Decision::Status(libc::EINVAL) };
    if node.access == Access::ReadOnly {
        return Decision::Status(libc::EROFS);
    }
    if range.offset.checked_add(range.len).is_none_or(|end| end > node.size()) {
        return Decision::Status(libc::EFBIG);
    }
    if !range.offset.is_multiple_of(node.alignment) || !range.len.is_multiple_of(node.alignment) {
        return Decision::Status(libc::EINVAL);
    }
    node.note_change();
    let mode = range.mode;
    let range = ByteRange { offset: range.offset, len: range.len };
    match i32::try_from(mode) {
        Ok(PUNCH) => Decision::Errand(Errand::Discard(node, range)),
        Ok(ZERO | ZERO_KEEP) => Decision::Errand(Errand::WriteZeroes(node, range)),
        _ => Decision::Status(libc::EOPNOTSUPP),
    }
}
