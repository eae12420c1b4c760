//! `thinsnap serve`: its options, laid over the configuration file.

use std::path::PathBuf;

use clap::Args;
use thinsnap_pool::{BlockSize, ByteCount, Engine, Export};

use crate::cli::args::Global;
use crate::config::{Config, LogFormat, Overrides, parse_engine, parse_export, parse_size};
use crate::error::{Error, Result};

/// Options of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    layout: PoolLayout,
    /// What is logged to stderr: error, warn, info, debug, trace, or a filter such as thinsnap=debug
    #[arg(long, value_name = "FILTER")]
    log_level: Option<String>,
    /// How it is logged
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

/// How a pool is made, if there is none yet.
#[derive(Debug, Clone, Args)]
pub struct PoolLayout {
    /// Data space of the pool, if it is to be made: sparse files that grow as blocks are used
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) size: Option<ByteCount>,
    /// Block device or file for the data, instead of a file in the root
    #[arg(long, value_name = "PATH")]
    pub(crate) data_device: Option<PathBuf>,
    /// Block device or file for the metadata, instead of a file in the root
    #[arg(long, value_name = "PATH")]
    pub(crate) metadata_device: Option<PathBuf>,
    /// Metadata space [default: follows from the data space]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) metadata_size: Option<ByteCount>,
    /// Size of a data block, 64K to 1G [default: 64K]
    #[arg(long, value_name = "SIZE", value_parser = block_size)]
    pub(crate) block_size: Option<BlockSize>,
}

impl PoolLayout {
    pub(crate) fn overrides(&self) -> Overrides {
        Overrides {
            size: self.size,
            metadata_size: self.metadata_size,
            block_size: self.block_size,
            data_device: self.data_device.clone(),
            metadata_device: self.metadata_device.clone(),
            ..Overrides::default()
        }
    }
}

impl ServeArgs {
    /// The configuration that these options and their file make.
    pub(crate) fn config(&self, global: &Global) -> Result<Config> {
        let overrides = Overrides {
            root: global.root.clone(),
            socket: global.socket.clone(),
            engine: global.engine,
            export: global.export,
            log_level: self.log_level.clone(),
            log_format: self.log_format,
            ..self.layout.overrides()
        };
        Config::load(global.config.as_deref(), overrides)
    }
}

/// A size, for clap: the reason and the advice in one line.
pub(crate) fn size(text: &str) -> std::result::Result<ByteCount, String> {
    parse_size(text).map_err(|error| in_one_line(&error))
}

/// An engine, for clap.
pub(crate) fn engine(word: &str) -> std::result::Result<Engine, String> {
    parse_engine(word).map_err(|error| in_one_line(&error))
}

/// A way to show devices, for clap.
pub(crate) fn export(word: &str) -> std::result::Result<Export, String> {
    parse_export(word).map_err(|error| in_one_line(&error))
}

fn in_one_line(error: &Error) -> String {
    match error.advice() {
        Some(advice) => format!("{error}; {advice}"),
        None => error.to_string(),
    }
}

pub(crate) fn block_size(text: &str) -> std::result::Result<BlockSize, String> {
    BlockSize::from_bytes(size(text)?.0).map_err(|error| error.to_string())
}
