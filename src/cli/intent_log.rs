//! `thinsnap pool discard-intent-log`: gives up what a killed pool-host had acknowledged, so that the pool starts.

use std::path::{Path, PathBuf};

use serde::Serialize;
use thinsnap_pool::{IntentLogState, discard_intent_log, intent_log_of};

use crate::admin::{intent_log_in, pool_paths_of};
use crate::cli::args::Global;
use crate::cli::output::Output;
use crate::cli::render::clean;
use crate::config::{Config, Overrides};
use crate::error::{Error, ErrorKind, Result};

/// What became of the log.
#[derive(Debug, Serialize)]
struct Discarded {
    log: PathBuf,
    /// Where it is now; `None`: there was none.
    kept_as: Option<PathBuf>,
    lost: String,
}

/// Tells what would be lost; with `yes` gives the log another name. Errors: `InUse` while a pool-host lives,
/// `InvalidArgument` without `yes`.
pub(crate) fn discard(yes: bool, global: &Global, output: Output) -> Result<()> {
    let overrides = Overrides { root: global.root.clone(), engine: global.engine, ..Overrides::default() };
    let config = Config::load(global.config.as_deref(), overrides)?;
    let log = intent_log_in(&config.run_dir);
    let state = intent_log_of(&pool_paths_of(&config.root), &log)?;
    let lost = loss(&state);
    if state == IntentLogState::Nothing {
        return answer(output, &Discarded { log, kept_as: None, lost });
    }
    if !yes {
        return Err(refusal(&log, &lost));
    }
    let kept_as = Some(discard_intent_log(&log)?);
    answer(output, &Discarded { log, kept_as, lost })
}

fn answer(output: Output, done: &Discarded) -> Result<()> {
    output.answer(done, |done| match &done.kept_as {
        None => format!("there is no intent log {}: nothing to discard", clean(&done.log.display().to_string())),
        Some(aside) => format!(
            "lost: {}\nthe log is kept as {}\nstart the service, then check the file systems that were mounted (fsck)",
            done.lost,
            clean(&aside.display().to_string())
        ),
    })
}

fn refusal(log: &Path, lost: &str) -> Error {
    let doing = format!("discard the intent log {}: this would be lost: {lost}", log.display());
    Error::new(ErrorKind::InvalidArgument, doing)
        .advise("start the service first: it replays a log that it can believe; to give it up, add --yes")
}

/// What giving the log up takes away.
fn loss(state: &IntentLogState) -> String {
    match state {
        IntentLogState::Nothing => "nothing".to_owned(),
        IntentLogState::OtherBoot => "nothing; the log is of an earlier boot, and no start looks at it".to_owned(),
        IntentLogState::OtherPool => "nothing of this pool; the log is another one's".to_owned(),
        IntentLogState::Pending { records } => {
            format!(
                "up to {records} acknowledged changes (first writes of blocks, discards), which the next start would replay"
            )
        }
        IntentLogState::Doubtful { why } => {
            format!("all writes into new blocks since the last commit; how many cannot be told, as {why}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::loss;
    use thinsnap_pool::IntentLogState;

    #[test]
    fn what_would_be_lost_is_counted_where_it_can_be() {
        assert!(loss(&IntentLogState::Pending { records: 17 }).contains("17 acknowledged changes"));
        assert!(
            loss(&IntentLogState::Doubtful { why: "its checksum is wrong".into() }).ends_with("its checksum is wrong")
        );
        assert!(loss(&IntentLogState::OtherBoot).starts_with("nothing"));
    }
}
