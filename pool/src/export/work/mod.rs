//! What is the same however requests come: who does them, where their bytes stand, which writes wait for room.
mod arena;
mod asker;
mod errand;
mod foresight;
mod loop_threads;
mod lost_volume;
mod lot;
mod mailbox;
mod moving;
mod node;
mod poll;
mod workers;

pub(super) use arena::{Arena, PAYLOAD_MAX, SLOTS, build_ring};
pub(super) use asker::{Asker, Reply};
pub(super) use errand::{ByteRange, DISCARD_STEP, Errand, Transfer};
pub(super) use foresight::Foresight;
pub(super) use loop_threads::{LoopThreads, Started};
pub(super) use lost_volume::LostVolume;
pub(super) use lot::Lot;
pub(super) use mailbox::Mailbox;
pub(super) use moving::Moving;
pub(super) use node::{Node, block_size_of};
pub(super) use poll::Poll;
pub(super) use workers::{Home, Job, JobSender, LentSlot, Workers};
