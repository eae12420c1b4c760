//! `thinsnap doctor`: what this machine can do, what is missing, and how to fix it; changes nothing.

use std::fmt::Write;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use thinsnap_pool::{ByteCount, Engine, Export, choose_engine, choose_export};

use crate::cli::args::Global;
use crate::cli::output::{Output, write_stdout};
use crate::cli::render::{clean, size};
use crate::cli::session::with_service;
use crate::config::{Config, Overrides, ROOT_DEFAULT, SOCKET_DEFAULT};
use crate::error::{Error, ErrorKind, Result};
use crate::grpc::error_of;

/// Below this much free space a pool in the root would soon be full.
const FREE_SPACE_LOW: u64 = 10 << 30;

/// Options of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print what containerd's config.toml needs, and nothing else
    #[arg(long, conflicts_with = "json")]
    containerd_config: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// There, and as it should be.
    Ok,
    /// Not needed for everything, or not good.
    Warning,
    /// Needed, and not there.
    Missing,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    found: String,
    fix: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    /// True if nothing that is needed is missing.
    ready: bool,
    checks: Vec<Check>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, state: State::Ok, found: found.into(), fix: None }
    }

    fn warning(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, state: State::Warning, found: found.into(), fix: Some(fix.into()) }
    }

    fn missing(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, state: State::Missing, found: found.into(), fix: Some(fix.into()) }
    }
}

pub(crate) fn run(args: &DoctorArgs, global: &Global, output: Output) -> Result<()> {
    let root = global.root.clone().unwrap_or_else(|| ROOT_DEFAULT.into());
    let socket = global.socket.clone().unwrap_or_else(|| SOCKET_DEFAULT.into());
    if args.containerd_config {
        return write_stdout(containerd_config(&root, &socket).as_bytes());
    }
    let overrides =
        Overrides { root: global.root.clone(), engine: global.engine, export: global.export, ..Overrides::default() };
    let config = Config::load(global.config.as_deref(), overrides)?;
    let mut checks = vec![user(), kernel()];
    checks.extend(engine(config.engine, config.export));
    checks.extend([loop_control(), loop_count()]);
    checks.extend([mkfs("mkfs.ext4", "e2fsprogs", State::Missing), mkfs("mkfs.xfs", "xfsprogs", State::Warning)]);
    checks.extend([direct_io(&root), free_space(&root), containerd(), service(global)]);
    let report = Report { ready: checks.iter().all(|check| check.state != State::Missing), checks };
    output.answer(&report, text)?;
    if report.ready {
        return Ok(());
    }
    let missing: Vec<_> = report.checks.iter().filter(|c| c.state == State::Missing).map(|c| c.name).collect();
    Err(Error::new(ErrorKind::Unsupported, format!("this machine cannot serve snapshots yet: {}", missing.join(", ")))
        .advise("follow the fixes in the list above"))
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for check in &report.checks {
        let state = match check.state {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Missing => "missing",
        };
        let _ = writeln!(text, "{state:<8} {:<14} {}", check.name, clean(&check.found));
        if let Some(fix) = &check.fix {
            let _ = writeln!(text, "{:<8} {:<14} try: {}", "", "", clean(fix));
        }
    }
    text
}

/// What containerd's configuration needs, to paste.
fn containerd_config(root: &Path, socket: &Path) -> String {
    // TOML's basic strings escape as Rust's debug text does for every path without control characters.
    format!(
        "\
# containerd 1.6 to 2.x: in /etc/containerd/config.toml
[proxy_plugins.thinsnap]
  type = \"snapshot\"
  address = {socket:?}
  [proxy_plugins.thinsnap.exports]
    root = {root:?}

# For images pulled by containerd 2.x (ctr images pull, CRI) also:
[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]
  platform = \"linux/{arch}\"
  snapshotter = \"thinsnap\"

# For Kubernetes, containerd 1.x:  [plugins.\"io.containerd.grpc.v1.cri\".containerd] snapshotter = \"thinsnap\"
#                 containerd 2.x:  [plugins.'io.containerd.cri.v1.images'] snapshotter = \"thinsnap\"
",
        socket = socket.to_string_lossy(),
        root = root.to_string_lossy(),
        arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        },
    )
}

fn user() -> Check {
    let uid = nix::unistd::geteuid();
    if uid.is_root() {
        Check::ok("user", "root")
    } else {
        Check::missing("user", format!("user {uid}"), "run as root: mounts and loop devices need it")
    }
}

fn kernel() -> Check {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim().to_owned();
    let mut parts = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if version >= (5, 11) {
        Check::ok("kernel", release)
    } else {
        Check::warning("kernel", release, "use Linux 5.11 or newer: older ones are not tested")
    }
}

fn fuse() -> Check {
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Check::ok("fuse", "/dev/fuse"),
        Err(error) => Check::missing("fuse", format!("/dev/fuse: {error}"), "modprobe fuse, and run as root"),
    }
}

fn loop_control() -> Check {
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/loop-control") {
        Ok(file) if file.metadata().is_ok_and(|meta| meta.file_type().is_char_device()) => {
            Check::ok("loop", "/dev/loop-control")
        }
        Ok(_) => Check::missing("loop", "/dev/loop-control is no device", "mknod /dev/loop-control c 10 237"),
        Err(error) => Check::missing("loop", format!("/dev/loop-control: {error}"), "modprobe loop, and run as root"),
    }
}

fn loop_count() -> Check {
    let fixed = std::fs::read_to_string("/sys/module/loop/parameters/max_loop").unwrap_or_default();
    match fixed.trim().parse::<u32>() {
        // Made on demand beyond the first ones, since Linux 3.1.
        Ok(count) => Check::ok("loop devices", format!("{count} at boot, more are made on demand")),
        Err(_) => Check::ok("loop devices", "made on demand"),
    }
}

fn io_uring() -> Check {
    match std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled") {
        Ok(text) if text.trim() == "2" => Check::missing(
            "io_uring",
            "switched off (kernel.io_uring_disabled = 2)",
            "sysctl kernel.io_uring_disabled=1, which leaves it to root",
        ),
        Ok(_) => Check::ok("io_uring", "there"),
        // The switch came with Linux 6.6; before it io_uring was there or compiled out.
        Err(_) if Path::new("/proc/sys/kernel").exists() => Check::ok("io_uring", "there, or built out of this kernel"),
        Err(error) => Check::warning("io_uring", format!("/proc is not mounted: {error}"), "mount /proc"),
    }
}

/// Which engine a pool that nobody uses would get and why, and what that one needs. The kernel's modules are loaded by
/// the look at them, if they are there.
fn engine(wanted: Engine, shown: Export) -> Vec<Check> {
    const NAME: &str = "engine";
    const DM_THIN: &str = "dm-thin";
    let kernel = match choose_engine(Engine::Kernel) {
        Ok(choice) => Ok(choice.why),
        Err(error) => Err((error.to_string(), why_no_kernel(error.kind()))),
    };
    let asked = if wanted == Engine::Auto { "" } else { ", as it was asked for" };
    let mut checks = match (wanted, kernel) {
        (Engine::Auto | Engine::Kernel, Ok(why)) => {
            return vec![Check::ok(NAME, format!("kernel{asked}: {why}"))];
        }
        (Engine::Kernel, Err((why, fix))) => {
            return vec![Check::missing(NAME, format!("kernel{asked}, and not to be had: {why}"), fix)];
        }
        (Engine::Auto, Err((why, fix))) => vec![
            Check::ok(NAME, "embedded: a pool-host of ours moves the blocks"),
            Check {
                name: DM_THIN,
                state: State::Ok,
                found: format!("the kernel engine cannot be: {why}"),
                fix: Some(fix.into()),
            },
        ],
        (Engine::Embedded, Ok(why)) => vec![
            Check::ok(NAME, format!("embedded{asked}")),
            Check::ok(DM_THIN, format!("{why}: --engine kernel would work too")),
        ],
        (Engine::Embedded, Err((why, _))) => {
            vec![Check::ok(NAME, format!("embedded{asked}")), Check::ok(DM_THIN, format!("not needed; {why}"))]
        }
    };
    checks.extend(export(shown));
    checks.push(io_uring());
    checks
}

/// How the embedded engine would show its devices, why, and what that needs.
fn export(wanted: Export) -> Vec<Check> {
    const NAME: &str = "export";
    const FIX: &str = "modprobe ublk_drv (Linux 6.16 or newer; it comes with the kernel's package of modules), as root";
    let asked = if wanted == Export::Auto { "" } else { ", as it was asked for" };
    match choose_export(wanted) {
        Ok(choice) if choice.ublk => vec![Check::ok(NAME, format!("ublk{asked}: {}", choice.why))],
        Ok(choice) => {
            let fix = (wanted == Export::Auto).then(|| FIX.to_owned());
            let found = format!("FUSE and loop devices: {}", choice.why);
            vec![Check { name: NAME, state: State::Ok, found, fix }, fuse()]
        }
        Err(error) => vec![Check::missing(NAME, format!("ublk{asked}, and not to be had: {error}"), FIX)],
    }
}

/// What to do for the kernel engine.
fn why_no_kernel(kind: thinsnap_pool::ErrorKind) -> &'static str {
    match kind {
        thinsnap_pool::ErrorKind::Denied => {
            "run as root with CAP_SYS_ADMIN; in a container: a privileged one that has /dev/mapper/control"
        }
        _ => {
            "modprobe dm_thin_pool (it comes with the kernel's package of modules: Debian linux-image-amd64, Fedora \
             kernel-modules); where udev runs, also install dmsetup"
        }
    }
}

fn mkfs(tool: &'static str, package: &str, absent: State) -> Check {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    match std::env::split_paths(&path).chain(extra).map(|dir| dir.join(tool)).find(|file| file.is_file()) {
        Some(file) => Check::ok(tool, file.display().to_string()),
        None => Check {
            name: tool,
            state: absent,
            found: "not found".to_owned(),
            fix: Some(format!("apt-get install {package}")),
        },
    }
}

/// The nearest directory above that exists: the root itself is made by the service.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"))
}

fn direct_io(root: &Path) -> Check {
    let dir = existing(root);
    // A file without a name: nothing is left behind, whatever happens.
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE | libc::O_DIRECT)
        .mode(0o600)
        .open(dir);
    match opened {
        Ok(_) => Check::ok("direct I/O", format!("works in {}", dir.display())),
        Err(error) => Check::warning(
            "direct I/O",
            format!("{}: {error}", dir.display()),
            "put --root on ext4, XFS or btrfs; tmpfs and overlay double the memory that data takes",
        ),
    }
}

fn free_space(root: &Path) -> Check {
    let dir = existing(root);
    match nix::sys::statvfs::statvfs(dir) {
        Ok(stat) => {
            let free = stat.blocks_available().saturating_mul(stat.fragment_size());
            let found = format!("{} free in {}", size(free), dir.display());
            if free < FREE_SPACE_LOW {
                let fix =
                    format!("free some, or choose another --root: pools like {} and more", ByteCount(FREE_SPACE_LOW));
                Check::warning("space", found, fix)
            } else {
                Check::ok("space", found)
            }
        }
        Err(errno) => Check::warning("space", format!("{}: {errno}", dir.display()), "choose another --root"),
    }
}

fn containerd() -> Check {
    const NAME: &str = "containerd";
    let file = Path::new("/etc/containerd/config.toml");
    let fix = "thinsnap doctor --containerd-config >> /etc/containerd/config.toml, then restart containerd";
    match std::fs::read_to_string(file) {
        Ok(text) if text.contains("proxy_plugins.thinsnap") => {
            Check::ok(NAME, "configured in /etc/containerd/config.toml")
        }
        Ok(_) => Check::warning(NAME, "/etc/containerd/config.toml does not name thinsnap", fix),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Check::warning(NAME, "no /etc/containerd/config.toml", fix)
        }
        Err(error) => Check::warning(NAME, format!("{}: {error}", file.display()), "run as root"),
    }
}

fn service(global: &Global) -> Check {
    use crate::admin::{Connection, api};
    const NAME: &str = "service";
    let target = global.target();
    match Connection::service_answers(&target) {
        Ok(false) => Check::warning(NAME, "not running", "thinsnap serve --root DIR --size 100G"),
        Ok(true) => match with_service(&target, |mut client| async move {
            Ok(client.service_info(api::ServiceInfoRequest {}).await.map_err(|s| error_of(&s))?.into_inner())
        }) {
            Ok(info) => Check::ok(NAME, format!("version {}, process {}, root {}", info.version, info.pid, info.root)),
            Err(error) => Check::warning(NAME, error.to_string(), "see the service's log"),
        },
        Err(error) => Check::warning(NAME, error.to_string(), "run as root, or as a member of the socket's group"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{containerd_config, existing};

    #[test]
    fn what_is_printed_for_containerd_is_toml() {
        let text = containerd_config(Path::new("/var/lib/a \"b\""), Path::new("/run/x.sock"));
        let table: toml::Table = toml::from_str(&text).unwrap();
        let plugin = &table["proxy_plugins"]["thinsnap"];
        assert_eq!(plugin["address"].as_str(), Some("/run/x.sock"));
        assert_eq!(plugin["exports"]["root"].as_str(), Some("/var/lib/a \"b\""));
    }

    #[test]
    fn a_root_that_is_not_there_is_judged_by_its_parent() {
        assert_eq!(existing(Path::new("/proc/no/such/dir")), Path::new("/proc"));
    }
}
