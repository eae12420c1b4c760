//! Reads and decodes the nodes in use before they are asked for: in the order of their places, on all processors.
//!
//! A walk asks for one node after the other, wherever it stands, and waits for each. Which blocks are in use the space
//! map tells beforehand; it may be wrong, so what is found here is an offer: the walk reads by itself what is missing,
//! and judges everything as if it had.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::check::reader::Reader;
use crate::error::Result;
use crate::format::{Bitmap, INDEX_ENTRIES_MAX, Node, Superblock, decode_index};
use crate::units::MetaBlock;

/// Fewer blocks are read faster one by one than by threads that must be started.
const BLOCKS_MIN: usize = 512;
/// Most nodes that are kept: half a gigabyte of memory. What is beyond is read when it is asked for.
const BLOCKS_MAX: usize = 65_536;
/// Blocks that one thread takes at a time.
const PIECE: usize = 64;
/// More threads than this wait for the disk, not for a processor.
const WORKERS_MAX: usize = 8;

/// Sound nodes by their places.
pub(in crate::check) type Nodes = HashMap<MetaBlock, Node>;

/// The nodes in use, as far as the space map of `superblock` tells. `progress` is told how many blocks were read.
pub(in crate::check) fn preload(reader: &Reader<'_>, superblock: &Superblock, progress: &dyn Fn(u64)) -> Nodes {
    let mut blocks = used_blocks(reader, superblock).unwrap_or_default();
    blocks.truncate(BLOCKS_MAX);
    if blocks.len() < BLOCKS_MIN {
        return Nodes::new();
    }
    let found = Mutex::new(Nodes::with_capacity(blocks.len()));
    let next = AtomicUsize::new(0);
    let work = |tell: &dyn Fn(u64)| {
        let mut own = Vec::new();
        loop {
            let start = next.fetch_add(PIECE, Ordering::Relaxed);
            let Some(piece) = blocks.get(start..(start + PIECE).min(blocks.len())).filter(|piece| !piece.is_empty())
            else {
                break;
            };
            tell(start as u64);
            for &block in piece {
                let node = reader.block(block).and_then(|bytes| Node::decode(block, &bytes));
                own.extend(node.ok().map(|node| (block, node)));
            }
        }
        found.lock().unwrap_or_else(PoisonError::into_inner).extend(own);
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
    std::thread::scope(|scope| {
        for _ in 1..workers {
            scope.spawn(|| work(&|_| ()));
        }
        work(progress);
    });
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn used_blocks(reader: &Reader<'_>, superblock: &Superblock) -> Result<Vec<MetaBlock>> {
    let index = MetaBlock(superblock.metadata_map.bitmap_root);
    let entries = decode_index(index, &*reader.block(index)?, INDEX_ENTRIES_MAX)?;
    let wanted = usize::try_from(superblock.metadata_map.bitmaps()).unwrap_or(0).min(entries.len());
    let mut used = Vec::new();
    let mut number = 1;
    for entry in &entries[..wanted] {
        let block = MetaBlock(entry.block);
        let bitmap = Bitmap::decode(block, &*reader.block(block)?)?;
        for &count in &bitmap.entries[usize::from(number == 1)..] {
            if count > 0 {
                used.push(MetaBlock(number));
            }
            number += 1;
        }
    }
    Ok(used)
}
