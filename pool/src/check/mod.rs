//! Judges metadata that anybody may have written, and prints it: reads a bare device, changes nothing.
mod audit;
mod clock;
mod dump;
mod live_copy;
mod maps;
mod reader;
mod report;
mod tally;
mod trees;

pub use audit::{Progress, audit};
pub use dump::{DumpSource, dump};
pub use live_copy::live_copy;
pub use report::{Finding, Report, Severity};
