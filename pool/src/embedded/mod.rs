//! Engine 1: the data path in this process, on a metadata and a data device.
mod backing;
mod cells;
mod committer;
mod embedded_pool;
mod intent_format;
mod intent_log;
mod intent_record;
mod intent_tools;
mod ledger;
mod mode;
mod options;
mod plan;
mod pulse;
mod reclaim;
mod replay;
mod table;
mod trim;
mod unmap;
mod view;
mod volume;
mod write;

pub use embedded_pool::EmbeddedPool;
pub use intent_format::{IntentEpoch, IntentHeader, IntentLogContent, parse_intent_log};
pub use intent_record::IntentChange;
pub(crate) use intent_tools::state as intent_log_state_for;
pub use intent_tools::{IntentLogState, discard_intent_log, intent_log_state};
pub use options::EmbeddedOptions;
