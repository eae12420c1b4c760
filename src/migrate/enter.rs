//! Enters a plan into the store: all of it in one transaction, as often as it takes, until the pool is taken over.
//!
//! Until then the store is a draft: a second run replaces what the first entered, and nobody serves from it. The mark that says so is
//! written with the records and changed last of all, when the pool is ours.

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::migrate::plan::MigrationPlan;
use crate::snapshot::Space;
use crate::store::{Limbo, Records, Rows, Store, Table};

const MIGRATION: Table = Table::new("migration");
const POOL: &str = "pool";

/// How far a migration got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MigrationState {
    /// Where the records came from, for people.
    pub(crate) source: String,
    /// The space that they were entered in.
    pub(crate) space: String,
    /// The pool is ours; before that another program may still use it.
    pub(crate) taken_over: bool,
}

/// How far the migration into this store got; `None` if there was none.
pub(crate) fn state_of(rows: &impl Rows) -> Result<Option<MigrationState>> {
    rows.get_json(MIGRATION, POOL)
}

/// Errors with `AlreadyExists` unless the store is new, or holds nothing but an earlier draft.
pub(crate) fn check_free(rows: &impl Rows) -> Result<()> {
    let what = match state_of(rows)? {
        Some(state) if !state.taken_over => return Ok(()),
        Some(state) => format!("the pool of {} was taken over into it already", state.source),
        None if rows.identity()?.is_some() || !rows.spaces_in_use()?.is_empty() => {
            "it serves a pool already".to_owned()
        }
        None => return Ok(()),
    };
    Err(Error::new(ErrorKind::AlreadyExists, what).advise("choose another --root"))
}

/// Errors with `Unavailable` while a pool's records are entered and it is not taken over: another program may be using it.
pub(crate) fn refuse_unfinished(rows: &impl Rows) -> Result<()> {
    match state_of(rows)? {
        Some(state) if !state.taken_over => Err(Error::new(
            ErrorKind::Unavailable,
            format!("the pool of {} is not taken over yet: only its records are entered", state.source),
        )
        .advise("run the same `thinsnap migrate` with --take-over, or remove the root directory")),
        _ => Ok(()),
    }
}

/// Enters a plan; returns the pool's identity, which is `identity` unless an earlier draft has chosen one. Errors:
/// as [`check_free`].
pub(crate) fn enter(
    store: &Store,
    plan: &MigrationPlan,
    space: &Space,
    source: &str,
    identity: [u8; 16],
    transaction: u64,
) -> Result<[u8; 16]> {
    let (plan, space, source) = (plan.clone(), space.clone(), source.to_owned());
    store.write(move |txn| {
        check_free(txn)?;
        let identity = txn.identity()?.unwrap_or(identity);
        for space in txn.spaces_in_use()? {
            let mut old = Vec::new();
            txn.snapshots(&space, &mut |snapshot| old.push(snapshot))?;
            old.iter().for_each(|snapshot| txn.drop_snapshot(&space, snapshot));
        }
        for id in txn.limbo()? {
            txn.leave_limbo(id);
        }
        for planned in &plan.snapshots {
            txn.insert_snapshot(&space, &planned.record)?;
        }
        plan.deleted.iter().for_each(|id| txn.enter_limbo(*id));
        txn.set_identity(identity)?;
        txn.set_transaction_id(transaction)?;
        txn.put_json(MIGRATION, POOL, &MigrationState { source, space: space.as_str().to_owned(), taken_over: false })?;
        Ok(identity)
    })
}

/// The pool is ours.
pub(crate) fn finish(store: &Store) -> Result<()> {
    store.write(|txn| {
        if let Some(state) = state_of(txn)? {
            txn.put_json(MIGRATION, POOL, &MigrationState { taken_over: true, ..state })?;
        }
        Ok(())
    })
}
