//! `thinsnap bench`: lays the benchmark, which travels in this program, down in a directory and becomes it.

use std::ffi::OsString;
use std::fs::{DirBuilder, write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use clap::Args;
use thinsnap_pool::Engine;
use uuid::Uuid;

use crate::cli::args::Global;
use crate::error::{Error, Result};
use crate::fs::Tool;

/// The files below benches/: name, text.
const FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/bench_files.rs"));
/// What runs it.
const PYTHON: Tool = Tool { program: "python3", package: "python3" };

/// Options of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Smaller sizes and fewer repeats: 4 minutes, the whole within 60
    #[arg(long)]
    quick: bool,
    /// As small as it goes: shows that everything runs; the figures mean nothing
    #[arg(long, hide = true, conflicts_with = "quick")]
    tiny: bool,
    /// Sections to measure, separated by commas [default: all, with --quick those that need no virtual machine; --list shows them]
    #[arg(long, value_name = "SECTIONS")]
    only: Option<OsString>,
    /// Directory on the disk to measure; everything made in it is removed again
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    dir: PathBuf,
    /// Directory for the report (benchmarks.md, benchmarks.html) and the raw figures
    #[arg(long, value_name = "DIR", default_value = "thinsnap-bench")]
    out: PathBuf,
    /// Begin anew, instead of going on with a run that was interrupted
    #[arg(long)]
    fresh: bool,
    /// Show the sections, what they need and whether this machine has it; measure nothing
    #[arg(long)]
    list: bool,
    /// Write the report anew from the raw figures in --out; measure nothing
    #[arg(long, conflicts_with_all = ["quick", "only", "fresh", "list"])]
    report: bool,
    /// Set the figures in --out beside older raw figures, as ratios; measure nothing
    #[arg(long, value_name = "DIR", conflicts_with_all = ["quick", "only", "fresh", "list", "report"])]
    compare: Option<PathBuf>,
}

/// Never comes back but with an error: the benchmark takes this process over.
pub(crate) fn run(args: &BenchArgs, global: &Global) -> Error {
    match laid_out(args, global) {
        Ok(command) => PYTHON.become_with(&command),
        Err(error) => error,
    }
}

/// Lays the files down; returns the arguments that run them. They remove themselves in the end.
fn laid_out(args: &BenchArgs, global: &Global) -> Result<Vec<OsString>> {
    PYTHON.find()?;
    let thinsnap = std::env::current_exe().map_err(|error| Error::io("find this program's own file", error))?;
    let top = std::env::temp_dir().join(format!("thinsnap-bench-files-{}", Uuid::new_v4().simple()));
    for (name, text) in FILES {
        let file = top.join(name);
        let dir = file.parent().unwrap_or(&top);
        let written = DirBuilder::new().recursive(true).mode(0o700).create(dir).and_then(|()| write(&file, text));
        written.map_err(|error| Error::io(format!("write {}", file.display()), error))?;
    }
    let mut command: Vec<OsString> = vec![top.join("run.py").into(), "--laid-out".into()];
    let mut option = |name: &str, value: &Path| command.extend([name.into(), value.into()]);
    option("--thinsnap", &thinsnap);
    option("--dir", &args.dir);
    option("--out", &args.out);
    if let Some(older) = &args.compare {
        option("--compare", older);
    }
    let engine = match global.engine {
        None | Some(Engine::Embedded) => "embedded",
        Some(Engine::Kernel) => "kernel",
        Some(Engine::Auto) => "auto",
    };
    option("--engine", Path::new(engine));
    if let Some(sections) = &args.only {
        option("--only", Path::new(sections));
    }
    let switches = [
        ("--quick", args.quick),
        ("--tiny", args.tiny),
        ("--fresh", args.fresh),
        ("--list", args.list),
        ("--report", args.report),
        ("--json", global.json),
    ];
    command.extend(switches.iter().filter(|(_, on)| *on).map(|(name, _)| OsString::from(name)));
    Ok(command)
}
