//! The configuration's claims: defaults, precedence, and what is refused with which words.

use std::path::Path;

use thinsnap_pool::ByteCount;

use super::{Config, LogFormat, Overrides, parse_size, run_dir_of};
use crate::error::ErrorKind;
use crate::snapshot::FsType;

fn parse(text: &str) -> crate::error::Result<Config> {
    Config::parse(text, Overrides::default())
}

fn refusal(text: &str) -> (String, String) {
    let error = parse(text).expect_err(text);
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    (error.to_string(), error.advice().unwrap_or_default().to_owned())
}

#[test]
fn an_empty_file_is_a_configuration() {
    let config = parse("").unwrap();
    assert_eq!(config.root, Path::new("/var/lib/thinsnap"));
    assert_eq!(config.socket.path, Path::new("/run/thinsnap/thinsnap.sock"));
    assert_eq!(config.socket.mode, 0o660);
    assert_eq!(config.snapshotter.default_profile.fs, FsType::Ext4);
    assert_eq!(config.pool.size, None);
    assert_eq!(config.log_format, LogFormat::Text);
}

#[test]
fn the_example_that_is_shipped_says_the_defaults() {
    let example = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/thinsnap.toml")).unwrap();
    // Every line that is commented out with `#key` is a field with its default.
    let uncommented: String = example
        .lines()
        .map(|line| {
            line.strip_prefix('#')
                .filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '['))
                .unwrap_or(line)
        })
        .map(|line| format!("{line}\n"))
        .collect();
    let (shown, built_in) = (parse(&uncommented).unwrap(), parse("").unwrap());
    assert_eq!(format!("{:?}", shown.socket).replace("Some(\"root\")", "None"), format!("{:?}", built_in.socket));
    assert_eq!(shown.root, built_in.root);
    assert_eq!(shown.snapshotter.default_profile, built_in.snapshotter.default_profile);
    assert_eq!(shown.snapshotter.data_floor, built_in.snapshotter.data_floor);
    assert_eq!(shown.snapshotter.metadata_floor, built_in.snapshotter.metadata_floor);
    assert_eq!(shown.pool, built_in.pool);
    assert_eq!(shown.room, built_in.room);
    assert_eq!(shown.log_level, built_in.log_level);
    assert_eq!(shown.import, built_in.import);
    let fields = super::limits::IMPORT_FIELDS;
    let undocumented = fields.iter().find(|field| !example.contains(&format!("\n#{field} = ")));
    assert_eq!(undocumented, None);
}

#[test]
fn profiles_inherit_from_the_default() {
    let config =
        parse("[default]\nsize = '20G'\n[snapshotter.big]\nsize = '1T'\n[snapshotter.x]\nfs = 'xfs'\n").unwrap();
    let profiles = &config.snapshotter.profiles;
    assert_eq!((profiles["big"].fs, profiles["big"].size), (FsType::Ext4, ByteCount(1 << 40)));
    assert_eq!((profiles["x"].fs, profiles["x"].size), (FsType::Xfs, ByteCount(20 << 30)));
}

#[test]
fn the_command_line_stands_over_the_file() {
    let overrides = Overrides { root: Some("/srv/a".into()), size: Some(ByteCount(7)), ..Overrides::default() };
    let config = Config::parse("root = '/srv/b'\n[pool]\nsize = '1G'\nmetadata_size='8M'", overrides).unwrap();
    assert_eq!(config.root, Path::new("/srv/a"));
    assert_eq!((config.pool.size, config.pool.metadata_size), (Some(ByteCount(7)), Some(ByteCount(8 << 20))));
}

#[test]
fn an_unknown_field_is_refused_with_the_nearest() {
    assert_eq!(
        refusal("[floors]\ndaat = '1G'"),
        ("unknown field `floors.daat`".into(), "did you mean `floors.data`?".into())
    );
    assert_eq!(refusal("sokcet = 1").1, "did you mean `socket`?");
    assert_eq!(refusal("[snapshotter.a]\nsizee = '1G'").1, "did you mean `snapshotter.a.size`?");
    assert!(refusal("[log]\nzzzzzzzzzz = 1").1.contains("level, format"));
}

#[test]
fn wrong_values_name_their_field() {
    assert!(refusal("[floors]\ndata = 'many'").0.contains("floors.data"));
    assert!(refusal("[default]\nsize = '1M'").0.contains("default.size"));
    assert!(refusal("[default]\nfs = 'btrfs'").0.contains("fs"));
    assert!(refusal("[socket]\nmode = '0999'").0.contains("socket.mode"));
    assert!(refusal("[pool]\nblock_size = '65K'").0.contains("block size"));
    assert!(refusal("[pool]\nmetadata_cache = '3M'").0.contains("pool.metadata_cache"));
    assert!(refusal("[pool]\nmetadata_cache = 'much'").0.contains("pool.metadata_cache"));
    assert!(refusal(&format!("[socket]\npath = '/{}'", "x".repeat(107))).0.contains("107"));
    assert!(refusal("[snapshotter.'']\nfs = 'xfs'").0.contains("snapshotter name"));
    assert!(refusal("root = ").0.contains("line 1"));
}

#[test]
fn a_missing_file_is_not_found() {
    let error = Config::load(Some(Path::new("/no/such/file.toml")), Overrides::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn sizes_are_read_as_people_write_them() {
    for (text, bytes) in [
        ("100G", 100 << 30),
        ("64KiB", 64 << 10),
        ("1.5t", 3 << 39),
        (" 7 MB ", 7 << 20),
        ("4096", 4096),
        ("0", 0),
        ("0.25k", 256),
    ] {
        assert_eq!(parse_size(text).unwrap(), ByteCount(bytes), "{text}");
    }
    for text in ["", "G", "-1", "1.5", "1e3", "12X", "99999999999P", "1.", ".5G", "1.2.3G", "0x10"] {
        assert!(parse_size(text).is_err(), "{text}");
    }
}

#[test]
fn two_names_of_one_root_share_a_run_directory() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(dir.path(), &link).unwrap();
    assert_eq!(run_dir_of(dir.path()), run_dir_of(&link));
    assert!(run_dir_of(dir.path()).as_os_str().len() < 40);
}
