//! Judges metadata that anybody may have written, and prints it: reads a bare device, changes nothing.
mod audit;
mod clock;
mod dump;
mod holdings;
mod maps;
mod preload;
mod reader;
mod report;
mod tally;
mod trees;
mod view_device;

pub(crate) use audit::audit_used;
pub use audit::{Progress, audit};
pub use dump::{DumpSource, dump};
pub use holdings::holdings;
pub(crate) use reader::Reader;
pub use report::{Finding, Report, Severity};
pub(crate) use tally::Tally;
pub use view_device::ViewDevice;
