//! Runs the few external programs that the service needs; nothing else in `src/` starts a process.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, ErrorKind, Result};

/// Where administrators' programs are, also when PATH does not say so (a service's often does not).
const ADMIN_DIRS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];
/// Most bytes of a program's complaint that an error carries.
const COMPLAINT_LEN_MAX: usize = 600;

/// A program and the Debian package that has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

impl Tool {
    /// Errors with `Unsupported`, naming the package, if the program is nowhere.
    pub(crate) fn find(self) -> Result<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .chain(ADMIN_DIRS.iter().map(PathBuf::from))
            .map(|dir| dir.join(self.program))
            .find(|file| file.is_absolute() && file.is_file())
            .ok_or_else(|| {
                Error::new(ErrorKind::Unsupported, format!("run {}: the program is not installed", self.program))
                    .advise(format!("apt-get install {}", self.package))
            })
    }

    /// Becomes the program: it takes this process over, with its terminal and its signals. Returns only with an error.
    pub(crate) fn become_with(self, args: &[OsString]) -> Error {
        match self.find() {
            Ok(program) => Error::io(format!("run {}", self.program), Command::new(program).args(args).exec()),
            Err(error) => error,
        }
    }

    /// Runs it to its end. Errors with `Internal` and its own words unless it exits with 0.
    pub(crate) fn run(self, args: &[&str], device: &Path) -> Result<()> {
        let doing = format!("run {} on {}", self.program, device.display());
        let mut command = Command::new(self.find()?);
        command.args(args).arg(device);
        // Messages in English, whatever the service's locale: they go into errors.
        command.env("LC_ALL", "C").stdin(Stdio::null());
        let output = command.output().map_err(|e| Error::io(doing.clone(), e))?;
        if output.status.success() {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        let words: String = words.split_whitespace().collect::<Vec<_>>().join(" ");
        let words: String = words.chars().take(COMPLAINT_LEN_MAX).collect();
        Err(Error::new(ErrorKind::Internal, format!("{doing}: {}: {words}", output.status)))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::Tool;
    use crate::error::ErrorKind;

    #[test]
    fn a_missing_program_names_its_package() {
        let tool = Tool { program: "mkfs.of-no-kind", package: "no-kind-progs" };
        let error = tool.run(&[], Path::new("/dev/null")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.advice(), Some("apt-get install no-kind-progs"));
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let error = Tool { program: "ls", package: "coreutils" }.run(&[], Path::new("/no/such/place")).unwrap_err();
        assert!(error.to_string().contains("No such file"), "{error}");
    }
}
