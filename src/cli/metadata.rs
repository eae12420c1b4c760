//! `thinsnap pool check` and `pool dump`: of a bare file, of the pool that is served, of one that is not.
//!
//! Damaged metadata must be readable when no service can open it. So without a service these two look at
//! the file themselves, and start none inside this process.

use std::fs::OpenOptions;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde::Serialize;

use crate::admin::api::{self, pool_check_reply::Step};
use crate::admin::{Connection, MetadataReader, Target, verdict};
use crate::cli::args::Global;
use crate::cli::output::{Output, Stdout};
use crate::cli::render::{clean, count};
use crate::cli::session::{Bar, with_service};
use crate::config::{Config, Overrides};
use crate::error::{Error, ErrorKind, Result};
use crate::grpc::error_of;
use crate::store::Store;

/// Audits; the answer is the report, the status tells the worst.
pub(crate) fn check(file: Option<&Path>, global: &Global, output: Output) -> Result<()> {
    let target = global.target();
    let report = match open(file, global, &target)? {
        Some(metadata) => {
            let bar = Bar::new(output.is_json());
            let store = match file {
                Some(_) => None,
                None => records_of(global)?,
            };
            let reader = store.as_ref().map(Store::read).transpose()?;
            metadata.check(reader.as_ref(), &|progress| bar.show(&progress))?
        }
        None => with_service(&target, |mut client| async move {
            let bar = Bar::new(output.is_json());
            let mut steps = client.pool_check(api::PoolCheckRequest {}).await.map_err(|s| error_of(&s))?.into_inner();
            while let Some(reply) = steps.message().await.map_err(|s| error_of(&s))? {
                match reply.step {
                    Some(Step::Progress(progress)) => bar.show(&progress),
                    Some(Step::Report(report)) => return Ok(report),
                    None => {}
                }
            }
            Err(Error::new(ErrorKind::Unavailable, "pool check: the service ended before its answer"))
        })?,
    };
    output.answer(&report, report_text)?;
    verdict(&report)
}

/// Where the XML went, for --json.
#[derive(Debug, Serialize)]
struct Dumped {
    output: Option<String>,
}

/// Writes the XML to `to`, a file that must not exist yet, or to stdout.
pub(crate) fn write_dump(
    file: Option<&Path>,
    held: bool,
    to: Option<&Path>,
    global: &Global,
    output: Output,
) -> Result<()> {
    let target = global.target();
    // Opened first: where nothing can be read, nothing is made.
    let metadata = open(file, global, &target)?;
    let sink: Box<dyn Write> = match to {
        None => Box::new(Stdout::default()),
        Some(path) => {
            let made = OpenOptions::new().write(true).create_new(true).open(path);
            Box::new(made.map_err(|error| Error::io(format!("make the file {}", path.display()), error))?)
        }
    };
    let mut sink = BufWriter::new(sink);
    let dumped = match metadata {
        Some(metadata) => metadata.dump(held, &mut sink),
        None => with_service(&target, |mut client| {
            let sink = &mut sink;
            async move {
                let request = api::PoolDumpRequest { held };
                let mut pieces = client.pool_dump(request).await.map_err(|s| error_of(&s))?.into_inner();
                while let Some(piece) = pieces.message().await.map_err(|s| error_of(&s))? {
                    sink.write_all(&piece.xml).map_err(|error| Error::io("write the dump", error))?;
                }
                Ok(())
            }
        }),
    };
    let dumped = dumped.and_then(|()| sink.flush().map_err(|error| Error::io("write the dump", error)));
    match (dumped, to) {
        (Ok(()), None) => Ok(()),
        (Ok(()), Some(path)) => {
            let dumped = Dumped { output: Some(path.to_string_lossy().into_owned()) };
            output.answer(&dumped, |_| format!("wrote {}", path.display()))
        }
        (Err(error), None) => Err(error),
        (Err(error), Some(path)) => {
            // Half a dump looks like a whole one to whoever restores it.
            match std::fs::remove_file(path) {
                Ok(()) => Err(error),
                Err(left) => Err(error.doing(format!("{} is left behind, and not whole ({left})", path.display()))),
            }
        }
    }
}

/// The metadata that this process can read itself; `None`: ask the service.
fn open(file: Option<&Path>, global: &Global, target: &Target) -> Result<Option<MetadataReader>> {
    if let Some(file) = file {
        return MetadataReader::bare(file).map(Some);
    }
    if target.socket.is_some() || Connection::service_answers(target)? {
        return Ok(None);
    }
    let overrides = Overrides { root: global.root.clone(), engine: global.engine, ..Overrides::default() };
    let config = Config::load(global.config.as_deref(), overrides)?;
    let metadata = MetadataReader::of_pool(&config).map_err(|error| match error.kind() {
        ErrorKind::NotFound => error.advise("name the pool's directory with --root, or its metadata with --metadata"),
        _ => error,
    })?;
    Ok(Some(metadata))
}

/// The records of the pool, if nobody else has them open and they can be read: the metadata is checked without them,
/// too.
fn records_of(global: &Global) -> Result<Option<Store>> {
    let overrides = Overrides { root: global.root.clone(), engine: global.engine, ..Overrides::default() };
    let path = Config::load(global.config.as_deref(), overrides)?.root.join("store.redb");
    if !path.exists() {
        return Ok(None);
    }
    match Store::open(&path) {
        Ok(store) => Ok(Some(store)),
        Err(error) => {
            eprintln!("the records are left out: {error}");
            Ok(None)
        }
    }
}

fn report_text(report: &api::PoolCheckReport) -> String {
    let mut text = match (report.sound, report.damaged) {
        (true, _) => "sound".to_owned(),
        (false, true) => "DAMAGED".to_owned(),
        (false, false) => "sound but for leaked space".to_owned(),
    };
    if report.needs_check {
        text.push_str(", marked needs_check");
    }
    text.push_str(&format!(
        ": {}, {}, {} and {} in use\n",
        count(report.devices, "device"),
        count(report.mappings, "mapping"),
        count(report.metadata_blocks_used, "metadata block"),
        count(report.data_blocks_used, "data block"),
    ));
    for finding in &report.findings {
        // Some findings name their block in their own words.
        let block = finding.block.map(|block| format!("metadata block {block}: ")).unwrap_or_default();
        let what = finding.what.strip_prefix(block.as_str()).unwrap_or(&finding.what);
        text.push_str(&format!("{}: {}: {block}{}\n", finding.severity, clean(&finding.path), clean(what)));
    }
    if report.omitted > 0 {
        text.push_str(&format!("and {} more\n", report.omitted));
    }
    text
}
