//! The configuration, as an administrator or a tool may have written it.

use thinsnap::config::{Config, Overrides};

/// Reads a configuration.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(config) = Config::parse(text, Overrides::default()) {
        assert!(config.root.is_absolute() && config.run_dir.is_absolute());
    }
}
