//! `thinsnap upgrade`: the pool-host runs the service's program from here on.

use clap::Args;

use crate::admin::api;
use crate::cli::args::Global;
use crate::cli::output::Output;
use crate::cli::render::clean;
use crate::cli::session::with_service;
use crate::error::Result;
use crate::grpc::error_of;

/// Options of `upgrade`.
#[derive(Debug, Args)]
pub struct UpgradeArgs {
    /// Also if the pool-host runs the service's program already
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(args: &UpgradeArgs, global: &Global, output: Output) -> Result<()> {
    let request = api::UpgradeRequest { force: args.force };
    let reply = with_service(&global.target(), |mut client| async move {
        Ok(client.upgrade(request).await.map_err(|s| error_of(&s))?.into_inner())
    })?;
    output.answer(&reply, text)
}

fn text(reply: &api::UpgradeReply) -> String {
    if reply.served_by_kernel {
        return "the kernel serves this pool: there is no pool-host to replace, the service's restart was the upgrade"
            .to_owned();
    }
    if !reply.replaced {
        let version = clean(&reply.new_version);
        return format!(
            "the pool-host runs the service's program already (version {version}); restart the service first if a \
             newer one is installed"
        );
    }
    let (old, new) = (clean(&reply.old_version), clean(&reply.new_version));
    format!("the pool-host was replaced: version {old} -> {new}; I/O waited {} ms", reply.stall_ms)
}

#[cfg(test)]
mod tests {
    use super::text;
    use crate::admin::api;

    #[test]
    fn an_upgrade_tells_both_versions_and_the_stall() {
        let reply = api::UpgradeReply {
            replaced: true,
            old_version: "0.1.0".into(),
            new_version: "0.2.0".into(),
            stall_ms: 41,
            served_by_kernel: false,
        };
        assert_eq!(text(&reply), "the pool-host was replaced: version 0.1.0 -> 0.2.0; I/O waited 41 ms");
        assert!(text(&api::UpgradeReply::default()).contains("restart the service first"));
        let kernel = api::UpgradeReply { served_by_kernel: true, ..api::UpgradeReply::default() };
        assert!(text(&kernel).contains("no pool-host to replace"));
    }
}
