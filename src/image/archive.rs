//! Opens what a person points at: tells layouts from docker archives from root file systems, packed or not.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use crate::config::Limits;
use crate::error::{Error, ErrorKind, Result};
use crate::image::blob::{Blob, BlobReader};
use crate::image::compression::Compression;
use crate::image::files::{Files, Looks, look_into, may_be_layout};
use crate::image::layer::Layer;
use crate::image::plan::{Plan, Wanted};
use crate::image::progress::{Phase, Progress, ProgressFn, REPORT_EVERY};
use crate::image::tar::ArchiveSource;
use crate::image::{docker, oci};

/// How temporary files of ours begin; what a dead process left of them is removed at the next start.
pub(super) const SPOOL_PREFIX: &str = "spool-";

/// Opens an archive or layout directory and finds the wanted image in it. Temporary files, already unlinked, live as
/// long as the plan.
pub(super) fn open(source: &Path, wanted: Wanted<'_>, work_dir: &Path, progress: ProgressFn<'_>) -> Result<Plan> {
    let shown = source.display();
    let metadata = source.metadata().map_err(|error| Error::io(format!("open {shown}"), error))?;
    if metadata.is_dir() {
        return plan_directory(&Files::of_directory(source)?, wanted).map_err(|error| error.doing(shown));
    }
    let opening = Opening { source, wanted, work_dir, progress };
    opening.report(0, metadata.len())?;
    let file = File::open(source).map_err(|error| Error::io(format!("open {shown}"), error))?;
    let file = if metadata.is_file() { file } else { opening.spool(file, u64::MAX)? };
    opening.plan(Arc::new(file)).map_err(|error| error.doing(shown))
}

fn plan_directory(files: &Files, wanted: Wanted<'_>) -> Result<Plan> {
    if files.find("oci-layout")?.is_some() {
        return oci::plan(files, wanted);
    }
    if files.find("manifest.json")?.is_some() {
        docker::check_directory(files, wanted.limits)?;
        return docker::plan(files, wanted);
    }
    Err(Error::new(ErrorKind::BadArchive, "the directory is not an OCI layout: it has no file \"oci-layout\"")
        .advise("to import a root file system, make a tar of it: tar -C DIR -c . > rootfs.tar"))
}

struct Opening<'a> {
    source: &'a Path,
    wanted: Wanted<'a>,
    work_dir: &'a Path,
    progress: ProgressFn<'a>,
}

impl Opening<'_> {
    fn plan(&self, file: Arc<File>) -> Result<Plan> {
        let failed = |error| Error::io("look at the archive", error);
        let len = file.metadata().map_err(failed)?.len();
        let name = self.source.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let whole = Blob::new(name, Arc::clone(&file), 0, len);
        let compression = whole.compression()?;
        let plain = match compression {
            Compression::Plain => file,
            Compression::Gzip | Compression::Zstd => {
                let unpacked = self.unpack(&whole, compression)?;
                let first = Stream(BufReader::new(unpacked.take(FIRST_MEMBER_BYTES_MAX)));
                if !may_be_layout(first, self.wanted.limits).map_err(|error| error.doing(compression.name()))? {
                    return Ok(self.plan_rootfs(whole));
                }
                // A layout is read here and there, so it is unpacked first; a root file system is read once.
                Arc::new(self.spool(self.unpack(&whole, compression)?, len)?)
            }
        };
        match look_into(&plain, self.wanted.limits)? {
            Looks::RootFs => Ok(self.plan_rootfs(whole)),
            Looks::Layout(files) if files.find("oci-layout")?.is_some() => oci::plan(&files, self.wanted),
            Looks::Layout(files) => docker::plan(&files, self.wanted),
        }
    }

    fn unpack<'a>(&self, whole: &'a Blob, compression: Compression) -> Result<Box<dyn Read + 'a>> {
        let packed: BufReader<BlobReader<'a>> = BufReader::with_capacity(256 << 10, whole.reader());
        compression.unpack(packed).map_err(|error| unpack_error(compression, error))
    }

    fn plan_rootfs(&self, blob: Blob) -> Plan {
        Plan {
            names: Vec::new(),
            manifest_digest: None,
            config_digest: None,
            config: "{}".to_owned(),
            platform: self.wanted.platform(),
            layers: vec![Layer { blob, digest: None, diff_id: None }],
        }
    }

    /// Copies a stream to a temporary file without a name. `packed`: the bytes that it comes from.
    fn spool(&self, mut stream: impl Read, packed: u64) -> Result<File> {
        let path = self.work_dir.join(format!("{SPOOL_PREFIX}{}", uuid::Uuid::new_v4()));
        let failed = |error| Error::io(format!("write the temporary file {}", path.display()), error);
        let mut file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
        std::fs::remove_file(&path).map_err(failed)?;
        let limits = self.wanted.limits;
        let by_ratio = packed.saturating_mul(limits.ratio).max(limits.ratio_free.0);
        let (max, field) = if by_ratio < limits.total.0 { (by_ratio, "ratio") } else { (limits.total.0, "total") };
        let (mut done, mut reported) = (0u64, 0u64);
        let mut buffer = vec![0; 256 << 10];
        loop {
            let read = stream.read(&mut buffer).map_err(|error| match error.raw_os_error() {
                Some(_) => Error::io(format!("read {}", self.source.display()), error),
                None => Error::with_source(ErrorKind::BadArchive, "unpack the archive", error),
            })?;
            if read == 0 {
                return Ok(file);
            }
            file.write_all(&buffer[..read]).map_err(failed)?;
            done += read as u64;
            if done > max {
                let reason = Limits::over(field, format_args!("the archive unpacks to more than {max} bytes"));
                return Err(Error::new(ErrorKind::BadArchive, reason));
            }
            if done - reported >= REPORT_EVERY {
                reported = done;
                self.report(done, 0)?;
            }
        }
    }

    fn report(&self, bytes_done: u64, bytes_total: u64) -> Result<()> {
        let what = self.source.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let report = Progress { phase: Phase::Opening, layer: 0, layers: 0, what, bytes_done, bytes_total };
        match (self.progress)(&report) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::new(ErrorKind::Unavailable, "the import was stopped as asked")),
        }
    }
}

/// Bytes of an unpacked archive that are looked at for its first member's name: its headers and a block.
const FIRST_MEMBER_BYTES_MAX: u64 = 32 << 20;

struct Stream<R>(BufReader<R>);

impl<R: Read> Read for Stream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read> std::io::BufRead for Stream<R> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        self.0.fill_buf()
    }

    fn consume(&mut self, bytes: usize) {
        self.0.consume(bytes);
    }
}

impl<R: Read> ArchiveSource for Stream<R> {}

fn unpack_error(compression: Compression, error: std::io::Error) -> Error {
    Error::with_source(ErrorKind::BadArchive, format!("unpack the archive with {}", compression.name()), error)
}

/// Removes temporary files that a process left which died between making and unlinking one.
pub(super) fn remove_spools(work_dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(work_dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(SPOOL_PREFIX) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
