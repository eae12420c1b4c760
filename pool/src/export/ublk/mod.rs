//! Block devices of the kernel's ublk driver, served by this process.
mod asking;
mod channel;
mod control;
mod devices;
mod event;
mod openers;
mod place;
mod queue_loop;
mod requests;
mod serving;
mod wire;

pub(super) use asking::Asking;
pub(super) use channel::Channel;
pub(super) use control::Control;
pub(super) use devices::{Devices, Shown, Stage, notice_death_soon};
pub(crate) use devices::{has_ublk_devices, probe_ublk};
pub(super) use place::{Place, block_name};
pub(super) use serving::Serving;
pub(super) use wire::Params;
