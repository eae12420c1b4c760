//! `thinsnap pool why-full` and `pool trim`: who holds the space, and what can be given back.

use crate::admin::api::{self, pool_why_full_reply::Step};
use crate::cli::args::Global;
use crate::cli::output::Output;
use crate::cli::render::{clean, count, percent, size, table};
use crate::cli::session::{Bar, with_service};
use crate::error::{Error, ErrorKind, Result};
use crate::grpc::error_of;

/// Rows of a table that people are shown; programs get all.
const ROWS_MAX: usize = 20;

/// Empties free blocks that still hold room below the pool.
pub(crate) fn trim(global: &Global, output: Output) -> Result<()> {
    let trimmed = with_service(&global.target(), |mut client| async move {
        Ok(client.pool_trim(api::PoolTrimRequest {}).await.map_err(|s| error_of(&s))?.into_inner())
    })?;
    output.answer(&trimmed, |trimmed| format!("emptied {} of free blocks", size(trimmed.emptied_bytes)))
}

/// Says who holds the space.
pub(crate) fn why_full(global: &Global, output: Output) -> Result<()> {
    let report = with_service(&global.target(), |mut client| async move {
        let bar = Bar::new(output.is_json());
        let request = api::PoolWhyFullRequest {};
        let mut steps = client.pool_why_full(request).await.map_err(|s| error_of(&s))?.into_inner();
        while let Some(reply) = steps.message().await.map_err(|s| error_of(&s))? {
            match reply.step {
                Some(Step::Progress(progress)) => bar.show(&progress),
                Some(Step::Report(report)) => return Ok(report),
                None => {}
            }
        }
        Err(Error::new(ErrorKind::Unavailable, "pool why-full: the service ended before its answer"))
    })?;
    output.answer(&report, text)
}

fn text(report: &api::PoolWhyFullReport) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| text.push_str(&format!("{name:<12}{value}\n"));
    let space = |space: Option<api::PoolSpace>| {
        let space = space.unwrap_or_default();
        let (used, total) = (space.used_bytes, space.total_bytes);
        format!(
            "{:>9} of {:>9}  {:>5}   {} free",
            size(used),
            size(total),
            percent(used, total),
            size(space.free_bytes)
        )
    };
    line("data", space(report.data));
    line("metadata", format!("{}, {} of it reserve", space(report.metadata), size(report.metadata_reserve_bytes)));
    if report.below.is_some() {
        line("below", space(report.below));
    }
    if let Some(reason) = &report.reason {
        line("reason", clean(reason));
    }
    let notes = [
        (
            report.waiting_writes > 0,
            "waiting",
            format!("{} with {}", count(report.waiting_writes, "write"), size(report.waiting_bytes)),
        ),
        (
            report.limbo_devices > 0,
            "limbo",
            format!(
                "{} of {} come back by themselves",
                size(report.limbo_bytes),
                count(report.limbo_devices, "device")
            ),
        ),
        (
            report.returning_bytes > 0,
            "returning",
            format!("{} freed, not handed out yet", size(report.returning_bytes)),
        ),
        (report.held_bytes > 0, "held", format!("{} kept by a metadata snapshot", size(report.held_bytes))),
        (
            report.unpunched_bytes >= 1 << 20,
            "unpunched",
            format!("{} held below by free blocks: thinsnap pool trim", size(report.unpunched_bytes)),
        ),
    ];
    for (_, name, value) in notes.into_iter().filter(|(shown, ..)| *shown) {
        line(name, value);
    }
    line("shared", format!("{} by two devices or more", size(report.shared_bytes)));
    let rows: Vec<[String; 5]> = report.holders.iter().take(ROWS_MAX).map(holder).collect();
    text.push('\n');
    text.push_str(&table(["FREES", "HOLDS", "DEVICE", "KIND", "WHO"], &rows));
    more(&mut text, report.holders.len());
    if !report.chains.is_empty() {
        let rows: Vec<[String; 2]> = report.chains.iter().take(ROWS_MAX).map(chain).collect();
        text.push('\n');
        text.push_str(&table(["FREES", "ALL OF A LEAF CHAIN"], &rows));
        more(&mut text, report.chains.len());
    }
    text
}

fn more(text: &mut String, rows: usize) {
    if rows > ROWS_MAX {
        text.push_str(&format!("… and {} more: --json shows all\n", rows - ROWS_MAX));
    }
}

fn holder(holder: &api::SpaceHolder) -> [String; 5] {
    let mut who = match (&holder.space, &holder.name) {
        (Some(space), Some(name)) => format!("{}/{}", clean(space), clean(name)),
        _ => String::new(),
    };
    if let Some(container) = &holder.container {
        who.push_str(&format!("  container {}", clean(container)));
    }
    if !holder.images.is_empty() {
        who.push_str(&format!("  image {}", clean(&holder.images.join(", "))));
    }
    if holder.children > 0 {
        who.push_str(&format!("  ({} on it)", holder.children));
    }
    [size(holder.frees_bytes), size(holder.mapped_bytes), holder.device.to_string(), clean(&holder.kind), who]
}

fn chain(chain: &api::SpaceChain) -> [String; 2] {
    let names: Vec<String> = chain.snapshots.iter().map(|name| clean(name)).collect();
    [size(chain.frees_bytes), format!("{}/ {}", clean(&chain.space), names.join(" < "))]
}

#[cfg(test)]
mod tests {
    use super::text;
    use crate::admin::api;

    #[test]
    fn who_gives_back_most_stands_first_and_what_comes_by_itself_is_named() {
        let report = api::PoolWhyFullReport {
            data: Some(api::PoolSpace { used_bytes: 10 << 30, total_bytes: 10 << 30, free_bytes: 0 }),
            limbo_devices: 2,
            limbo_bytes: 1 << 30,
            unpunched_bytes: 5 << 20,
            holders: vec![api::SpaceHolder {
                device: 7,
                kind: "active".into(),
                space: Some("local".into()),
                name: Some("k\x1b".into()),
                container: Some("web".into()),
                frees_bytes: 3 << 30,
                mapped_bytes: 4 << 30,
                ..api::SpaceHolder::default()
            }],
            chains: vec![api::SpaceChain {
                space: "local".into(),
                snapshots: vec!["k".into(), "base".into()],
                frees_bytes: 5 << 30,
            }],
            ..api::PoolWhyFullReport::default()
        };
        let text = text(&report);
        assert!(text.contains("1.0 GiB of 2 devices come back by themselves"), "{text}");
        assert!(text.contains("thinsnap pool trim"), "{text}");
        assert!(text.contains("3.0 GiB  4.0 GiB  7       active  local/k\u{fffd}  container web"), "{text}");
        assert!(text.contains("5.0 GiB  local/ k < base"), "{text}");
    }
}
