//! From a parsed command to its noun.

use thinsnap_pool::{ByteCount, Export, PoolPaths, resume_orphan};

use crate::cli::args::{Cli, Command, PoolHostArgs};
use crate::cli::output::Output;
use crate::cli::{bench, bench_caller, container, doctor, image, migrate, pool, recovery, snapshot, upgrade};
use crate::error::Result;
use crate::serve::{self, HostWork};

/// Runs a command; its answer goes to stdout. The error's kind tells the exit status.
pub fn run(cli: Cli) -> Result<()> {
    let Cli { global, command } = cli;
    let output = Output::new(global.json);
    match command {
        Command::Serve(args) => serve::run(&args.config(&global)?),
        Command::Pool(verb) => pool::run(&verb, &global, output),
        Command::Snapshot(verb) => snapshot::run(verb, &global, output),
        Command::Image(verb) => image::run(verb, &global, output),
        Command::Container(verb) => container::run(verb, &global, output),
        Command::Upgrade(args) => upgrade::run(&args, &global, output),
        Command::Migrate(args) => migrate::run(&args, &global, output),
        Command::Rescue(args) => recovery::rescue(&args, &global, output),
        Command::Doctor(args) => doctor::run(&args, &global, output),
        Command::Bench(args) => Err(bench::run(&args, &global)),
        Command::BenchCaller => bench_caller::run(&global),
        Command::ResumeOrphan(args) => Ok(resume_orphan(&args.device, args.process, args.thread)?),
        Command::PoolHost(args) => {
            let (no_space, metadata_cache) = (args.no_space(), ByteCount(args.metadata_cache));
            let PoolHostArgs { data, metadata, run_dir, .. } = args;
            let export = global.export.unwrap_or(Export::Auto);
            serve::pool_host(&PoolPaths { metadata, data }, &run_dir, &HostWork { no_space, metadata_cache, export })
        }
    }
}
